"""Bars on terminals, plain lines elsewhere."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from utils.machine import progress
from utils.machine.progress import Progress, say, tell, tell_duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands in for `time`; its `now` moves when told."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    return clock


def plain(said: list[str], total: int = 100, **more) -> Progress:
    return Progress("sampling", total, "image", say=said.append, stream=io.StringIO(), **more)


def test_bar_on_a_terminal_shows_rate_time_left_and_figures() -> None:
    terminal, said = Terminal(), []
    with Progress("sampling", 40, "image", done=10, say=said.append, stream=terminal) as bar:
        bar.update(10, loss=0.25, l1=1.5)
        bar.update(20)
    last = terminal.getvalue().split("\r")[-1]
    assert re.search(r"^sampling: 100%\|.*\| 40/40 \[\d+:\d+<\d+:\d+, .* image/s, loss 0\.25 +l1 1\.5\]", last), last
    assert said == []


def test_elsewhere_a_line_every_so_often(clock: Any) -> None:
    said: list[str] = []
    with plain(said) as lines:
        for _ in range(99):
            clock.now += 1
            lines.update()
        assert [line.split("  ")[1] for line in said] == [" 30/100 images", " 60/100 images", " 90/100 images"]
        assert said[0] == "sampling   30/100 images  1 images/s  1 min 10 s left"
        clock.now += 1
        lines.update()
    assert said[3] == "sampling  100/100 images  1 images/s  0 s left"
    assert len(said) == 4


def test_the_last_line_has_the_last_figures_which_stay_until_others_replace_them() -> None:
    said: list[str] = []
    with plain(said) as lines:
        lines.update(100, loss=2.0, bits=2.0)
        lines.update(0, loss=1.0)
    assert re.fullmatch(r"sampling  100/100 .* loss 1\s+bits 2", "".join(said))


def test_the_first_figures_come_at_once_and_the_rate_is_the_newest(clock: Any) -> None:
    said: list[str] = []
    lines = plain(said, 1000, done=500)
    for seconds, images, loss in ((2, 10, 0.5), (29, 29, 0.4), (1, 1, 0.3)):
        clock.now += seconds
        lines.update(images, loss=loss)
    assert said == [
        "sampling   510/1000 images  5 images/s  1 min 38 s left  loss 0.5",
        "sampling   540/1000 images  1 images/s  7 min 40 s left  loss 0.3",
    ]


def test_the_time_left_is_that_of_all_since_the_first_line(clock: Any) -> None:
    said: list[str] = []
    lines = plain(said, 1000)
    for seconds, images in ((50, 10), (100, 200), (100, 50), (100, 250)):  # it begins, goes on, saves, goes on
        clock.now += seconds
        lines.update(images)
    assert [line.split("images  ")[1] for line in said] == [
        *["0.2 images/s  1 h 22 min left", "2 images/s  6 min 35 s left"],
        *["0.5 images/s  9 min 52 s left", "2.5 images/s  4 min 54 s left"],
    ]


def test_quiet_shows_nothing_but_lines_that_are_said(clock: Any, capsys: pytest.CaptureFixture[str]) -> None:
    said, terminal = [], Terminal()
    for bar in (plain(said, quiet=True), Progress("x", 2, "y", quiet=True, say=said.append, stream=terminal)):
        clock.now += 100
        bar.update(2, loss=1.0)
        bar.close()
    assert (said, terminal.getvalue()) == ([], "")
    with Progress("sampling", 2, "image", stream=Terminal()) as bar:
        bar.update()
        say("above the bar")
    assert capsys.readouterr().out == "above the bar\n"


def test_tell() -> None:
    assert tell({"loss": 0.123456, "codes": 1234567.0, "l1": 3}) == "loss 0.1235     codes 1.235e+06  l1 3"
    told = [tell_duration(seconds) for seconds in (42.9, 200, 18_600, 792_000, 60)]
    assert told == ["42 s", "3 min 20 s", "5 h 10 min", "9 d 4 h", "1 min 0 s"]


def test_a_process_that_ends_at_once_leaves_nothing_to_complain_of() -> None:
    """Whatever way of starting processes is the default."""
    code = """if True:
        import multiprocessing, os
        multiprocessing.set_start_method('forkserver')
        from utils.machine.progress import Progress, say
        say('begun')
        Progress('sampling', 2, 'image').update()
        os._exit(0)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("begun\n")
