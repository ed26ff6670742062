"""The page of curves and pictures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hparams.errors import UserError
from utils.reporting import summary
from utils.reporting.dashboard import Dashboard
from utils.reporting.panes import table
from utils.reporting.summary import SummaryDrawer, draw_summary, plain_text


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    """The log of a run with a pane of each kind; its last line is cut."""
    path = tmp_path / "dashboard.jsonl"
    with Dashboard("run", path, port=9, warn=lambda _: None) as board:
        board.text("run", "step 20 <b>", title="run")
        for step in range(0, 30, 10):
            board.line("loss", step, {"train": 1 / (1 + step), "val": float("nan")}, title="loss", ylabel="nats")
            board.images("samples", np.full((3, 64, 64), step, np.uint8), title="samples", step=step)
        board.bars("codes", [3, 2, 1], title="codes", xlabel="code", ylabel="uses")
        board.table("results", ["FID"], [[4.07]], title="results")
        board.line("empty", 0, {}, title="empty", ylabel="")
    with path.open("a") as log:
        log.write('["update", {"win": "loss", "e')
    return path


def test_a_page_is_drawn_from_the_log_alone(log_file: Path, tmp_path: Path) -> None:
    draw_summary(log_file, tmp_path / "summary.png", title="run")
    with Image.open(tmp_path / "summary.png") as page:
        colours = np.asarray(page.convert("RGB")).reshape(-1, 3)
    assert page.size[0] == 1280
    assert (colours == [31, 119, 180]).all(axis=1).sum() > 2000  # the bars
    assert (colours == [20, 20, 20]).all(axis=1).sum() > 2000  # the newest picture, of step 20
    assert list(tmp_path.glob(".summary*")) == []


@pytest.mark.parametrize("matplotlibrc", ["", "text.usetex: True\naxes.formatter.use_mathtext: True\n"])
def test_names_are_drawn_as_they_are(tmp_path: Path, matplotlibrc: str) -> None:
    """Dollars make no mathematics, whatever the user's settings, and nothing is said of letters that no font has."""
    (tmp_path / "matplotlibrc").write_text(matplotlibrc)
    name = r"a$b$c_$x^{é漢😀%\'<b>"
    with Dashboard(name, tmp_path / "log", port=9, warn=lambda _: None) as board:
        board.text("run", f"logs/{name}", title=name)
        for step in range(2):
            board.line("loss", step, {name: 1.0, "other": 2.0}, title=name, ylabel=name)
        board.bars("codes", [3, 2, 1], title=name, xlabel=name, ylabel=name)
        board.table("results", [name], [[name]], title=name)
    done = subprocess.run(
        [sys.executable, "-m", "utils.reporting.summary", "log", "summary.png", name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "summary.png").exists()


def test_columns_of_a_table_stand_below_each_other() -> None:
    content = table(["FID", "<split>"], [[4.068123, "train"], [None, "val"]], "results")
    assert plain_text({**content, "win": "results"}).splitlines() == ["FID    <split>", "4.068  train", "       val"]


def test_an_empty_log_gives_an_empty_page(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    draw_summary(tmp_path / "log", tmp_path / "summary.png", title="run")
    assert (tmp_path / "summary.png").exists()


def test_user_errors_name_the_file(tmp_path: Path, log_file: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere"):
        draw_summary(tmp_path / "nowhere", tmp_path / "summary.png", title="run")
    (tmp_path / "summary.png").mkdir()
    with pytest.raises(UserError, match=r"summary\.png"):
        draw_summary(log_file, tmp_path / "summary.png", title="run")


def test_the_drawer_draws_the_newest_state_beside_the_run(log_file: Path, tmp_path: Path) -> None:
    told: list[str] = []
    drawer = SummaryDrawer(log_file, tmp_path / "summary.png", title="run", warn=told.append)
    drawer.close()  # nothing was asked for
    drawer.draw()
    log_file.write_text("")
    drawer.draw()  # most probably while the first page is being drawn: it comes at the end
    drawer.close()
    empty = (tmp_path / "summary.png").read_bytes()
    draw_summary(log_file, tmp_path / "summary.png", title="run")
    assert (tmp_path / "summary.png").read_bytes() == empty
    assert told == []


def test_the_drawer_is_our_own_wherever_it_is_run(
    log_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("here", "path"):
        (tmp_path / folder / "utils").mkdir(parents=True)
        for name in ("__init__.py", "summary.py"):
            (tmp_path / folder / "utils" / name).write_text("raise SystemExit('of another project')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.chdir(tmp_path / "here")
    told: list[str] = []
    drawer = SummaryDrawer(Path("..", log_file.name), Path("summary.png"), title="run", warn=told.append)
    drawer.draw()
    drawer.close()
    assert told == []
    assert Path("summary.png").exists()


def test_a_page_that_cannot_be_drawn_costs_one_line(
    log_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    drawer = SummaryDrawer(tmp_path / "nowhere", tmp_path / "summary.png", title="run", warn=told.append)
    drawer.draw()
    drawer.close()
    assert len(told) == 1
    assert f"summary.png was not drawn ({tmp_path / 'nowhere'}" in told[0]
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no_python"))
    drawer.draw()
    drawer.close()
    assert len(told) == 2

    told.clear()
    monkeypatch.undo()
    monkeypatch.setattr(summary, "SECONDS_AT_THE_END", 0.0)
    drawer = SummaryDrawer(log_file, tmp_path / "summary.png", title="run", warn=told.append)
    drawer.draw()
    drawer.draw()  # no time is left for a second page
    drawer.close()
    assert told == [f"{tmp_path / 'summary.png'} was not drawn (exit status -9); the run goes on"]


def test_drawing_needs_no_torch() -> None:
    code = "import sys, utils.reporting.summary; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
