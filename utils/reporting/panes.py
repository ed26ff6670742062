"""What a dashboard shows, as visdom's own messages: made, changed by events, read back from a log, and kept small."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LARGEST_SIDE = 768  # pixels of a picture, unless told otherwise
LARGEST_PICTURE = 200_000  # bytes of a picture's file
MOST_PICTURES = 16  # of a pane; with more, every second of the older ones goes
RESOLUTION = 1000  # points of a curve that lie closer than this fraction of its length are left out
CELL = (390, 275)  # pixels: three panes beside each other on a small screen, four or five on a large one
GAP = 10  # pixels that visdom puts between panes
SLIDER = 56  # pixels at the foot of a pane that its bar pushes out of sight, or its slider covers

# Markers, to see a lone point.
CURVE = {"type": "scatter", "mode": "lines+markers", "marker": {"size": 3}, "line": {"width": 1.5}}
AREA = {"type": "scatter", "mode": "lines", "line": {"width": 0.5}, "stackgroup": "all"}

Message = dict[str, Any]


class Event(NamedTuple):
    """One request to visdom: "events" replaces the pane `message["win"]`, "update" appends to what it shows."""

    endpoint: str
    message: Message


def apply_event(panes: dict[str, Message], event: Event) -> bool:
    """Do to `panes` (window → newest whole message) what visdom's server would do to its own.

    Returns whether more was done: old pictures of the pane were left out.
    """
    window, data = event.message["win"], event.message["data"]
    if event.endpoint == "events":
        panes[window] = event.message
    elif window in panes and data[0]["type"] == "image_history":
        pane = panes[window]
        pane["opts"] = {**pane["opts"], **event.message.get("opts", {})}
        pane["data"] = pane["data"] + data
        if len(pane["data"]) > MOST_PICTURES:
            pane["data"] = pane["data"][:-1:2] + pane["data"][-1:]
            return True
    elif window in panes:
        for curve, more in zip(panes[window]["data"], data, strict=True):
            curve["x"] += more["x"]
            curve["y"] += more["y"]
    return False


def read_panes(log_file: Path, last_step: int | None = None) -> dict[str, Message]:
    """Panes that a log leaves behind, window → whole message; curves and pictures end at `last_step`, if one is given.

    A line that is no event (the last one of a run that was killed while writing) is passed over.

    Raises:
        OSError: the file cannot be read.
    """
    panes: dict[str, Message] = {}
    with log_file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                event = Event(*json.loads(line))
                if _is_sound(event.message):
                    apply_event(panes, event)
            except (ValueError, TypeError, KeyError, IndexError, RecursionError):
                continue
    if last_step is None:
        return panes
    for window, message in list(panes.items()):
        if message["data"][0]["type"] == "image_history":
            kept = [picture for picture in message["data"] if picture["content"].get("step", 0) <= last_step]
            message["data"] = kept
            if not kept:
                del panes[window]
            continue
        for curve in (entry for entry in message["data"] if entry["type"] == "scatter"):
            points = [(x, y) for x, y in zip(curve["x"], curve["y"], strict=True) if x <= last_step]
            curve["x"], curve["y"] = [x for x, _ in points], [y for _, y in points]
    return panes


def _is_sound(message: Message) -> bool:
    """Whether a recorded message has the shape of those that are written: entries, curves of numbers, pictures."""
    data = message["data"]
    curves = [entry for entry in data if entry["type"] == "scatter"]
    pictures = [entry for entry in data if entry["type"] in {"image", "image_history"}]
    return (
        isinstance(data, list)
        and bool(data)
        and all(isinstance(picture["content"]["src"], str) for picture in pictures)
        and all(
            len(curve["x"]) == len(curve["y"]) and all(isinstance(x, int | float) for x in curve["x"])
            for curve in curves
        )
    )


def events_of(message: Message) -> list[Event]:
    """The events that make a pane anew, however much it holds."""
    copy = copy_of(message)
    if copy["data"][0]["type"] != "image_history":
        return [Event("events", copy)]
    first, *more = copy["data"]
    later = [Event("update", {"win": copy["win"], "eid": copy["eid"], "data": [picture]}) for picture in more]
    return [Event("events", {**copy, "data": [first]}), *later]


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


def curves(
    names: Sequence[str], title: str, xlabel: str, ylabel: str, *, stacked: bool = False, from_zero: bool = False
) -> Message:
    """Content of a pane whose curves have no points yet."""
    data = [{"name": name, "x": [], "y": [], **(AREA if stacked else CURVE)} for name in names]
    content = plot(data, title, xlabel, ylabel, showlegend=len(names) > 1)
    content["layout"]["yaxis"]["rangemode"] = "tozero" if from_zero else "normal"
    return content


def bars(values: Sequence[float] | np.ndarray, title: str, xlabel: str, ylabel: str, first: int = 0) -> Message:
    """Content of a pane with a bar per value, numbered from `first`."""
    numbers = list(range(first, first + len(values)))
    data = {"type": "bar", "x": numbers, "y": [shown(value) for value in values]}
    return plot([data], title, xlabel, ylabel, bargap=0)


def text(content: str, title: str, columns: int = 1, rows: int = 1) -> Message:
    """Content of a pane, so many cells large, with plain text; line breaks and spaces are kept."""
    style = "border:0;background:none;font-size:11px;padding:4px 8px"
    data = [{"type": "text", "content": f'<pre style="{style}">{html.escape(_escaped(content))}</pre>'}]
    return {"data": data, "opts": {"title": title, **cells(columns, rows)}}


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str) -> Message:
    """Content of a pane with a table; numbers are rounded to four digits, and None is left blank."""
    cells = [[_cell(value) for value in row] for row in rows]
    style = "border-bottom:1px solid #ccc;padding:3px 14px 3px 0;font-size:12px;white-space:nowrap"
    lines = ["".join(f'<th style="{style};text-align:left">{html.escape(name)}</th>' for name in columns)]
    lines += ["".join(f'<td style="{style}">{html.escape(cell)}</td>' for cell in row) for row in cells]
    content = '<table style="margin:6px 8px;color:#222">' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    opts = {"title": title, "width": max(CELL[0], 40 + sum(7 * w + 16 for w in widths))}
    return {"data": [{"type": "text", "content": content}], "opts": {**opts, "height": 60 + 25 * len(lines)}}


def picture(grid: np.ndarray, title: str, *, step: int | None = None, largest: int = LARGEST_SIDE) -> Message:
    """Content of a pane with a picture, uint8 [3,H,W], scaled down to sides of at most `largest` pixels.

    With a step the picture is labelled, the pane has the size of cells, and other pictures may follow in it. Stored as
    PNG, or where that would be large as JPEG.

    Raises:
        ValueError: another shape or dtype.
    """
    if grid.dtype != np.uint8 or grid.ndim != 3 or grid.shape[0] != 3:
        raise ValueError(f"grid must be uint8 [3,H,W], got {grid.dtype} {list(grid.shape)}")
    image = Image.fromarray(np.ascontiguousarray(grid.transpose(1, 2, 0)))
    image.thumbnail((largest, largest), Image.Resampling.LANCZOS, reducing_gap=3.0)
    content: Message = {"caption": None}
    if step is not None:
        opts = {"title": title, **cells(2, 1 if image.width > 4 * image.height else 2)}
        image, content["step"] = _above_slider(_labelled(image, f"step {step}"), opts["width"], opts["height"]), step
    content["src"] = _encoded(image)
    if step is None:
        opts = {"title": title, "width": image.width, "height": image.height + 10}  # else the last rows are cut off
        return {"data": [{"type": "image", "content": content}], "opts": opts}
    return {"data": [{"type": "image_history", "content": content}], "opts": opts}


def far_enough(steps: Sequence[int], step: int) -> bool:
    """Whether a point can be told apart from the last one of a curve through `steps`."""
    return not steps or step - steps[-1] > (steps[-1] - steps[0]) / RESOLUTION


def shown(value: float) -> float | None:
    """A value as a browser's JSON can hold it: nan and ±inf are gaps; seven digits are more than can be seen."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def copy_of(message: Message) -> Message:
    """A message whose curves can grow without changing the other's."""
    return {**message, "data": [copy_of_curve(entry) for entry in message["data"]]}


def copy_of_curve(curve: Mapping[str, Any]) -> Message:
    """A curve that can grow without changing the other."""
    return {key: list(value) if isinstance(value, list) else value for key, value in curve.items()}


def _labelled(image: Image.Image, label: str) -> Image.Image:
    canvas = Image.new("RGB", (max(image.width, 100), image.height + 16), "white")
    canvas.paste(image, (0, 16))
    ImageDraw.Draw(canvas).text((3, 2), label, fill="black", font=ImageFont.load_default(11))
    return canvas


def _above_slider(image: Image.Image, width: int, height: int) -> Image.Image:
    """A picture that fills a pane down to its foot, with room below; others are as they were."""
    if image.height * width <= (height - 2 * SLIDER) * image.width:  # the pane centres it
        return image
    canvas = Image.new("RGB", (image.width, -(-image.height * height // (height - SLIDER))), "white")
    canvas.paste(image)
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


def _cell(value: object) -> str:
    """A value on one line."""
    if value is None:
        return ""
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in shown)


def _escaped(text: str) -> str:
    """A text that fonts and visdom's server take: names of files may be any bytes."""
    return text.encode(errors="backslashreplace").decode()
