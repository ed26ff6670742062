"""Show a past run again, from its folder alone: on a visdom server, as summary.png, or where --sinks says."""

from __future__ import annotations

import sys

import experiments  # noqa: F401 - first: it refuses packages that are not ours
from hparams.checks import require_packages
from hparams.cli import parse
from hparams.errors import UserError
from hparams.folders import require_possible_folder
from hparams.script import run_script
from hparams.settings.tools import Replay
from utils.reporting.board import read_settings, replay
from utils.reporting.visdom import Server, environment, show_on_visdom
from utils.runs.run_folder import RunFolder

EXAMPLE = "python experiments/replay_dashboard.py --log_dir vqgan_churches --visdom_port 8097"


def main() -> None:
    settings = parse(Replay, description=__doc__, example=EXAMPLE).replay
    if not settings.log_dir:
        raise UserError("--log_dir is required: the run folder to show, under logs/")
    folder = RunFolder(settings.log_dir)
    require_possible_folder(folder.path)
    if not any(path.exists() for path in (folder.metrics, folder.results, folder.images)):
        raise UserError(
            f"--log_dir {settings.log_dir}: there is no {folder.metrics.name}, {folder.results.name} or "
            f"{folder.images.name}/ in {folder.path}; name a run that has one"
        )
    require_packages(settings.sinks)
    server = Server(settings.visdom_server, settings.visdom_port, settings.visdom_base_url)
    if settings.dry_run:
        places = {"visdom": f"at {server.address}", "summary": f"in {folder.summary}"}
        shown = ", ".join(places.get(sink, f"in {sink}") for sink in settings.sinks)
        print(f"{folder.path} would be shown {shown}")
        return
    for sink in settings.sinks:
        if sink == "visdom":
            print(f"{show_on_visdom(folder, server)} panes at {server.page(environment(folder.name))}", flush=True)
        elif sink == "summary":
            from utils.reporting.summary import draw_summary  # late, as it imports matplotlib

            try:
                draw_summary(folder)
                print(f"summary in {folder.summary}")
            except UserError as error:
                if len(settings.sinks) == 1:
                    raise
                print(f"WARNING: no summary: {error}", file=sys.stderr)
        else:
            from utils.reporting.sinks import open_sink

            view = open_sink(sink, folder, read_settings(folder.hparams), resume_step=None, warn=print)
            replay(folder, view)
            view.close()
            print(f"shown in {sink}")


if __name__ == "__main__":
    run_script(main)
