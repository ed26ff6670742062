"""The panes of experiments: their results as a table, their pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from hparams.settings import RunSettings
from utils.dashboard import Dashboard
from utils.progress import say
from utils.results import read_results
from utils.run_folder import RunFolder


def open_dashboard(run: RunSettings, *, keep: bool = False, warn: Callable[[str], None] = say) -> Dashboard:
    """The dashboard of an experiment, for a `with` block; its run folder is made if missing.

    `keep`: what an earlier part of the experiment showed stays.
    `images(window, grid, title=…, largest=1024)` shows a grid of neighbours or a big picture, `table` any table.
    """
    folder = RunFolder(run.log_dir)
    folder.path.mkdir(parents=True, exist_ok=True)
    last_step = sys.maxsize if keep else None
    return Dashboard(
        run.log_dir, folder.dashboard, run.visdom_server, run.visdom_port, warn=warn, resume_step=last_step
    )


def show_results(dashboard: Dashboard, results_file: Path, *, title: str = "results") -> None:
    """Show a results file as a table: a row per entry, its numbers first, then the conditions in which entries differ.

    Raises:
        UserError: the file holds something else.
    """
    entries = read_results(results_file)
    values = list(dict.fromkeys(name for entry in entries for name in entry["values"]))
    conditions = list(dict.fromkeys(name for entry in entries for name in entry["conditions"]))
    if len(entries) > 1:
        told = {name: {repr(entry["conditions"].get(name)) for entry in entries} for name in conditions}
        conditions = [name for name in conditions if len(told[name]) > 1]
    rows = [
        [entry["values"].get(name) for name in values] + [entry["conditions"].get(name) for name in conditions]
        for entry in entries
    ]
    dashboard.table("results", [name.replace("_", " ") for name in values + conditions], rows, title=title)
