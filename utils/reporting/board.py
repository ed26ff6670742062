"""What a run's panes show: collected as it comes, or read back from the run folder."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.images import BadImageError, decode_rgb
from utils.reporting.layout import (
    BASELINES,
    HIDDEN,
    Bars,
    Curves,
    Pane,
    Pictures,
    Words,
    new_pane,
    panes_of,
    read_settings,
)
from utils.runs.logged import metrics_lines, read_newest
from utils.runs.results import results_table
from utils.runs.run_folder import RunFolder
from utils.runs.sink import Sink

RESOLUTION = 1000  # points of a curve that lie closer than this fraction of its length are left out
MOST_PICTURES = 16  # of a pane; with more, every second of the older ones goes


@dataclass
class Curve:
    """Steps, in order, and the value at each."""

    x: list[int] = field(default_factory=list)
    y: list[float] = field(default_factory=list)

    def add(self, step: int, value: float) -> bool:
        """Append a point, unless it is too close to the last one to be seen: long runs stay quick to draw."""
        if self.x and step - self.x[-1] <= (self.x[-1] - self.x[0]) / RESOLUTION:
            return False
        self.x.append(step)
        self.y.append(value)
        return True


Picture = tuple[int | None, Any]  # its step, and what `Board` was told to make of it
Table = tuple[Sequence[str], Sequence[Sequence[object]]]


class Board(Sink):
    """The panes of a run in their order, and their content, by window. `changed` lists those with something new.

    Args:
        settings: those of the run, by name, for its panes.
        keep: what is kept of a picture uint8 [3,H,W] of a pane, and of a step or none.
    """

    def __init__(self, settings: Mapping[str, Any], keep: Callable[[Pictures, int | None, np.ndarray], Any]) -> None:
        self.panes: dict[str, Pane] = {}
        self.curves: dict[str, dict[str, Curve]] = {}
        self.bars: dict[str, np.ndarray] = {}
        self.pictures: dict[str, list[Picture]] = defaultdict(list)
        self.words: dict[str, str | Table] = {}
        self.changed: dict[str, None] = {}
        self._keep = keep
        self._shown = set(HIDDEN)  # metrics that have a pane, or are to have none
        for pane in panes_of(settings):
            self._add(pane)

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append a point to each curve that shows one of the values."""
        if split == BASELINES:
            return
        for name in [name for name in values if name not in self._shown]:
            self._add(new_pane(Curves, name))
        for window, curves in self.curves.items():
            pane = self.panes[window]
            assert isinstance(pane, Curves)
            for name, value in pane.values(split, values).items():
                if curves.setdefault(name, Curve()).add(step, value):
                    self.changed[window] = None

    def picture(self, step: int | None, name: str, picture: np.ndarray) -> None:
        """Show a picture as the newest of its pane; without a step it is the only one."""
        pane = self._pane(Pictures, name)
        assert isinstance(pane, Pictures)
        older = [one for one in self.pictures[pane.window] if one[0] is not None and step is not None]
        self.pictures[pane.window] = thinned([*older, (step, self._keep(pane, step, picture))])

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Show values as bars."""
        pane = self._pane(Bars, name)
        assert isinstance(pane, Bars)
        self.bars[pane.window] = np.sort(values)[::-1] if pane.descending else values

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Show a table."""
        self.words[self._pane(Words, name).window] = (columns, rows)

    def text(self, name: str, text: str) -> None:
        """Show plain text."""
        self.words[self._pane(Words, name).window] = text

    def _pane(self, kind: type[Pane], name: str) -> Pane:
        if name in self.panes and not isinstance(self.panes[name], kind):
            name = f"{name} ({kind.__name__.lower()})"  # things of two kinds have one name
        if name not in self.panes:
            self._add(new_pane(kind, name))
        self.changed[name] = None
        return self.panes[name]

    def _add(self, pane: Pane) -> None:
        self.panes[pane.window] = pane
        self.changed[pane.window] = None
        if isinstance(pane, Curves):
            self.curves[pane.window] = {}
            self._shown |= set(pane.metrics())


