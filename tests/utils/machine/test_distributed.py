"""How several processes end when one of them fails, and what they tell each other; see `failing.py`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from hparams.errors import UserError
from utils.machine.devices import pick_device
from utils.machine.distributed import ALONE, _common_backend, _meet, joined

End = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def end(tmp_path_factory: pytest.TempPathFactory) -> End:
    """How the processes of a way ended, by rank: status, what was said on stderr, and after how many seconds."""
    out = tmp_path_factory.mktemp("failing")
    script = Path(__file__).parents[2] / "helpers/failing.py"
    # PyTorch asks for the name of every address, and warns where there is none. A name server that answers so many at
    # leisure would pass for a process that hangs.
    names = {"RES_OPTIONS": "timeout:1 attempts:1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    env = os.environ | {"OMP_NUM_THREADS": "1", **names}
    done = subprocess.run([sys.executable, script, out], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return lambda way: [json.loads((out / f"{way}.{rank}").read_text()) for rank in range(4)]


def lines(ends: list[dict[str, Any]]) -> list[str]:
    return [line for one in ends for line in one["said"].splitlines()]


def test_a_process_that_is_killed_is_named_by_one_of_the_others(end: End) -> None:
    ends = end("dies")
    assert [one["status"] for one in ends] == [1, -9, 1, 1]
    (line,) = lines(ends)
    assert re.search(r": error: rank [023] on \S+: rank 1 on \S+ ended without a word", line)  # nor any other
    assert "--resume" in line


def test_a_process_that_hangs_is_named_after_the_timeout(end: End) -> None:
    ends = end("hangs")
    assert [one["status"] for one in ends] == [1, 1, 71, 1]
    (line,) = lines(ends)
    assert re.search(r": error: rank [013] on \S+: rank 2 on \S+ ended without a word", line)
    assert "--dist_timeout 5" in line
    assert ends[0]["seconds"] < ends[2]["seconds"]


def test_a_process_that_meets_bad_data_says_so_and_the_others_are_silent(end: End) -> None:
    ends = end("meets_bad_data")
    assert [one["status"] for one in ends] == [1, 1, 2, 1]
    (line,) = lines(ends)
    assert line.startswith("train_vqgan.py: error: rank 2 on ")
    assert line.endswith(": photos/7.jpg cannot be read")


def test_a_bug_shows_where_it_happened(end: End) -> None:
    ends = end("breaks")
    assert [one["status"] for one in ends] == [1, 70, 1, 1]
    assert ends[1]["said"].startswith("train_vqgan.py: error: rank 1 on ")
    assert "KeyError('a bug')" in ends[1]["said"]
    assert {ends[rank]["said"] for rank in (0, 2, 3)} == {""}


def test_a_second_process_with_an_error_of_its_own_says_so_too(end: End) -> None:
    ends = end("two_fail")
    assert [one["status"] for one in ends] == [1, 2, 1, 1]
    assert [one["said"].count("\n") for one in ends] == [0, 1, 0, 1]
    for rank, said in ((1, "photos/7.jpg cannot be read"), (3, "its GPU is lost")):
        assert re.fullmatch(rf"train_vqgan.py: error: rank {rank} on \S+: {said}\n", ends[rank]["said"])


def test_of_processes_that_fail_alike_one_speaks(end: End) -> None:
    ends = end("all_fail_alike")
    assert [one["status"] for one in ends] == [1, 1, 1, 1]
    (line,) = lines(ends)
    assert "100 updates in a row" in line


def test_processes_share_and_agree(end: End) -> None:
    for way in ("shares", "waits"):
        assert [(one["status"], one["said"]) for one in end(way)] == [(0, "")] * 4


Meet = Callable[..., Any]


@pytest.fixture
def meet() -> Iterator[Meet]:
    """meet(rank, seconds=…): one of three processes comes, for at most so long; torchrun's store stays the same."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with ThreadPoolExecutor(8) as pool:

        def come(rank: int, seconds: float) -> str:
            store = dist.TCPStore("127.0.0.1", server.port, is_master=False)
            return _meet(store, rank, 3, timedelta(seconds=seconds))

        yield lambda rank, seconds=60.0: pool.submit(come, rank, seconds)


def all_meet(meet: Meet, order: tuple[int, ...] = (1, 2, 0)) -> str:
    """The name of a start, the same for all, whoever comes first."""
    names = []
    for rank in order:
        names.append(meet(rank))
        time.sleep(0.1)  # what lies in the store is seen before the next one comes
    (name,) = {each.result() for each in names}
    return name


def test_every_start_has_a_name_of_its_own(meet: Meet) -> None:
    assert len({all_meet(meet, order) for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1))}) == 3


def test_processes_meet_after_a_start_that_lacked_some(meet: Meet) -> None:
    first, other = meet(0, 0.3), meet(1, 0.3)
    with pytest.raises(RuntimeError, match=r"rank 2 did not start within --dist_timeout"):
        first.result()
    with pytest.raises(RuntimeError, match=r"rank 0 did not start, or misses others"):
        other.result()
    all_meet(meet)


def test_a_process_does_not_join_a_start_that_one_before_it_made_whole(meet: Meet) -> None:
    first, gone = meet(0), meet(1, 1.0)
    with pytest.raises(RuntimeError):
        gone.result()
    former = meet(2).result()
    assert first.result() == former
    late = meet(1)
    time.sleep(0.2)
    assert not late.done()
    (name,) = {each.result() for each in (late, meet(0), meet(2))}
    assert name != former


@pytest.mark.parametrize(
    ("own", "common"), [(["nccl"] * 3, "nccl"), (["nccl", "gloo", "nccl"], "gloo"), (["gloo"] * 3, "gloo")]
)
def test_machines_with_and_without_a_gpu_for_each_process_take_one_backend(own: list[str], common: str) -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def settle(rank: int) -> str:
        store = dist.TCPStore("127.0.0.1", server.port, is_master=False)
        return _common_backend(dist.PrefixStore("start", store), rank, len(own), own[rank])

    with ThreadPoolExecutor(len(own)) as pool:
        assert set(pool.map(settle, range(len(own)))) == {common}


def test_alone_nothing_is_sent_or_copied() -> None:
    tensor = torch.arange(3)
    for same in (ALONE.sum(tensor), ALONE.mean(tensor), ALONE.gather(tensor), ALONE.gather_rows(tensor, 3)):
        assert same is tensor
    assert ALONE.first
    assert ALONE.share(5) == range(5)
    assert ALONE.agree(3, 4) == (3, 4)
    assert ALONE.from_first(lambda: 7) == 7
    assert ALONE.gather_objects(7) == [7]
    ALONE.wait()


@pytest.mark.parametrize(("local", "processes", "gpu"), [("0", "1", 0), ("1", "2", 1), ("3", "4", 1)])
def test_each_process_takes_a_gpu_of_its_machine(
    local: str, processes: str, gpu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its number, which NCCL asks for: also where the machine has one process."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    environment = {"RANK": "5", "MASTER_ADDR": "elsewhere", "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": processes}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert pick_device("cuda") == torch.device("cuda", gpu)


def test_nccl_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "MASTER_ADDR": "localhost", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UserError, match="--dist_backend nccl"),
        joined(torch.device("cpu"), backend="nccl", timeout_s=1),
    ):
        pass


def test_the_gpu_that_was_named_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchrun too: a CUDA graph captured on another one would hold nothing."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for name in ("cuda:1", "cuda", "cpu"):
        with joined(torch.device(name), backend="auto", timeout_s=1) as ranks:
            assert ranks is ALONE
    assert current == [torch.device("cuda:1")]
