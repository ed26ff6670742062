"""A run's panes as visdom's own messages."""

from __future__ import annotations

import base64
import html
import io
import math
from typing import Any

from PIL import Image, ImageOps

from utils.reporting.board import Board, Curve
from utils.reporting.layout import Bars, Curves, Pictures

LARGEST_PNG = 200_000  # bytes
CELL = (390, 275)  # pixels: three panes beside each other on a small screen, four or five on a large one
GAP = 10  # pixels that visdom puts between panes
SLIDER = 56  # pixels at the foot of a pane that its bar pushes out of sight, or its slider covers
LETTER = (6.7, 12.7)  # pixels of a letter of a text

# Markers, to see a lone point.
CURVE = {"type": "scatter", "mode": "lines+markers", "marker": {"size": 3}, "line": {"width": 1.5}}
AREA = {"type": "scatter", "mode": "lines", "line": {"width": 0.5}, "stackgroup": "all"}

Message = dict[str, Any]


def pane_messages(board: Board, window: str) -> list[Message]:
    """What makes a pane anew: a message that makes it, and those that add to it."""
    pane = board.panes[window]
    if isinstance(pane, Curves):
        looks, curves = AREA if pane.stacked else CURVE, board.curves[window] or {"": Curve()}
        data = [{"name": name, **points(curve, 0), **looks} for name, curve in curves.items()]
        return [_plot(data, pane, "step", "tozero" if pane.from_zero else "normal", showlegend=len(data) > 1)]
    if isinstance(pane, Bars):
        values = board.bars.get(window, [0.0])
        numbers = list(range(pane.first, pane.first + len(values)))
        data = [{"type": "bar", "x": numbers, "y": [shown(value) for value in values]}]
        return [_plot(data, pane, pane.xlabel, "normal", bargap=0)]
    if isinstance(pane, Pictures):
        pictures = [message for _, message in board.pictures.get(window, [])]
        return pictures or [text_message("none yet", pane.title, cells(2, 2))]
    return [text_message(board.words.get(window, ""), pane.title)]


def points(curve: Curve, first: int) -> Message:
    """A curve's points from number `first` on."""
    return {"x": curve.x[first:], "y": [shown(value) for value in curve.y[first:]], "type": "scatter"}


def text_message(text: str, title: str, size: Message | None = None) -> Message:
    """Content of a pane with plain text, of this size or of the cells that hold it; line breaks and spaces are kept."""
    lines = text.splitlines() or [""]
    columns = math.ceil((LETTER[0] * max(map(len, lines)) + 20) / CELL[0])
    rows = math.ceil((LETTER[1] * len(lines) + 30) / CELL[1])
    style = "border:0;background:none;font-size:11px;padding:4px 8px"
    data = [{"type": "text", "content": f'<pre style="{style}">{html.escape(text)}</pre>'}]
    return {"data": data, "opts": {"title": title, **(size or cells(columns, rows))}}


def picture_message(pane: Pictures, step: int | None, image: Image.Image) -> Message:
    """Content of a pane with a picture. With a step the pane has the size of cells, and others may follow in it."""
    if step is None:
        kind, caption = "image", None
        size = {"width": image.width, "height": image.height + 20}  # or the last rows are cut off
    else:
        kind, caption = "image_history", f"step {step}"
        size = cells(2, 1 if image.width > 4 * image.height else 2)
        foot = -(-image.height * SLIDER // (size["height"] - SLIDER))
        image = ImageOps.expand(image, (0, 0, 0, foot), "white")
    content = {"caption": caption, "step": step, "src": _encoded(image)}
    return {"data": [{"type": kind, "content": content}], "opts": {"title": pane.title, **size}}


def cells(columns: int, rows: int) -> dict[str, int]:
    """The size of a pane, as options: panes of whole cells stand in rows without holes."""
    return {"width": columns * (CELL[0] + GAP) - GAP, "height": rows * (CELL[1] + GAP) - GAP}


def shown(value: float) -> float | None:
    """A value as a browser's JSON can hold it: nan and ±inf are gaps; seven digits are more than can be seen."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _plot(data: list[Message], pane: Curves | Bars, xlabel: str, range_mode: str, **layout: Any) -> Message:
    for axis, label in (("xaxis", xlabel), ("yaxis", pane.ylabel)):
        layout[axis] = {"title": {"text": label, "font": {"size": 11}}, "automargin": True, "tickfont": {"size": 10}}
    layout["yaxis"]["rangemode"] = range_mode
    layout["margin"] = {"l": 60, "r": 20, "t": 48, "b": 45}  # the buttons stand above the legend
    layout["legend"] = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"}
    return {"data": data, "layout": layout, "opts": {"title": pane.title, **cells(1, 1)}}


def _encoded(image: Image.Image) -> str:
    """PNG, or where that is large JPEG, as the address of an image."""
    file, kind = io.BytesIO(), "png"
    image.save(file, format="PNG", compress_level=3)
    if file.tell() > LARGEST_PNG:
        file, kind = io.BytesIO(), "jpeg"
        image.save(file, format="JPEG", quality=80)
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()
