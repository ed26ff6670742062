"""An array on disk is whole or absent, and an interrupted filling goes on from what is safe."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from utils.machine.signals import Signals
from utils.runs import growing_array as module
from utils.runs.growing_array import GrowingArray, growing_array, made_array, read_array

N = 10


def fill(path: Path, stop: int = N, value: int = 1, shape: tuple[int, int] = (N, 3)) -> int:
    """Fill up to `stop`, interrupted there if that is not the end; where it began."""
    with growing_array(path, shape, np.int16) as rows:
        began = rows.done
        while rows.done < stop:
            rows.write(rows.done, np.full((1, shape[1]), value))
            rows.advance(1)
        if stop < N:
            raise KeyboardInterrupt
    return began


def test_it_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "made/on/the/way.npy"
    with growing_array(path, (N, 3), np.int16) as rows:
        rows.write(0, np.full((N, 3), 7))
        assert not path.exists()
    assert (np.load(path) == 7).all()
    assert sorted(file.name for file in path.parent.iterdir()) == ["way.json", "way.npy"]


@pytest.mark.parametrize("lacking", ["the call", "the file system's support"])
def test_room_is_taken_where_it_cannot_be_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    """So that a full disk is met before the work. macOS lacks the call."""

    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    if lacking == "the call":
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    growing = GrowingArray(tmp_path / "a.npy", (3, 500_000), np.int16)
    rows = np.full((3, 500_000), 7, np.int16)
    assert (tmp_path / "a.partial").stat().st_blocks * 512 >= rows.nbytes
    growing.write(0, rows)
    growing.finish(tmp_path / "a.npy")
    assert (np.load(tmp_path / "a.npy") == 7).all()
    GrowingArray(tmp_path / "empty.npy", (0, 3), np.int16)


def test_an_interrupted_filling_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for stop, value in ((4, 1), (6, 2)):
        with pytest.raises(KeyboardInterrupt):
            fill(path, stop, value)
        assert not path.exists()
    assert fill(path, value=3) == 6
    np.testing.assert_array_equal(np.load(path)[:, 0], [1] * 4 + [2] * 2 + [3] * 4)


def test_what_a_killed_process_noted_is_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It notes how far it is every few seconds, not only when an exception ends it."""
    monkeypatch.setattr(module, "SECONDS_PER_NOTE", 0)
    killed = GrowingArray(tmp_path / "a.npy", (N, 3), np.int16)
    killed.write(0, np.ones((5, 3)))
    killed.advance(5)
    monkeypatch.setattr(module, "SECONDS_PER_NOTE", 1e9)
    killed.write(5, np.ones((2, 3)))
    killed.advance(2)
    del killed
    assert fill(tmp_path / "a.npy") == 5


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_process_and_keeps_what_is_done(
    tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        with growing_array(tmp_path / "a.npy", (N, 3), np.int16) as rows:
            rows.write(0, np.ones((4, 3)))
            rows.advance(2)
            os.kill(os.getpid(), number)
            rows.advance(2)

    former = signal.getsignal(number)
    with pytest.raises(SystemExit) as end:
        work()
    assert end.value.code == 128 + number
    assert capsys.readouterr().out == f"stopped by {number.name}: the same command goes on from here\n"
    assert signal.getsignal(number) is former
    assert fill(tmp_path / "a.npy") == 4


def test_whoever_waits_for_signals_around_it_gets_them(tmp_path: Path) -> None:
    with Signals() as signals:
        with growing_array(tmp_path / "a.npy", (N, 3), np.int16) as rows:
            os.kill(os.getpid(), signal.SIGTERM)
            rows.write(0, np.ones((N, 3)))
            rows.advance(N)
        assert signals.stop is signal.SIGTERM
    assert (tmp_path / "a.npy").exists()


def test_another_shape_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "a.npy", 4)
    assert fill(tmp_path / "a.npy", shape=(N, 2)) == 0


def test_an_older_note_does_not_vouch_for_a_new_file(tmp_path: Path) -> None:
    """The process was killed after it had begun the new one, and before it noted anything."""
    path = tmp_path / "a.npy"
    with pytest.raises(KeyboardInterrupt):
        fill(path, 4)
    killed = GrowingArray(path, (N, 2), np.int16)
    del killed
    assert fill(path, shape=(N, 2)) == 0


def test_a_note_that_outlived_its_array_goes(tmp_path: Path) -> None:
    path, progress = tmp_path / "a.npy", tmp_path / "a.progress.json"
    with pytest.raises(KeyboardInterrupt):
        fill(path, 4)
    note = progress.read_bytes()
    fill(path)
    progress.write_bytes(note)  # as if the process had been killed before its last act
    assert read_array(path) is not None
    assert not progress.exists()


def test_what_several_need_is_made_once_and_again_when_it_is_damaged(tmp_path: Path) -> None:
    path, made = tmp_path / "a.npy", []

    def make(file: Path) -> None:
        made.append(fill(file))

    with ThreadPoolExecutor(3) as pool:
        arrays = list(pool.map(lambda _: made_array(path, make), range(3)))
    assert made == [0]
    assert all((array == 1).all() for array, _ in arrays)
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    said: list[str] = []
    assert (made_array(path, make, warn=said.append)[0] == 1).all()
    assert made == [0, 0]
    path.with_suffix(".json").write_text('{"sha')
    assert (made_array(path, make, warn=said.append)[0] == 1).all()
    assert said == [f"WARNING: {path} is damaged, or a.json beside it: it is computed anew"] * 2


def cut_off(folder: Path) -> None:
    os.truncate(folder / "a.partial", 50)


def of_another_shape(folder: Path) -> None:
    np.lib.format.open_memmap(folder / "a.partial", mode="w+", dtype=np.int16, shape=(3, 3))


def noted_wrongly(folder: Path) -> None:
    (folder / "a.progress.json").write_text('{"do')


@pytest.mark.parametrize(
    ("harm", "name"),
    [(cut_off, "a.partial"), (of_another_shape, "a.partial"), (noted_wrongly, "a.progress.json")],
)
def test_damage_to_what_is_half_done_is_said(
    tmp_path: Path, harm: Callable[[Path], None], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.npy"
    with pytest.raises(KeyboardInterrupt):
        fill(path, 4)
    harm(tmp_path)
    assert fill(path) == 0
    assert capsys.readouterr().out == f"WARNING: {tmp_path / name} is damaged: a is computed anew\n"


def test_a_process_that_was_killed_before_its_first_note_is_no_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    GrowingArray(tmp_path / "a.npy", (N, 3), np.int16).close()
    assert fill(tmp_path / "a.npy") == 0
    assert capsys.readouterr().out == ""
