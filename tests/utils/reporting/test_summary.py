"""The page of curves and pictures."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from utils.reporting.sinks import InBackground, Summary
from utils.reporting.summary import draw_summary
from utils.runs.record import Record
from utils.runs.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run with a pane of each kind; the last line of its metrics is cut."""
    folder = RunFolder("run", tmp_path)
    record = Record(folder, resume_step=None)
    for step in range(0, 30, 10):
        record.scalars(step, "train", {"loss": 1 / (1 + step), "data_ms": 1.0, "step_ms": 2.0, "other_ms": 3.0})
        record.scalars(step, "val", {"loss": float("nan")})
    record.picture(None, "samples", np.full((3, 64, 64), 20, np.uint8))
    record.histogram(20, "codes", [3, 2, float("nan"), 1])
    record.table("more", ["FID"], [[4.07]])
    record.text("run", "step 20 <b>")
    record.close()
    with folder.metrics.open("a") as file:
        file.write('{"step": 30, "split": "tr')
    return folder


def test_a_page_is_drawn_from_the_folder_alone(folder: RunFolder) -> None:
    draw_summary(folder)
    with Image.open(folder.summary) as page:
        colours = np.asarray(page.convert("RGB")).reshape(-1, 3)
    assert page.size[0] == 1280
    assert (colours == [31, 119, 180]).all(axis=1).sum() > 2000  # the bars
    assert (colours == [20, 20, 20]).all(axis=1).sum() > 2000  # the picture
    assert list(folder.path.glob(".summary*")) == []
    draw_summary(empty := RunFolder("empty", folder.root))
    assert empty.summary.exists()


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    """Dollars make no mathematics, whatever the user's settings, and nothing is said of letters that no font has."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\naxes.formatter.use_mathtext: True\n")
    name = r"a$b$c_$x^{é漢😀%\'<b>"
    record = Record(folder := RunFolder(name, tmp_path), resume_step=None)
    record.text(name, f"logs/{name}")
    for step in range(2):
        record.scalars(step, name, {f"{name} curve": 1.0})
        record.scalars(step, "other", {f"{name} curve": 2.0})
    record.histogram(1, f"{name} bars", [3, 2, 1])
    record.table(f"{name} table", [name], [[name], ["caf\udce9"]])
    record.close()
    command = [sys.executable, "-m", "utils.reporting.summary", tmp_path, name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert folder.summary.exists()


def test_the_newest_state_is_drawn_beside_the_run_by_our_own_code_wherever_it_is_run(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here/utils").mkdir(parents=True)
    (tmp_path / "here/utils/__init__.py").write_text("raise SystemExit('of another project')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "here"))
    monkeypatch.chdir(tmp_path / "here")
    told: list[str] = []
    sink = InBackground("summary", partial(Summary, RunFolder("run", Path("..")), told.append), told.append)
    sink.draw()
    folder.metrics.write_text("")
    sink.draw()  # most probably while the first page is being drawn: it comes at the end
    sink.close()
    assert told == []
    empty = folder.summary.read_bytes()
    draw_summary(folder)
    assert folder.summary.read_bytes() == empty


def test_one_page_is_drawn_for_all_who_ask_meanwhile(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(subprocess, "run", lambda *words, **_: drawn.append(words))
    sink = Summary(folder, print)
    sink.idle()
    assert not drawn
    for _ in range(3):
        sink.draw()
    sink.idle()
    sink.close()
    assert len(drawn) == 1


def test_a_page_that_cannot_be_drawn_costs_one_line(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    folder.results.write_text("[3]")
    for python in (sys.executable, str(folder.path / "no_python")):
        monkeypatch.setattr(sys, "executable", python)
        sink = Summary(folder, told.append)
        sink.draw()
        sink.close()
    assert len(told) == 2
    assert f"summary.png was not drawn ({folder.results} is damaged" in told[0]
    assert f"{folder.summary} was not drawn ([Errno 2] No such file or directory" in told[1]


def test_drawing_needs_no_torch() -> None:
    code = "import sys, utils.reporting.summary, utils.reporting.visdom; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
