"""One page with a run's curves and newest pictures, for those who have no browser at hand.

`python -m utils.reporting.summary ROOT RUN` draws it in a process of its own, so that training neither waits for it nor
suffers from its failure. Imports no torch.
"""

from __future__ import annotations

import os
import sys
import warnings
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from hparams.errors import UserError
from utils.machine.files import whole_file
from utils.reporting.board import Board, read_settings, replay
from utils.reporting.layout import Bars, Curves
from utils.runs.run_folder import RunFolder

WIDTH = 16.0  # inches
LARGEST, SMALLEST = 6.5, 1.2  # heights of a row of pictures and text, in inches
LETTERS = 100  # of 9 points in a line of half the page
DPI = 80
NOTHING = ""  # stands for an empty place of the page


def draw_summary(folder: RunFolder) -> None:
    """Draw what a run folder holds onto one page, its `summary.png`.

    Raises:
        UserError: the folder cannot be read, or the page cannot be written.
    """
    board = Board(read_settings(folder.hparams), lambda pane, step, image: image)
    # Names of runs and files are text, not TeX: whatever dollars they hold, and whatever the user's matplotlibrc says.
    plain = rc_context({"text.parse_math": False, "text.usetex": False, "axes.formatter.use_mathtext": False})
    try:
        replay(folder, board, most_pictures=1)
        with plain, warnings.catch_warnings(), whole_file(folder.summary) as file:
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # a letter that no font has is drawn as a box
            _page(board, folder.name).savefig(file, format="png")
    except OSError as error:
        place = error.filename2 or error.filename or folder.path  # filename2: where a file was to be renamed to
        raise UserError(f"{place}: {error.strerror}") from error


def _page(board: Board, title: str) -> Figure:
    halves: dict[str, str | Image.Image] = {}
    plots: list[str] = []
    for window in board.panes:
        if board.curves.get(window) or window in board.bars:
            plots.append(window)
        elif window in board.pictures:
            halves[window] = board.pictures[window][-1][1]
        elif window in board.words:
            halves[window] = board.words[window]
    rows: list[Any] = []  # of matplotlib's mosaic: names of what stands beside each other
    heights: list[float] = []
    for left, right in zip_longest(list(halves)[::2], list(halves)[1::2], fillvalue=NOTHING):
        rows.append([left, left, right, right])
        heights.append(max(_height(halves.get(window, "")) for window in (left, right)))
    for row in range(0, len(plots), 4):
        rows.append((plots[row : row + 4] + [NOTHING] * 3)[:4])
        heights.append(2.4)
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.6), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=13)
    places = figure.subplot_mosaic(rows, height_ratios=heights, empty_sentinel=NOTHING) if rows else {}
    for window, axes in places.items():
        pane = board.panes[window]
        axes.set_title(pane.title, fontsize=10)
        if isinstance(pane, Curves | Bars):
            _plot(axes, pane, board)
            continue
        axes.axis("off")
        content = halves[window]
        if isinstance(content, str):
            size = 9 * min(1, LETTERS / max(map(len, [" ", *content.splitlines()])))
            axes.text(0.02, 1, content, va="top", transform=axes.transAxes, family="monospace", fontsize=size)
        else:
            axes.imshow(content, aspect="equal")
    return figure


def _plot(axes: Axes, pane: Curves | Bars, board: Board) -> None:
    if isinstance(pane, Bars):
        values = board.bars[pane.window]
        axes.bar(range(pane.first, pane.first + len(values)), values, width=1)
    else:
        curves = board.curves[pane.window]
        if pane.stacked:
            longest = max((curve.x for curve in curves.values()), key=len)
            whole = {name: np.nan_to_num(curve.y) for name, curve in curves.items() if curve.x == longest}
            axes.stackplot(longest, *whole.values(), labels=list(whole), alpha=0.7)
        else:
            for name, curve in curves.items():
                axes.plot(curve.x, curve.y, label=name, linewidth=1, marker="." if len(curve.x) < 50 else None)
        if len(curves) > 1:
            axes.legend(fontsize=8, framealpha=0.6, edgecolor="none")
        if pane.from_zero:
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set_xlabel(pane.xlabel if isinstance(pane, Bars) else "step", fontsize=8)
    axes.set_ylabel(pane.ylabel, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.ticklabel_format(axis="y", useOffset=False)  # "1.2e-5 + 4.1" is hard to read
    axes.grid(alpha=0.3)


def _height(content: str | Image.Image) -> float:
    """Inches that a picture or a text takes at half the width of the page, within bounds."""
    if isinstance(content, str):
        inches = 0.5 + 0.16 * len(content.splitlines())
    else:
        inches = 0.4 + WIDTH / 2 * content.height / content.width
    return min(LARGEST, max(SMALLEST, inches))


if __name__ == "__main__":
    os.nice(5)
    try:
        draw_summary(RunFolder(sys.argv[2], Path(sys.argv[1])))
    except UserError as problem:
        sys.exit(str(problem))
