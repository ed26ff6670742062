"""Rows in part files: none is computed twice, damage is noticed, and several processes share what is missing."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
        self.batch = batch
        self.until = until
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
    assert rows.dtype == np.int16
    assert rows.shape == (10, 2)
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


@pytest.mark.parametrize("stopped_by", [KeyboardInterrupt, signal.SIGTERM])
def test_an_interrupted_work_goes_on(stopped_by: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def until(row: int) -> None:
        if row == 6:
            if stopped_by is KeyboardInterrupt:
                raise KeyboardInterrupt
            os.kill(os.getpid(), stopped_by)

    with pytest.raises((KeyboardInterrupt, SystemExit)) as end:
        fill(Work(until=until))
    if stopped_by is signal.SIGTERM:
        assert end.value.code == 143
        assert capsys.readouterr().out == "stopped by SIGTERM: the same command goes on from here\n"
    assert [name for name in parts() if name.endswith("npy")] == ["00000000-00000004.npy"]
    rest = Work()
    rows = fill(rest)
    assert rows[:].tolist() == expected(10)
    assert rest.done == list(range(4, 10))
    assert rows.unreadable  # as noted by the first call


def harmed(file: Path, how: str) -> None:
    content = file.read_bytes()
    file.write_bytes({"cut": content[:-1], "flipped": content[:-1] + b"\x55", "empty": b""}[how])


@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_a_damaged_part_is_said_and_computed_anew(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    fill(Work())
    (file,) = Path("work").glob("00000004*")
    harmed(file, how)
    assert Shards(Path("work")).read(10) is None
    work = Work()
    assert fill(work)[:].tolist() == expected(10)
    assert work.done == [4, 5, 6, 7]
    assert capsys.readouterr().out == f"WARNING: {file} is damaged: it is computed anew\n"


def test_a_folder_that_cannot_be_written_is_read_and_another_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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


class Two(Ranks):
    """Two processes as two threads."""

    def __init__(self, rank: int, meeting: threading.Barrier, board: list) -> None:
        super().__init__(rank, 2)
        object.__setattr__(self, "meeting", meeting)
        object.__setattr__(self, "board", board)

    def wait(self) -> None:
        self.meeting.wait()

    def from_first(self, make: Callable[[], Any]) -> Any:
        if self.first:
            self.board[:] = [make()]
        self.wait()
        return self.board[0]


def together(work: list[Work], patience_s: float = 20.0) -> list[Any]:
    """What each process gets, or its error."""
    meeting, board, got = threading.Barrier(2), [], [None, None]

    def run(rank: int) -> None:
        job = jobs[rank]
        try:
            got[rank] = fill(work[rank], job=job)
        except BaseException as error:
            got[rank] = error

    with a_job() as first, a_job() as second:
        jobs = [first, second]
        for rank, job in enumerate(jobs):
            job.ranks, job.patience_s = Two(rank, meeting, board), patience_s
        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return got


def test_processes_share_the_parts_and_each_reads_all() -> None:
    work = [Work(), Work()]
    for rows in together(work):
        assert rows[:].tolist() == expected(10)
        assert rows.unreadable
    assert [each.done for each in work] == [[0, 1, 2, 3, 8, 9], [4, 5, 6, 7]]


def test_a_process_that_others_wait_for_in_vain_is_said() -> None:
    def never(row: int) -> None:
        raise KeyboardInterrupt

    first, second = together([Work(), Work(until=never)], patience_s=0.5)
    assert isinstance(second, KeyboardInterrupt)
    assert isinstance(first, RunError)
    assert str(first).startswith("rows in work: 4 are missing, and none has come within --dist_timeout 0")


def test_two_machines_whose_locks_do_nothing_make_one_set() -> None:
    """Each knows only its own processes; nothing that one writes harms the other."""
    meeting, found = threading.Barrier(2), [None, None]

    def run(machine: int) -> None:
        work = Work(until=lambda row: meeting.wait() if row in (0, 8) else None)  # both are at it at the same time
        found[machine] = fill(work, job=jobs[machine])

    with a_job() as one, a_job() as other:
        jobs = [one, other]
        threads = [threading.Thread(target=run, args=(machine,)) for machine in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [rows[:].tolist() for rows in found] == [expected(10)] * 2
    assert len([name for name in parts() if name.endswith("npy")]) == 3


def test_work_on_other_data_beside_it_does_not_wait() -> None:
    """Features of unrelated data sets lie in folders beside each other."""
    begun, ended = threading.Event(), threading.Event()

    def until(row: int) -> None:
        begun.set()
        assert ended.wait(20)

    with a_job() as one, a_job() as other:
        slow = threading.Thread(target=fill, args=(Work(until=until),), kwargs={"folder": "features/a", "job": one})
        slow.start()
        assert begun.wait(20)
        assert fill(Work(), folder="features/b", job=other)[:].tolist() == expected(10)
        ended.set()
        slow.join()