def thinned(pictures: list[Any]) -> list[Any]:
    """Pictures of a pane, oldest first, without every second of the older ones where they are too many."""
    return pictures if len(pictures) <= MOST_PICTURES else [*pictures[:-1:2], pictures[-1]]


def replay(folder: RunFolder, sink: Sink, *, last_step: int | None = None, most_pictures: int = MOST_PICTURES) -> None:
    """Hand what a run folder holds to a sink, as the run did; curves and pictures end at `last_step`, if one is given.

    What is missing or damaged is passed over.

    Raises:
        UserError: there is a `results.json` that holds something else.
        OSError: a file cannot be read.
    """
    settings, newest = read_settings(folder.hparams), -1
    for _, line in metrics_lines(folder.metrics) if folder.metrics.exists() else ():
        if line and (last_step is None or line["step"] <= last_step):
            newest = max(newest, line["step"])
            numbers = {name: _number(value) for name, value in line.items() if name not in ("step", "split")}
            known = {name: number for name, number in numbers.items() if number is not None}
            sink.scalars(line["step"], line["split"], known)
    if last_step is None:  # a picture of a later step is another run's, which was here before
        steps_per_log = settings.get("steps_per_log")
        last_step = newest + (steps_per_log if isinstance(steps_per_log, int) else 0)
    training = "steps_per_checkpoint" in settings
    pictures = _pictures(folder.images, last_step, most_pictures, training)
    for name, step, file in pictures:
        with suppress(BadImageError):
            sink.picture(step, name, np.asarray(decode_rgb(file)).transpose(2, 0, 1))
    if not (training or pictures) and (files := sorted((folder.images / "samples").glob("*.png"))):
        import torch  # late: all else needs none

        from utils.data.pictures import image_grid

        with suppress(BadImageError, ValueError):
            images = torch.stack([torch.tensor(np.asarray(decode_rgb(file))) for file in files[:64]])
            sink.picture(None, "samples", image_grid(images.permute(0, 3, 1, 2), 8))
    if folder.results.exists():
        sink.table("results", *results_table(folder.results))
    for kind, things in read_newest(folder.newest).items():
        for name, thing in things.items():
            with suppress(ArithmeticError, LookupError, TypeError, ValueError):
                if kind == "histograms":
                    values = np.array([*thing["values"]], dtype=np.float64).ravel()  # null becomes nan
                    sink.histogram(int(thing["step"]), name, values)
                elif kind == "tables":
                    columns, rows = [str(column) for column in thing["columns"]], [[*row] for row in thing["rows"]]
                    if all(len(row) == len(columns) for row in rows):
                        sink.table(name, columns, rows)
                else:
                    sink.text(name, str(thing))


def _pictures(images: Path, last_step: int, most: int, training: bool) -> list[tuple[str, int | None, Path]]:
    """Name, step and file of the pictures to show. Experiments write `<name>.png`, and grids `<name>_<number>.png`."""
    found: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for file in images.glob("*.png"):
        match = re.fullmatch(r"(.*?)(?:_(\d+))?(_\d+)?", file.stem)  # _<step>_<number>: an image, written individually
        if match and not match[3] and bool(match[2]) >= training:
            found[match[1]].append((int(match[2] or -1), file))
    shown: list[tuple[str, int | None, Path]] = []
    for name, files in sorted(found.items()):
        kept: list[tuple[int, Path]] = []
        for step, file in sorted(files):
            if not training:
                kept = [(step, file)]
            elif step <= last_step:
                kept = thinned([*kept, (step, file)])
        shown += [(name, step if training else None, file) for step, file in kept[-most:]]
    return shown


def _number(value: object) -> float | None:
    """Null, which stands for a value that was not finite, as nan; None for what is no number."""
    if value is None:
        return float("nan")
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:
        return None
