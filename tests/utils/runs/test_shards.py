"""Rows in part files: none is computed twice, damage is noticed, and several processes share what is missing."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from hparams.errors import RunError, UserError
from jobs import a_job
from utils.machine.distributed import Ranks
from utils.runs import shards as module
from utils.runs.job import Job
from utils.runs.shards import Rows, Shards

LIKE = np.empty(2, np.int16)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Work:
    """Row i is [i, 10 i]; `done` are the rows that were computed."""

    def __init__(self, batch: int = 2, until: Callable[[int], None] = lambda row: None) -> None:
        self.batch, self.until = batch, until
        self.done: list[int] = []

    def __call__(self, indices: np.ndarray, report: Callable[..., None]) -> Iterator[torch.Tensor]:
        for first in range(0, len(indices), self.batch):
            rows = indices[first : first + self.batch]
            for row in rows.tolist():
                self.until(row)
                self.done.append(row)
                if row == 3:
                    report({"three.png": "cannot read three.png"}, 10)
            yield torch.from_numpy(np.stack([rows, 10 * rows], axis=1))


def fill(work: Work, n: int = 10, size: int = 4, folder: str = "work", job: Job | None = None, **more: Any) -> Rows:
    if job:
        return Shards(Path(folder), **more).fill(job, n, LIKE, work, what="work", size=size)
    with a_job() as alone:
        return fill(work, n, size, folder, alone, **more)


def expected(n: int) -> list[list[int]]:
    return [[i, 10 * i] for i in range(n)]


def parts() -> list[str]:
    return sorted(re.sub("-[0-9a-f]{16}", "", file.name) for file in Path("work").iterdir())


def test_rows_are_computed_once_and_read_in_any_way() -> None:
    rows = fill(Work())
    assert rows[:].tolist() == expected(10)
    assert (rows.dtype, rows.shape) == (np.int16, (10, 2))
    assert rows[3].tolist() == rows[-7].tolist() == [3, 30]
    assert rows[2:9].tolist() == expected(10)[2:9]
    assert rows[np.array([9, 0, 4])].tolist() == [[9, 90], [0, 0], [4, 40]]
    assert [row.tolist() for row in rows] == np.asarray(rows).tolist()
    assert rows[5:5].shape == (0, 2)
    assert rows.unreadable == {"three.png": "cannot read three.png"}
    again = Work()
    assert fill(again)[:].tolist() == expected(10)
    assert again.done == []
    firsts = ("00000000-00000004", "00000004-00000008", "00000008-00000010")
    assert parts() == [f"{firsts[0]}.json", *(f"{first}.npy" for first in firsts)]


def test_more_rows_extend_those_that_are_there_whatever_the_size_of_parts() -> None:
    fill(Work(), 5)
    more = Work(batch=3)
    assert fill(more, 12, size=3)[:].tolist() == expected(12)
    assert more.done == list(range(5, 12))
    fewer = Work()
    assert fill(fewer, 7)[:].tolist() == expected(7)
    assert fewer.done == []


@pytest.mark.parametrize("stop", [Mock(side_effect=KeyboardInterrupt), partial(signal.raise_signal, signal.SIGTERM)])
def test_an_interrupted_work_goes_on(stop: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((KeyboardInterrupt, SystemExit)) as end:
        fill(Work(until=lambda row: row == 6 and stop()))
    if end.type is SystemExit:
        assert end.value.code == 143
        assert capsys.readouterr().out == "stopped by SIGTERM: the same command goes on from here\n"
    assert [name for name in parts() if name.endswith("npy")] == ["00000000-00000004.npy"]
    rest = Work()
    rows = fill(rest)
    assert rows[:].tolist() == expected(10)
    assert rest.done == list(range(4, 10))
    assert rows.unreadable  # as noted by the first call


@pytest.mark.parametrize("end", [b"", b"\x55", None])
def test_a_damaged_part_is_said_and_computed_anew(end: bytes | None, capsys: pytest.CaptureFixture[str]) -> None:
    fill(Work())
    (file,) = Path("work").glob("00000004*")
    file.write_bytes(b"" if end is None else file.read_bytes()[:-1] + end)
    assert Shards(Path("work")).read(10) is None
    work = Work()
    assert fill(work)[:].tolist() == expected(10)
    assert work.done == [4, 5, 6, 7]
    assert capsys.readouterr().out == f"WARNING: {file} is damaged: it is computed anew\n"


def test_a_folder_that_cannot_be_written_is_read_and_another_used(monkeypatch, capsys) -> None:
    fill(Work(), 4, folder="shared/key")
    monkeypatch.setattr(module, "can_be_written", lambda folder: folder != Path("shared/key"))
    work = Work()
    assert fill(work, folder="shared/key", otherwise=Path("own/key"))[:].tolist() == expected(10)
    assert work.done == list(range(4, 10))
    assert capsys.readouterr().out == "shared cannot be written: own is used in its place\n"
    assert len(list(Path("own/key").glob("*.npy"))) == 2


def test_work_without_room_is_refused_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_space", lambda folder: 39)
    work = Work()
    with pytest.raises(UserError, match="40 B more is needed, 39 B is free"):
        fill(work)
    assert work.done == []


@dataclass(frozen=True)
class Two(Ranks):
    """Two processes as two threads."""

    meeting: threading.Barrier = None
    board: list = None

    def wait(self) -> None:
        self.meeting.wait()

    def from_first(self, make: Callable[[], Any]) -> Any:
        if self.first:
            self.board[:] = [make()]
        self.wait()
        return self.board[0]


def together(*work: Work, ranks: Callable[[int], Ranks] = lambda rank: Ranks(), patience_s: float = 20.0) -> list[Any]:
    """What each process, or machine, gets, or its error."""

    def run(job: Job, own: Work) -> Any:
        try:
            return fill(own, job=job)
        except BaseException as error:
            return error

    with a_job() as first, a_job() as second, ThreadPoolExecutor(2) as pool:
        for rank, job in enumerate((first, second)):
            job.ranks, job.patience_s = ranks(rank), patience_s
        return list(pool.map(run, (first, second), work))


@pytest.fixture
def two() -> Callable[[int], Two]:
    return partial(Two, count=2, meeting=threading.Barrier(2), board=[])


def test_processes_share_the_parts_and_each_reads_all(two: Callable[[int], Two]) -> None:
    work = [Work(), Work()]
    for rows in together(*work, ranks=two):
        assert rows[:].tolist() == expected(10)
        assert rows.unreadable
    assert [each.done for each in work] == [[0, 1, 2, 3, 8, 9], [4, 5, 6, 7]]


def test_a_process_that_others_wait_for_in_vain_is_said(two: Callable[[int], Two]) -> None:
    first, second = together(Work(), Work(until=Mock(side_effect=KeyboardInterrupt)), ranks=two, patience_s=0.5)
    assert isinstance(second, KeyboardInterrupt)
    assert isinstance(first, RunError)
    assert str(first).startswith("rows in work: 4 are missing, and none has come within --dist_timeout 0")


def test_two_machines_whose_locks_do_nothing_make_one_set() -> None:
    """Each knows only its own processes; nothing that one writes harms the other, and neither waits."""
    meeting = threading.Barrier(2)

    def both_at_it(row: int) -> None:
        if row in (0, 8):
            meeting.wait(20)

    found = together(Work(until=both_at_it), Work(until=both_at_it))
    assert [rows[:].tolist() for rows in found] == [expected(10)] * 2
    assert len([name for name in parts() if name.endswith("npy")]) == 3
