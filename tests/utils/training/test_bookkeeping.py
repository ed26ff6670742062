"""Running means of metrics, updates that were left out, and when processes agree."""

from __future__ import annotations

import json

import pytest
import torch

from hparams.errors import RunError
from utils.training.bookkeeping import Averages, Rhythm, SkippedUpdates

CPU = torch.device("cpu")


def test_means_since_the_last_pop() -> None:
    averages = Averages()
    for value in (1.0, 2.0, 6.0):
        averages.add({"loss": torch.tensor(value)})
    assert averages.pop() == ({"loss": 3.0}, {})
    assert averages.pop() == ({}, {})
    averages.add({"loss": torch.tensor(5.0)})
    assert averages.pop()[0] == {"loss": 5.0}


def test_a_metric_is_averaged_over_the_steps_that_had_it() -> None:
    averages = Averages()
    averages.add({"loss": torch.tensor(1.0)})
    averages.add({"loss": torch.tensor(3.0), "d_loss": torch.tensor(7.0)})
    assert averages.pop()[0] == {"loss": 2.0, "d_loss": 7.0}


def test_vectors_are_averaged_place_by_place() -> None:
    first, second = Averages(), Averages()
    first.add({"counts": torch.tensor([4, 0]), "loss": torch.tensor(1.0)})
    second.load_state_dict(json.loads(json.dumps(first.state_dict())), CPU)
    second.add({"counts": torch.tensor([0, 1]), "loss": torch.tensor(2.0)})
    scalars, vectors = second.pop()
    assert scalars == {"loss": 1.5}
    assert vectors["counts"].tolist() == [2, 0.5]


def test_sums_are_kept_in_float64_and_without_gradients() -> None:
    averages, value = Averages(), torch.tensor(0.1, requires_grad=True)
    for _ in range(10_000):
        averages.add({"loss": value * 1})
    assert averages.pop()[0]["loss"] == pytest.approx(float(value.detach()), rel=1e-12)


def add(skipped: SkippedUpdates, pattern: str, start: int = 0) -> None:
    for number, mark in enumerate(pattern, start=start + 1):
        skipped.add(number, torch.tensor(float(mark == "x")))


def test_skipped_updates_are_counted() -> None:
    skipped = SkippedUpdates(CPU, 3)
    add(skipped, "..xx.xx.x")
    assert skipped.check() == 5
    assert skipped.state_dict() == {"total": 5, "in_a_row": 1, "last_good": 8}


def test_too_many_in_a_row_end_the_run_also_across_a_resume() -> None:
    skipped, resumed = (SkippedUpdates(CPU, 3) for _ in range(2))
    add(skipped, "..xx")
    assert skipped.check() == 2
    resumed.load_state_dict(skipped.state_dict())
    add(resumed, "x", start=4)
    with pytest.raises(RunError, match=r"3 updates in a row .* last good step was 2.*--max_skipped"):
        resumed.check()


@pytest.mark.parametrize(
    ("step_ms", "steps_between"),
    [(11, 10), (99, 10), (150, 6), (400, 2), (999, 1), (4500, 1), (0, 10)],
)
def test_processes_agree_once_a_second_or_every_ten_steps(step_ms: int, steps_between: int) -> None:
    now = 0.0
    rhythm = Rhythm(100, clock=lambda: now)
    agreed = []
    for done in range(101, 151):
        now += step_ms / 1000
        if rhythm.due(done):
            agreed.append(done)
            rhythm.agreed(done, rhythm.elapsed_ms())
    assert agreed == list(range(101, 151, steps_between))


def test_the_slowest_process_decides() -> None:
    rhythm = Rhythm(0, clock=lambda: 0.0)
    assert rhythm.due(1)
    rhythm.agreed(1, 500)  # another's clock
    assert [done for done in range(2, 5) if rhythm.due(done)] == [3, 4]
