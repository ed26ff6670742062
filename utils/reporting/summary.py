"""One page with a run's curves and newest pictures, for those who have no browser at hand.

`python -m utils.reporting.summary dashboard.jsonl summary.png TITLE` draws it in a process of its own, so that training
neither waits for it nor suffers from its failure. Imports no torch.
"""

from __future__ import annotations

import base64
import html
import itertools
import math
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from hparams.errors import UserError
from utils.data.images import decode_rgb
from utils.machine.files import whole_file
from utils.reporting.panes import Message, read_panes

if TYPE_CHECKING:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

COLUMNS = 4
WIDTH = 16.0  # inches
LARGEST, SMALLEST = 6.5, 1.2  # heights of a row of pictures and text, in inches
LETTERS = 100  # of 9 points in a line of half the page
DPI = 80
PROJECT = Path(__file__).parents[2]
SECONDS_AT_THE_END = 30.0  # what the end of a run waits at most for the last page


def draw_summary(log_file: Path, path: Path, *, title: str) -> None:
    """Draw what a dashboard's log recorded onto one page.

    Raises:
        UserError: the log cannot be read, or the page cannot be written.
    """
    try:
        recorded = read_panes(log_file)
    except OSError as error:
        raise UserError(f"{log_file}: {error.strerror}: give the dashboard log of a run") from error
    # Imported late: it takes longer than everything else here.
    from matplotlib import rc_context

    # Names of runs and files are text, not TeX: whatever dollars they hold, and whatever the user's matplotlibrc says.
    plain = rc_context({"text.parse_math": False, "text.usetex": False, "axes.formatter.use_mathtext": False})
    with plain, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a letter that no font has is drawn as a box
        canvas = _page(recorded, title)
        try:
            with whole_file(path) as file:
                canvas.print_png(file)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error


