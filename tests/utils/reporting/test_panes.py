"""Messages of panes: what they hold, and how large what is kept of them can become."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hparams.resolve import resolve
from hparams.settings.stages import PriorStage, VQGANStage
from utils.reporting import dashboard, panes
from utils.reporting.panes import (
    SLIDER,
    Event,
    apply_event,
    bars,
    cells,
    curves,
    events_of,
    far_enough,
    picture,
    read_panes,
    table,
    text,
)
from utils.reporting.summary import plain_text
from utils.reporting.training_panes import Bars, Curves, Pictures, Status, panes_of

NOISE = np.random.default_rng(0).integers(0, 256, (3, 1024, 1024), dtype=np.uint8)  # as large as pictures get


def shown(window: str, content: dict[str, Any]) -> Event:
    return Event("events", {"win": window, "eid": "run", **content})


def with_pictures(*steps: int) -> dict[str, dict[str, Any]]:
    """A pane of small pictures of these steps."""
    kept: dict[str, dict[str, Any]] = {}
    for step in steps:
        content = picture(np.zeros((3, 4, 4), np.uint8), "samples", step=step)
        event = shown("samples", content)
        apply_event(kept, event if not kept else Event("update", event.message))
    return kept


def steps_of(kept: dict[str, dict[str, Any]]) -> list[int]:
    return [entry["content"]["step"] for entry in kept["samples"]["data"]]


def test_older_pictures_are_thinned_and_the_newest_stay() -> None:
    steps = range(5000, 5000 * 441, 5000)
    kept = steps_of(with_pictures(*steps))
    assert len(kept) <= panes.MOST_PICTURES
    assert kept[0] == 5000
    assert kept[-2:] == list(steps)[-2:]
    gaps = np.diff(kept)
    assert gaps[0] == gaps.max()
    assert set(steps_of(with_pictures(*range(16)))) == set(range(16))


def test_pictures_after_the_step_of_a_resumed_run_are_dropped(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(json.dumps(event) + "\n" for event in events_of(with_pictures(10, 20, 30)["samples"])))
    assert steps_of(read_panes(log)) == [10, 20, 30]
    assert steps_of(read_panes(log, 20)) == [10, 20]
    assert read_panes(log, 9) == {}


def test_lines_that_are_no_events_are_passed_over(tmp_path: Path) -> None:
    log = tmp_path / "log"
    good = json.dumps(shown("a", text("kept", "a")))
    bad = [
        "",
        "7",
        "[]",
        "{}",
        '["events", {}]',
        '["update", {"win": "a", "data": []}]',
        '["events"',
        "\x00\xff",
        good[:50],
    ]
    log.write_bytes("\n".join([good, *bad]).encode("latin-1"))
    assert list(read_panes(log)) == ["a"]


@pytest.mark.parametrize("grid", [NOISE, NOISE[:, :64], np.zeros_like(NOISE)])
def test_a_picture_is_never_large(grid: np.ndarray) -> None:
    source = picture(grid, "noise", step=5)["data"][0]["content"]["src"]
    assert len(source) < 4 / 3 * panes.LARGEST_PICTURE + 50
    assert source.startswith("data:image/png" if not grid.any() else "data:image/")


@pytest.mark.parametrize(("shape", "rows"), [((300, 300), 2), ((300, 420), 2), ((100, 300), 2), ((60, 300), 1)])
def test_a_picture_ends_above_the_slider(shape: tuple[int, int], rows: int) -> None:
    """The pane scales a picture to its own size, less its bar, and centres it; the slider lies over its foot."""
    message = picture(np.zeros((3, *shape), np.uint8), "samples", step=1)
    encoded = message["data"][0]["content"]["src"].split(",")[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("L"))
    width, height = message["opts"]["width"], message["opts"]["height"]
    assert height == cells(2, rows)["height"]
    scale = min(width / pixels.shape[1], height / pixels.shape[0])
    foot = (height - scale * pixels.shape[0]) / 2 + scale * (np.flatnonzero((pixels == 0).any(1)).max() + 1)
    assert foot <= height - SLIDER + 1


def test_tables_round_and_leave_blank() -> None:
    content = table(["FID", "<split>"], [[4.068123, "train"], [None, 3]], "results")["data"][0]["content"]
    assert ">4.068<" in content
    assert "&lt;split&gt;" in content
    assert content.count("<td") == 4
    with pytest.raises(ValueError):
        table(["FID", "split"], [[4.0]], "results")


def test_names_that_are_no_utf8_are_escaped() -> None:
    """Fonts and visdom's server take no others."""
    for content in (text("caf\udce9", "run"), table(["images"], [["caf\udce9"]], "results")):
        assert "caf\\udce9" in content["data"][0]["content"]


