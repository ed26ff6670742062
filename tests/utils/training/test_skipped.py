"""Counting updates that were left out."""

from __future__ import annotations

import pytest
import torch

from hparams.errors import RunError
from utils.training.skipped import SkippedUpdates


def add(skipped: SkippedUpdates, pattern: str, start: int = 0) -> None:
    for number, mark in enumerate(pattern, start=start + 1):
        skipped.add(number, torch.tensor(float(mark == "x")))


def test_they_are_counted() -> None:
    skipped = SkippedUpdates(torch.device("cpu"), 3)
    add(skipped, "..xx.xx.x")
    assert skipped.check() == 5
    assert skipped.state_dict() == {"total": 5, "in_a_row": 1, "last_good": 8}


def test_too_many_in_a_row_end_the_run_also_across_a_resume() -> None:
    skipped, resumed = (SkippedUpdates(torch.device("cpu"), 3) for _ in range(2))
    add(skipped, "..xx")
    assert skipped.check() == 2
    resumed.load_state_dict(skipped.state_dict())
    add(resumed, "x", start=4)
    with pytest.raises(RunError, match=r"3 updates in a row .* last good step was 2.*--max_skipped"):
        resumed.check()
