"""What a run's panes show: collected as it comes, or read back from the run folder."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from utils.data.images import BadImageError, decode_rgb
from utils.reporting.layout import BASELINES, Bars, Curves, Pane, Pictures, Words, new_pane, panes_of, plain_table
from utils.runs.logged import metrics_lines, read_newest
from utils.runs.results import results_table
from utils.runs.run_folder import RunFolder
from utils.runs.sink import Sink

RESOLUTION = 1000  # points of a curve that lie closer than this fraction of its length are left out
MOST_PICTURES = 16  # of a pane; with more, every second of the older ones goes
LARGEST = 1024  # pixels of a side of a picture, which is scaled down to it
# Metrics without a pane: the status says them, or another metric says more.
HIDDEN = frozenset({"steps_per_second", "skipped_updates", "batch_perplexity"})


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


class Board(Sink):
    """The panes of a run in their order, and their content, by window. `changed` lists those with something new.

    settings: those of the run, by name, for its panes. keep: what is kept of a pane's picture of a step, or of none.
    """

    def __init__(self, settings: Mapping[str, Any], keep: Callable[[Pictures, int | None, Image.Image], Any]) -> None:
        self.panes: dict[str, Pane] = {}
        self.curves: dict[str, dict[str, Curve]] = {}
        self.bars: dict[str, np.ndarray] = {}
        self.pictures: dict[str, list[tuple[int | None, Any]]] = {}  # each with its step
        self.words: dict[str, str] = {}
        self.changed: dict[str, None] = {}
        self._keep = keep
        self._shown = set(HIDDEN)  # metrics that have a pane, or are to have none
        for pane in panes_of(settings):
            self._add(pane)

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        if split == BASELINES:
            return
        for name in values:
            if name not in self._shown:
                self._add(new_pane(Curves, name))
        for pane in self.panes.values():
            for name, value in pane.values(split, values).items() if isinstance(pane, Curves) else ():
                if self.curves[pane.window].setdefault(name, Curve()).add(step, value):
                    self.changed[pane.window] = None

    def picture(self, step: int | None, name: str, picture: np.ndarray) -> None:
        pane = self._pane(Pictures, name)
        image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS, reducing_gap=3.0)
        older = self.pictures.get(pane.window, []) if step is not None else []
        self.pictures[pane.window] = thinned([*older, (step, self._keep(pane, step, image))])

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        pane = self._pane(Bars, name)
        self.bars[pane.window] = np.sort(values)[::-1] if pane.descending else values

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.text(name, plain_table(columns, rows))

    def text(self, name: str, text: str) -> None:
        # Names of files may be any bytes; fonts and visdom's server take UTF-8.
        self.words[self._pane(Words, name).window] = text.encode(errors="backslashreplace").decode()

    def _pane(self, kind: type[Pane], name: str) -> Any:
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


def read_settings(path: Path) -> dict[str, Any]:
    """What an `hparams.yaml` says, as far as it can be read: a page is drawn without it too."""
    content: Any = None
    with suppress(OSError, ValueError, RecursionError, yaml.YAMLError):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


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
            step, split = line.pop("step"), line.pop("split")
            newest = max(newest, step)
            numbers: dict[str, float] = {}
            for name, value in line.items():
                with suppress(OverflowError, TypeError):  # of what is no number, or larger than any
                    numbers[name] = nan if value is None else value + 0.0  # null stands for what was not finite
            sink.scalars(step, split, numbers)
    if last_step is None:  # a picture of a later step is another run's, which was here before
        steps_per_log = settings.get("steps_per_log")
        last_step = newest + (steps_per_log if isinstance(steps_per_log, int) else 0)
    training = "steps_per_checkpoint" in settings
    pictures = [*_pictures(folder.images, last_step if training else None, most_pictures)]
    for name, step, file in pictures:
        with suppress(BadImageError):
            sink.picture(step, name, np.asarray(decode_rgb(file)).transpose(2, 0, 1))
    if not (training or pictures) and (files := sorted((folder.images / "samples").glob("*.png"))):
        import torch  # late: all else needs none

        from utils.data.pictures import image_grid

        with suppress(BadImageError, ValueError):
            images = torch.from_numpy(np.stack([np.asarray(decode_rgb(file)) for file in files[:64]]))
            sink.picture(None, "samples", image_grid(images.permute(0, 3, 1, 2), 8))
    if folder.results.exists():
        sink.table("results", *results_table(folder.results))
    for kind, things in read_newest(folder.newest).items():
        for name, thing in things.items():
            with suppress(ArithmeticError, LookupError, TypeError, ValueError):
                if kind == "histograms":
                    sink.histogram(thing["step"], name, np.array([*thing["values"]], np.float64).ravel())
                elif kind == "tables":
                    sink.table(name, thing["columns"], thing["rows"])
                else:
                    sink.text(name, str(thing))


def _pictures(images: Path, last_step: int | None, most: int) -> Iterator[tuple[str, int | None, Path]]:
    """Name, step and file of the pictures to show: of each name those of training up to a step, or the newest.

    Experiments (`last_step` None) write `<name>.png`, and grids `<name>_<number>.png`.
    """
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for file in images.glob("*.png"):
        match = re.fullmatch(r"(.*?)(?:_(\d+))?(_\d+)?", file.stem)  # _<step>_<number>: an image, written individually
        if match and not match[3] and (match[2] or last_step is None):
            found[match[1]][int(match[2] or -1)] = file
    for name, files in sorted(found.items()):
        if last_step is None:
            yield name, None, files[max(files)]
            continue
        kept: list[int] = []
        for step in sorted(step for step in files if step <= last_step):
            kept = thinned([*kept, step])
        yield from ((name, step, files[step]) for step in kept[-most:])
