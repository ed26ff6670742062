"""A run's panes as visdom's own messages."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.reporting.board import Curve
from utils.reporting.layout import Bars, Curves, Pictures, cell, escaped

LARGEST_SIDE = 768  # pixels of a picture of a training run
LARGEST_ALONE = 1280  # pixels of one without a step: an experiment has few
LARGEST_PICTURE = 200_000  # bytes of a picture's file
CELL = (390, 275)  # pixels: three panes beside each other on a small screen, four or five on a large one
GAP = 10  # pixels that visdom puts between panes
SLIDER = 56  # pixels at the foot of a pane that its bar pushes out of sight, or its slider covers

# Markers, to see a lone point.
CURVE = {"type": "scatter", "mode": "lines+markers", "marker": {"size": 3}, "line": {"width": 1.5}}
AREA = {"type": "scatter", "mode": "lines", "line": {"width": 0.5}, "stackgroup": "all"}

Message = dict[str, Any]


def curves_message(pane: Curves, curves: Mapping[str, Curve]) -> Message:
    """Content of a pane of curves over the steps."""
    looks = AREA if pane.stacked else CURVE
    data = [{"name": name, **points(curve, 0), **looks} for name, curve in (curves or {"": Curve()}).items()]
    content = plot(data, pane.title, "step", pane.ylabel, showlegend=len(data) > 1)
    content["layout"]["yaxis"]["rangemode"] = "tozero" if pane.from_zero else "normal"
    return content


def points(curve: Curve, first: int) -> Message:
    """A curve's points from number `first` on."""
    return {"x": curve.x[first:], "y": [shown(value) for value in curve.y[first:]], "type": "scatter"}


def bars_message(pane: Bars, values: Sequence[float] | np.ndarray) -> Message:
    """Content of a pane with a bar per value."""
    numbers = list(range(pane.first, pane.first + len(values)))
    data = {"type": "bar", "x": numbers, "y": [shown(value) for value in values]}
    return plot([data], pane.title, pane.xlabel, pane.ylabel, bargap=0)


def text_message(text: str, title: str, columns: int = 1, rows: int = 1) -> Message:
    """Content of a pane, so many cells large, with plain text; line breaks and spaces are kept."""
    style = "border:0;background:none;font-size:11px;padding:4px 8px"
    data = [{"type": "text", "content": f'<pre style="{style}">{html.escape(escaped(text))}</pre>'}]
    return {"data": data, "opts": {"title": title, **cells(columns, rows)}}


def table_message(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str) -> Message:
    """Content of a pane with a table."""
    cells = [[cell(value) for value in row] for row in rows]
    style = "border-bottom:1px solid #ccc;padding:3px 14px 3px 0;font-size:12px;white-space:nowrap"
    lines = ["".join(f'<th style="{style};text-align:left">{html.escape(name)}</th>' for name in columns)]
    lines += ["".join(f'<td style="{style}">{html.escape(text)}</td>' for text in row) for row in cells]
    content = '<table style="margin:6px 8px;color:#222">' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    opts = {"title": title, "width": max(CELL[0], 40 + sum(7 * w + 16 for w in widths))}
    return {"data": [{"type": "text", "content": content}], "opts": {**opts, "height": 60 + 25 * len(lines)}}


def picture_message(pane: Pictures, step: int | None, picture: np.ndarray) -> Message:
    """Content of a pane with a picture, uint8 [3,H,W], scaled down where it is large.

    With a step the picture is labelled, the pane has the size of cells, and other pictures may follow in it. Stored as
    PNG, or where that would be large as JPEG.
    """
    image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    largest = LARGEST_ALONE if step is None else LARGEST_SIDE
    image.thumbnail((largest, largest), Image.Resampling.LANCZOS, reducing_gap=3.0)
    if step is None:
        opts = {"title": pane.title, "width": image.width, "height": image.height + 10}  # or the last rows are cut off
        return {"data": [{"type": "image", "content": {"caption": None, "src": _encoded(image)}}], "opts": opts}
    size = cells(2, 1 if image.width > 4 * image.height else 2)
    image = _labelled(image, f"step {step}", **size)
    content = {"caption": None, "step": step, "src": _encoded(image)}
    return {"data": [{"type": "image_history", "content": content}], "opts": {"title": pane.title, **size}}


def plot(data: list[Message], title: str, xlabel: str, ylabel: str, **layout: Any) -> Message:
    """Content of a pane with axes."""
    axis = {"automargin": True, "tickfont": {"size": 10}}
    layout |= {"xaxis": {"title": {"text": xlabel, "font": {"size": 11}}, **axis}}
    layout |= {"yaxis": {"title": {"text": ylabel, "font": {"size": 11}}, **axis}}
    layout |= {"margin": {"l": 60, "r": 20, "t": 48, "b": 45}}  # the buttons stand above the legend
    layout |= {"legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"}}
    return {"data": data, "layout": layout, "opts": {"title": title, **cells(1, 1)}}


def cells(columns: int, rows: int) -> Message:
    """The size of a pane, as options: panes of whole cells stand in rows without holes."""
    width, height = ((count * (side + GAP) - GAP) for count, side in zip((columns, rows), CELL, strict=True))
    return {"width": width, "height": height}


def shown(value: float) -> float | None:
    """A value as a browser's JSON can hold it: nan and ±inf are gaps; seven digits are more than can be seen."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _labelled(image: Image.Image, label: str, width: int, height: int) -> Image.Image:
    """A picture below a label, and where it would fill a pane of this size down to its foot, with room below."""
    wide, high = max(image.width, 100), image.height + 16
    if high * width > (height - 2 * SLIDER) * wide:  # else the pane centres it above the slider
        high = -(-high * height // (height - SLIDER))
    canvas = Image.new("RGB", (wide, high), "white")
    canvas.paste(image, (0, 16))
    ImageDraw.Draw(canvas).text((3, 2), label, fill="black", font=ImageFont.load_default(11))
    return canvas


def _encoded(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=3)
    kind, quality = "png", 90
    while file.tell() > LARGEST_PICTURE and quality > 10:
        file = io.BytesIO()
        image.save(file, format="JPEG", quality=quality)
        kind, quality = "jpeg", quality - 20
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()