def _page(recorded: Mapping[str, Message], title: str) -> FigureCanvasAgg:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plots = [message for message in recorded.values() if _kind(message) in {"scatter", "bar"} and _has_data(message)]
    halves = [message for message in recorded.values() if _kind(message) in {"image", "image_history", "text"}]
    heights = [max(map(_height, halves[i : i + 2])) for i in range(0, len(halves), 2)]
    heights += [2.4] * -(-len(plots) // COLUMNS)
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.6), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    grid = figure.add_gridspec(max(1, len(heights)), COLUMNS, height_ratios=heights or [1])
    for number, message in enumerate(halves):
        half = slice(0, COLUMNS // 2) if number % 2 == 0 else slice(COLUMNS // 2, COLUMNS)
        axes = figure.add_subplot(grid[number // 2, half])
        axes.set_title(message["opts"]["title"], fontsize=10)
        axes.axis("off")
        if _kind(message) == "text":
            text = plain_text(message)
            longest = max(map(len, text.splitlines()), default=0)
            style: dict[str, Any] = {
                "family": "monospace",
                "fontsize": 9 * min(1, LETTERS / max(1, longest)),
                "verticalalignment": "top",
                "transform": axes.transAxes,
            }
            axes.text(0.02, 1, text, **style)
        else:
            axes.imshow(_newest_picture(message), aspect="equal")
    for number, message in enumerate(plots):
        row, column = divmod(number, COLUMNS)
        _plot(figure.add_subplot(grid[len(heights) - -(-len(plots) // COLUMNS) + row, column]), message)
    return canvas


class SummaryDrawer:
    """Draws a run's page beside its training: at most one at a time, in a process of low priority.

    warn: takes the one line about a page that could not be drawn.
    """

    def __init__(self, log_file: Path, path: Path, *, title: str, warn: Callable[[str], None]) -> None:
        self._arguments = [str(log_file.absolute()), str(path.absolute()), title]
        self._path = path
        self._warn = warn
        self._process: subprocess.Popen[str] | None = None
        self._outdated = False

    def draw(self) -> None:
        """Begin to draw, unless the last page is still being drawn."""
        self._outdated = self._process is not None and self._process.poll() is None
        if self._outdated:
            return
        if self._process is not None:
            self._reap()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "utils.reporting.summary", *self._arguments],
                cwd=PROJECT,  # where the user is, or PYTHONPATH leads, may be another package of this name
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # a signal to the run's group must not cut the page short
            )
        except OSError as error:
            self._warn(f"{self._path} was not drawn ({error.strerror}); the run goes on")

    def close(self) -> None:
        """Wait up to `SECONDS_AT_THE_END` for the newest page; the one before it stays where that is too short."""
        end = monotonic() + SECONDS_AT_THE_END
        self._wait(end)
        if self._outdated and monotonic() < end:
            self.draw()
            self._wait(end)

    def _wait(self, end: float) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, end - monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reap()

    def _reap(self) -> None:
        assert self._process is not None
        _, told = self._process.communicate()
        if self._process.returncode:
            reason = told.strip().splitlines()[-1] if told.strip() else f"exit status {self._process.returncode}"
            self._warn(f"{self._path} was not drawn ({reason}); the run goes on")
        self._process = None


def _kind(message: Message) -> str:
    return str(message["data"][0]["type"])


def _has_data(message: Message) -> bool:
    return _kind(message) == "bar" or any(curve["x"] for curve in message["data"])


def _plot(axes, message: Message) -> None:  # type: ignore[no-untyped-def]  # matplotlib's own types are Any here
    layout = message["layout"]
    values = [[math.nan if y is None else y for y in entry["y"]] for entry in message["data"]]
    if _kind(message) == "bar":
        axes.bar(message["data"][0]["x"], values[0], width=1)
    elif "stackgroup" in message["data"][0]:
        x = message["data"][0]["x"]
        names = [entry["name"] for entry in message["data"]]
        axes.stackplot(x, *(np.nan_to_num(y) for y in values if len(y) == len(x)), labels=names, alpha=0.7)
    else:
        for entry, y in zip(message["data"], values, strict=True):
            if y:
                axes.plot(entry["x"], y, label=entry["name"], linewidth=1, marker="." if len(y) < 50 else None)
    if len(message["data"]) > 1:
        axes.legend(fontsize=8, framealpha=0.6, edgecolor="none")
    axes.set_title(message["opts"]["title"], fontsize=10)
    axes.set_xlabel(layout["xaxis"]["title"]["text"], fontsize=8)
    axes.set_ylabel(layout["yaxis"]["title"]["text"], fontsize=8)
    axes.tick_params(labelsize=8)
    axes.ticklabel_format(axis="y", useOffset=False)  # "1.2e-5 + 4.1" is hard to read
    if layout["yaxis"].get("rangemode") == "tozero":
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.grid(alpha=0.3)


def _newest_picture(message: Message) -> np.ndarray:
    source = message["data"][-1]["content"]["src"].split(",", 1)[1]
    return np.asarray(decode_rgb(base64.b64decode(source), "a picture of the dashboard"))


def _height(message: Message) -> float:
    """Inches that a picture or a text takes at half the width of the page, within bounds."""
    if _kind(message) == "text":
        inches = 0.5 + 0.16 * len(plain_text(message).splitlines())
    else:
        height, width, _ = _newest_picture(message).shape
        inches = 0.4 + WIDTH / 2 * height / width
    return min(LARGEST, max(SMALLEST, inches))


def plain_text(message: Message) -> str:
    """A text as it is, a table with its columns aligned."""
    content = str(message["data"][0]["content"])
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", content)]
    if rows:
        rows = [[html.unescape(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in itertools.zip_longest(*rows, fillvalue="")]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return html.unescape(re.sub(r"<[^>]+>", "", content))


if __name__ == "__main__":
    os.nice(5)
    try:
        draw_summary(Path(sys.argv[1]), Path(sys.argv[2]), title=sys.argv[3])
    except UserError as problem:
        sys.exit(str(problem))
    except Exception as problem:  # one line for the run's log
        sys.exit(f"{type(problem).__name__}: {problem}")
