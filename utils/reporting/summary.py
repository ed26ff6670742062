"""One page with a run's curves and newest pictures, for those who have no browser at hand.

`python -m utils.reporting.summary ROOT RUN` draws it in a process of its own, so that training neither waits for it nor
suffers from its failure. Imports no torch.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hparams.errors import UserError
from utils.machine.files import whole_file
from utils.reporting.board import Board, replay
from utils.reporting.layout import Bars, Curves, Pane, Pictures, cell, escaped, read_settings
from utils.runs.run_folder import RunFolder
from utils.runs.sink import Sink

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg

COLUMNS = 4
WIDTH = 16.0  # inches
LARGEST, SMALLEST = 6.5, 1.2  # heights of a row of pictures and text, in inches
LETTERS = 100  # of 9 points in a line of half the page
DPI = 80
PIXELS = 1280  # the longer side of a picture, at most
PROJECT = Path(__file__).parents[2]


def draw_summary(folder: RunFolder) -> None:
    """Draw what a run folder holds onto one page, its `summary.png`.

    Raises:
        UserError: the folder cannot be read, or the page cannot be written.
    """
    board = Board(read_settings(folder.hparams), _small)
    try:
        replay(folder, board, most_pictures=1)
    except OSError as error:
        raise UserError(f"{error.filename or folder.path}: {error.strerror}") from error
    # Imported late: it takes longer than everything else here.
    from matplotlib import rc_context

    # Names of runs and files are text, not TeX: whatever dollars they hold, and whatever the user's matplotlibrc says.
    plain = rc_context({"text.parse_math": False, "text.usetex": False, "axes.formatter.use_mathtext": False})
    with plain, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a letter that no font has is drawn as a box
        canvas = _page(board, folder.name)
        try:
            with whole_file(folder.summary) as file:
                canvas.print_png(file)
        except OSError as error:
            raise UserError(f"{folder.summary}: {error.strerror}") from error


class Summary(Sink):
    """Draws a run's page in a process of low priority, which it waits for.

    warn: takes the one line about a page that could not be drawn.
    """

    def __init__(self, folder: RunFolder, *, warn: Callable[[str], None]) -> None:
        self._command = [sys.executable, "-m", "utils.reporting.summary", str(folder.root.absolute()), folder.name]
        self._path, self._warn = folder.summary, warn
        self._outdated = False

    def draw(self) -> None:
        """Have the page drawn soon: once for all calls that come while the last one is being drawn."""
        self._outdated = True

    def idle(self) -> bool:
        """Draw the page, if it is outdated."""
        if self._outdated:
            self._outdated = False
            try:
                subprocess.run(
                    self._command,
                    cwd=PROJECT,  # where the user is, or PYTHONPATH leads, may be another package of this name
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    check=True,
                    start_new_session=True,  # a signal to the run's group must not cut the page short
                )
            except OSError as error:
                self._warn(f"{self._path} was not drawn ({error.strerror}); the run goes on")
            except subprocess.CalledProcessError as error:
                reason = (error.stderr.strip() or f"exit status {error.returncode}").splitlines()[-1]
                self._warn(f"{self._path} was not drawn ({reason}); the run goes on")
        return False

    def close(self) -> None:
        """Draw the page, if it is outdated."""
        self.idle()


def _page(board: Board, title: str) -> FigureCanvasAgg:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    halves: list[tuple[Pane, str | np.ndarray]] = []
    plots: list[Curves | Bars] = []
    for window, pane in board.panes.items():
        if isinstance(pane, Curves):
            plots += [pane] if board.curves[window] else []
        elif isinstance(pane, Bars):
            plots += [pane] if window in board.bars else []
        elif board.pictures.get(window):
            halves.append((pane, board.pictures[window][-1][1]))
        elif window in board.words:
            words = board.words[window]
            halves.append((pane, escaped(words) if isinstance(words, str) else plain_table(*words)))
    heights = [max(_height(content) for _, content in halves[i : i + 2]) for i in range(0, len(halves), 2)]
    first = len(heights)
    heights += [2.4] * -(-len(plots) // COLUMNS)
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.6), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    grid = figure.add_gridspec(max(1, len(heights)), COLUMNS, height_ratios=heights or [1])
    for number, (pane, content) in enumerate(halves):
        half = slice(0, COLUMNS // 2) if number % 2 == 0 else slice(COLUMNS // 2, COLUMNS)
        axes = figure.add_subplot(grid[number // 2, half])
        axes.set_title(pane.title, fontsize=10)
        axes.axis("off")
        if isinstance(content, str):
            longest = max(map(len, content.splitlines()), default=0)
            style: dict[str, Any] = {"family": "monospace", "fontsize": 9 * min(1, LETTERS / max(1, longest))}
            axes.text(0.02, 1, content, verticalalignment="top", transform=axes.transAxes, **style)
        else:
            axes.imshow(content, aspect="equal")
    for number, plot in enumerate(plots):
        row, column = divmod(number, COLUMNS)
        _plot(figure.add_subplot(grid[first + row, column]), plot, board)
    return canvas


def _plot(axes: Axes, pane: Curves | Bars, board: Board) -> None:
    if isinstance(pane, Bars):
        xlabel, values = pane.xlabel, board.bars[pane.window]
        axes.bar(range(pane.first, pane.first + len(values)), values, width=1)
    else:
        xlabel, curves = "step", board.curves[pane.window]
        shown = {name: (curve.x, np.where(np.isfinite(curve.y), curve.y, np.nan)) for name, curve in curves.items()}
        if pane.stacked:
            longest = max((x for x, _ in shown.values()), key=len)
            whole = {name: np.nan_to_num(y) for name, (x, y) in shown.items() if x == longest}
            axes.stackplot(longest, *whole.values(), labels=list(whole), alpha=0.7)
        else:
            for name, (x, y) in shown.items():
                axes.plot(x, y, label=name, linewidth=1, marker="." if len(x) < 50 else None)
        if len(curves) > 1:
            axes.legend(fontsize=8, framealpha=0.6, edgecolor="none")
        if pane.from_zero:
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set_title(pane.title, fontsize=10)
    axes.set_xlabel(xlabel, fontsize=8)
    axes.set_ylabel(pane.ylabel, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.ticklabel_format(axis="y", useOffset=False)  # "1.2e-5 + 4.1" is hard to read
    axes.grid(alpha=0.3)


def _small(pane: Pictures, step: int | None, picture: np.ndarray) -> np.ndarray:
    """A picture uint8 [3,H,W] as [H',W',3], no larger than what can be seen."""
    image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    image.thumbnail((PIXELS, PIXELS), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(image)


def _height(content: str | np.ndarray) -> float:
    """Inches that a picture or a text takes at half the width of the page, within bounds."""
    if isinstance(content, str):
        inches = 0.5 + 0.16 * len(content.splitlines())
    else:
        inches = 0.4 + WIDTH / 2 * content.shape[0] / content.shape[1]
    return min(LARGEST, max(SMALLEST, inches))


def plain_table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table as text, its columns aligned."""
    lines = [[escaped(name) for name in columns], *([escaped(cell(value)) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in itertools.zip_longest(*lines, fillvalue="")]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


if __name__ == "__main__":
    os.nice(5)
    try:
        draw_summary(RunFolder(sys.argv[2], Path(sys.argv[1])))
    except UserError as problem:
        sys.exit(str(problem))
    except Exception as problem:  # one line for the run's log
        sys.exit(f"{type(problem).__name__}: {problem}")
