"""How several processes end when one of them fails, and what they tell each other; see `failing.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from utils.distributed import ALONE

End = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def end(tmp_path_factory: pytest.TempPathFactory) -> End:
    """How the processes of a way ended, by rank: status, what was said on stderr, and after how many seconds."""
    out = tmp_path_factory.mktemp("failing")
    script = Path(__file__).with_name("failing.py")
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script, out], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return lambda way: [json.loads((out / f"{way}.{rank}").read_text()) for rank in range(3)]


def lines(ends: list[dict[str, Any]]) -> list[str]:
    return [line for one in ends for line in one["said"].splitlines()]


def test_a_process_that_is_killed_is_named_by_one_of_the_others(end: End) -> None:
    ends = end("dies")
    assert [one["status"] for one in ends] == [1, -9, 1]
    (line,) = lines(ends)
    assert ": error: rank " in line
    assert ": rank 1 on " in line
    assert "ended without a word" in line
    assert "--resume" in line


def test_a_process_that_hangs_is_named_after_the_timeout(end: End) -> None:
    ends = end("hangs")
    assert [one["status"] for one in ends] == [1, 1, 71]
    (line,) = lines(ends)
    assert ": rank 2 on " in line
    assert "--dist_timeout 5" in line
    assert ends[0]["seconds"] < ends[2]["seconds"]


def test_a_process_that_meets_bad_data_says_so_and_the_others_are_silent(end: End) -> None:
    ends = end("meets_bad_data")
    assert [one["status"] for one in ends] == [1, 1, 2]
    (line,) = lines(ends)
    assert line.startswith("train_vqgan.py: error: rank 2 on ")
    assert line.endswith(": photos/7.jpg cannot be read")


def test_a_bug_shows_where_it_happened(end: End) -> None:
    ends = end("breaks")
    assert [one["status"] for one in ends] == [1, 70, 1]
    assert ends[1]["said"].startswith("train_vqgan.py: error: rank 1 on ")
    assert "KeyError('a bug')" in ends[1]["said"]
    assert ends[0]["said"] == ends[2]["said"] == ""


def test_of_processes_that_fail_alike_one_speaks(end: End) -> None:
    ends = end("all_fail_alike")
    assert [one["status"] for one in ends] == [1, 1, 1]
    (line,) = lines(ends)
    assert "100 updates in a row" in line


def test_processes_share_and_agree(end: End) -> None:
    assert [(one["status"], one["said"]) for one in end("shares")] == [(0, "")] * 3


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
