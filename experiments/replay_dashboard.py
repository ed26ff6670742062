"""Show a past run's dashboard on a visdom server, and draw its summary.png, from the run folder alone."""

from __future__ import annotations

import sys

from experiments import _packages  # noqa: F401 - first: it refuses packages that are not ours
from hparams.cli import parse_plain
from hparams.errors import UserError
from hparams.folders import require_possible_folder
from hparams.script import run_script
from hparams.settings.tools import Replay
from utils.reporting.dashboard import environment, replay
from utils.reporting.summary import draw_summary
from utils.reporting.visdom_server import Server
from utils.runs.run_folder import RunFolder

EXAMPLE = "python experiments/replay_dashboard.py --log_dir vqgan_churches --visdom_port 8097"


def main() -> None:
    settings = parse_plain(Replay, description=__doc__, example=EXAMPLE).replay
    if not settings.log_dir:
        raise UserError("--log_dir is required: the run folder to show, under logs/")
    folder = RunFolder(settings.log_dir)
    require_possible_folder(folder.path)
    if not folder.dashboard.exists():
        raise UserError(f"--log_dir {settings.log_dir}: there is no {folder.dashboard}; name a run that has one")
    env, visdom = (
        environment(folder.name),
        Server(settings.visdom_server, settings.visdom_port, settings.visdom_base_url),
    )
    if settings.dry_run:
        shown = "" if settings.summary_only else f"shown at {visdom.address}, and "
        print(f"{folder.dashboard} would be {shown}drawn in {folder.summary}")
        return
    if not settings.summary_only:
        panes = replay(folder.dashboard, env, visdom)
        print(f"{panes} panes at {visdom.page(env)}", flush=True)
    try:
        draw_summary(folder.dashboard, folder.summary, title=folder.name)
    except UserError as error:
        if settings.summary_only:
            raise
        print(f"WARNING: no summary: {error}", file=sys.stderr)
    else:
        print(f"summary in {folder.summary}")


if __name__ == "__main__":
    run_script(main)