def test_a_cell_of_a_table_is_one_line() -> None:
    content = {**table(["images", "n"], [["two\nlines\tand more", 3]], "results"), "win": "results"}
    assert plain_text(content).splitlines() == ["images                n", r"two\nlines\tand more  3"]


def test_panes_of_cells_stand_in_rows() -> None:
    width, height = panes.CELL
    assert panes.cells(2, 1) == {"width": 2 * width + panes.GAP, "height": height}
    sizes = [content["opts"] for content in (curves(["a"], "a", "x", "y"), bars([1.0], "b", "x", "y"), text("t", "t"))]
    assert {(size["width"], size["height"]) for size in sizes} == {panes.CELL}


@pytest.mark.parametrize("stage", [VQGANStage, PriorStage])
def test_what_is_kept_of_a_ten_day_run_stays_small(stage: type, tmp_path: Path) -> None:
    """The published lengths and cadences, on a GPU, with pictures that compress as badly as any.

    The log holds all panes as they are when it was last rewritten, and what came since; while it is rewritten, the new
    one lies beside it.
    """
    typed = {"dataset": "churches", "steps_per_eval": 5000}
    settings = resolve(stage, typed | ({"ae_load_dir": "vqgan"} if stage is PriorStage else {}), logs=tmp_path)
    training, whole = settings.training, 0
    for pane in panes_of(settings, cuda=True):
        if isinstance(pane, Curves):
            content = curves(pane.names(validates=True), pane.title, "step", pane.ylabel)
            for curve in content["data"]:
                x = _thinned(training.train_steps, training.steps_per_eval if curve["name"] == "val" else 10)
                curve["x"], curve["y"] = x, [panes.shown(-1.234567e-5 * (1 + step)) for step in x]
            events = [shown(pane.window, content)]
        elif isinstance(pane, Bars):
            events = [shown(pane.window, bars(np.random.default_rng(0).random(1024), pane.title, "x", "y"))]
        elif isinstance(pane, Pictures):
            one = shown(pane.window, picture(NOISE, pane.title, step=training.train_steps))
            events = [one] * panes.MOST_PICTURES
        else:
            assert isinstance(pane, Status)
            events = [shown(pane.window, text("x" * 2000, pane.title))]
        whole += sum(len(json.dumps(event)) + 1 for event in events)
    newest = len(json.dumps(shown("samples", picture(NOISE, "samples", step=1))))
    assert whole > 5e6  # or the sum has lost something
    assert 2 * whole + dashboard.SLACK_BYTES + newest < 50e6


def _thinned(steps: int, every: int) -> list[int]:
    kept: list[int] = []
    for step in range(every, steps + 1, every):
        if far_enough(kept, step):
            kept.append(step)
    return kept


def test_looks_of_curves_and_numbers_of_bars() -> None:
    usual, special = (panes.curves(["a", "b"], "t", "x", "y", stacked=on, from_zero=on) for on in (False, True))
    assert [{"stackgroup" in curve for curve in content["data"]} for content in (usual, special)] == [{False}, {True}]
    assert [content["layout"]["yaxis"]["rangemode"] for content in (usual, special)] == ["normal", "tozero"]
    assert panes.bars([5.0, float("inf"), -float("inf")], "t", "x", "y", first=3)["data"] == [
        {"type": "bar", "x": [3, 4, 5], "y": [5.0, None, None]}
    ]
