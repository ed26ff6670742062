"""The panes of experiments: their results as a table, their pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hparams.settings.stages import RunSettings
from utils.machine.progress import say
from utils.reporting.dashboard import Dashboard, run_dashboard
from utils.reporting.summary import SummaryDrawer
from utils.runs.results import read_results
from utils.runs.run_folder import RunFolder

ALL = sys.maxsize  # a step after all others
LARGEST_SIDE = 1280  # pixels of a picture: an experiment has few


@contextmanager
def open_dashboard(
    run: RunSettings, *, resume_step: int | None = None, warn: Callable[[str], None] = say
) -> Iterator[Dashboard]:
    """The dashboard of an experiment, for a `with` block, at whose end `summary.png` is drawn.

    The run folder is made if missing. resume_step: what an earlier part of the experiment showed up to this step
    (`ALL`: everything) stays; None: nothing does.
    """
    folder = RunFolder(run.log_dir)
    folder.path.mkdir(parents=True, exist_ok=True)
    with run_dashboard(run, folder.dashboard, warn=warn, resume_step=resume_step) as dashboard:
        yield dashboard
    if run.summary:
        drawer = SummaryDrawer(folder.dashboard, folder.summary, title=folder.name, warn=warn)
        drawer.draw()
        drawer.close()


def show_picture(dashboard: Dashboard, window: str, picture: np.ndarray, *, title: str) -> None:
    """Show a grid or a large picture, uint8 [3,H,W], in place of the window's last one."""
    dashboard.images(window, picture, title=title, largest=LARGEST_SIDE)


def show_results(dashboard: Dashboard, results_file: Path) -> None:
    """Show a results file as a table: a row per entry, its numbers first, then the conditions in which entries differ.

    A single entry has a row for each number and each condition.

    Raises:
        UserError: the file holds something else.
    """
    entries = read_results(results_file)
    if len(entries) == 1:
        named = {**entries[0]["values"], **entries[0]["conditions"]}
        pairs = [(name.replace("_", " "), value) for name, value in named.items() if value is not None]
        dashboard.table("results", ["result", ""], pairs, title="results")
        return
    values = list(dict.fromkeys(name for entry in entries for name in entry["values"]))
    conditions = list(dict.fromkeys(name for entry in entries for name in entry["conditions"]))
    told = {name: {repr(entry["conditions"].get(name)) for entry in entries} for name in conditions}
    conditions = [name for name in conditions if len(told[name]) > 1]
    rows = [
        [entry["values"].get(name) for name in values] + [entry["conditions"].get(name) for name in conditions]
        for entry in entries
    ]
    dashboard.table("results", [name.replace("_", " ") for name in values + conditions], rows, title="results")
