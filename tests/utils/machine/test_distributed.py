"""How several processes end when one of them fails, and what they tell each other; see `failing.py`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import uuid
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
from utils.machine.distributed import ALONE, _meet, joined

End = Callable[[str], tuple[dict[str, Any], list[str]]]
Meet = Callable[..., Any]


@pytest.fixture(scope="module")
def end(tmp_path_factory: pytest.TempPathFactory) -> End:
    """How the processes of a way ended: what torchrun tells of the first that failed, and each one's stderr."""
    out, script = tmp_path_factory.mktemp("failing"), Path(__file__).parents[2] / "helpers/failing.py"
    # PyTorch asks for the name of every address, and warns where there is none. A name server that answers so many at
    # leisure would pass for a process that hangs.
    names = {"RES_OPTIONS": "timeout:1 attempts:1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    env = os.environ | {"OMP_NUM_THREADS": "1", **names}
    done = subprocess.run([sys.executable, script, out], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]

    def ends(way: str) -> tuple[dict[str, Any], list[str]]:
        (logs,) = (out / way).glob("*/attempt_0")
        told = json.loads((out / f"{way}.json").read_text())
        return told, [(logs / f"{rank}/stderr.log").read_text() for rank in range(4)]

    return ends


def those_with_a_cause(said: list[str]) -> dict[int, str]:
    """Without the one line of those that only lost the others: torchrun mostly ends them before they say it."""
    lost = [text for text in said if "lost the other processes" in text]
    assert [text.count("\n") for text in lost] in ([], [1])
    return {rank: text for rank, text in enumerate(said) if text and text not in lost}


def test_a_process_that_is_killed_or_hangs_is_named(end: End) -> None:
    told, said = end("dies")
    assert told["1"][0] == -9
    assert "SIGKILL" in told["1"][1]
    assert those_with_a_cause(said) == {}
    told, said = end("hangs")
    assert [status for status, _ in told.values()] == [1]
    ((rank, line),) = those_with_a_cause(said).items()
    assert rank != 2
    assert re.search(rf": error: rank {rank} on \S+: rank 2 on \S+ gave no answer within --dist_timeout 5; .*\n$", line)


BAD_DATA = "photos/7.jpg cannot be read"


@pytest.mark.parametrize(
    ("way", "causes"), [("meets_bad_data", {2: BAD_DATA}), ("two_fail", {1: BAD_DATA, 3: "its GPU is lost"})]
)
def test_each_process_with_a_cause_of_its_own_says_it_in_one_line(end: End, way: str, causes: dict[int, str]) -> None:
    told, said = end(way)
    lines = those_with_a_cause(said)
    assert lines.keys() == causes.keys()
    for rank, cause in causes.items():
        assert re.fullmatch(rf"train_vqgan\.py: error: rank {rank} on \S+: {cause}\n", lines[rank])
    for rank, (status, record) in told.items():
        assert status == (2 if "photos" in causes[int(rank)] else 1)
        assert record["message"] == causes[int(rank)]


def test_a_bug_shows_where_it_happened_and_of_processes_that_fail_alike_one_speaks(end: End) -> None:
    told, said = end("breaks")
    assert (told["1"][0], told["1"][1]["message"]) == (1, "KeyError: 'a bug'")
    ((rank, line),) = those_with_a_cause(said).items()
    assert rank == 1
    assert line.startswith("train_vqgan.py: error: rank 1 on ")
    assert line.endswith("KeyError: 'a bug'\n")
    (line,) = those_with_a_cause(end("all_fail_alike")[1]).values()
    assert re.fullmatch(".*: 100 updates in a row had gradients that are not finite\n", line)


def test_processes_share_and_agree(end: End) -> None:
    assert end("shares") == end("shares_part_files") == ({}, [""] * 4)


@pytest.fixture
def meet() -> Iterator[Meet]:
    """meet(rank, seconds=…, backend=…): one of three processes comes, for so long; torchrun's store stays the same."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with ThreadPoolExecutor(8) as pool:

        def come(rank: int, seconds: float, backend: str) -> tuple[str, str]:
            store = dist.TCPStore("127.0.0.1", server.port, is_master=False)
            start, common = _meet(store, rank, 3, backend, timedelta(seconds=seconds))
            if rank == 0:
                start.set("name", uuid.uuid4().hex)
            return start.get("name").decode(), common

        yield lambda rank, seconds=60.0, backend="gloo": pool.submit(come, rank, seconds, backend)


def all_meet(meet: Meet, order: tuple[int, ...] = (1, 2, 0), backends: tuple[str, ...] = ("gloo",) * 3) -> Any:
    """Name and backend of a start, the same for all, whoever comes first."""
    starts = []
    for rank in order:
        starts.append(meet(rank, backend=backends[rank]))
        time.sleep(0.1)  # what lies in the store is seen before the next one comes
    (start,) = {each.result() for each in starts}
    return start


def test_every_start_has_a_name_of_its_own_also_after_one_that_lacked_some(meet: Meet) -> None:
    assert len({all_meet(meet, order) for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1))}) == 3
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


def test_machines_with_and_without_a_gpu_for_each_process_take_one_backend(meet: Meet) -> None:
    for own, common in ((("nccl",) * 3, "nccl"), (("nccl", "gloo", "nccl"), "gloo"), (("gloo",) * 3, "gloo")):
        assert all_meet(meet, backends=own)[1] == common


def test_alone_nothing_is_sent_or_copied() -> None:
    tensor = torch.arange(3)
    assert ALONE.sum(tensor) is ALONE.mean(tensor) is ALONE.gather(tensor) is tensor
    assert ALONE.first
    assert ALONE.share(5) == range(5)
    assert (ALONE.agree(3, 4), ALONE.from_first(lambda: 7), ALONE.gather_objects(7)) == ((3, 4), 7, [7])
    ALONE.wait()


@pytest.mark.parametrize(("local", "processes", "gpu"), [("0", "1", 0), ("1", "2", 1), ("3", "4", 1)])
def test_each_process_takes_a_gpu_of_its_machine(local: str, processes: str, gpu: int, monkeypatch) -> None:
    """By its number, which NCCL asks for: also where the machine has one process."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(os, "environ", {"RANK": "5", "MASTER_ADDR": "elsewhere", "LOCAL_RANK": local})
    monkeypatch.setitem(os.environ, "LOCAL_WORLD_SIZE", processes)
    assert pick_device("cuda") == torch.device("cuda", gpu)


def test_the_gpu_that_was_named_becomes_the_current_one_and_nccl_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchrun too: a CUDA graph captured on another one would hold nothing."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for name in ("cuda:1", "cuda", "cpu"):
        with joined(torch.device(name), backend="auto", timeout_s=1) as ranks:
            assert ranks is ALONE
    assert current == [torch.device("cuda:1")]
    for name, value in {"RANK": "0", "MASTER_ADDR": "localhost", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="--dist_backend nccl"):
        joined(torch.device("cpu"), backend="nccl", timeout_s=1).__enter__()
