"""Running means of metrics, updates that were left out, and when processes agree."""

from __future__ import annotations

import json

import pytest
import torch

from hparams.errors import RunError
from utils.machine.distributed import ALONE, Ranks
from utils.training.bookkeeping import Averages, Rhythm, SkippedUpdates

CPU = torch.device("cpu")


def test_means_since_the_last_pop_over_the_steps_that_had_a_metric() -> None:
    averages = Averages()
    for number, value in enumerate((1.0, 2.0, 6.0)):
        averages.add({"loss": torch.tensor(value)} | ({"d_loss": torch.tensor(7.0)} if number == 2 else {}))
    assert averages.pop() == ({"loss": 3.0, "d_loss": 7.0}, {})
    assert averages.pop() == ({}, {})
    averages.add({"loss": torch.tensor(5.0)})
    assert averages.pop()[0] == {"loss": 5.0}


def test_vectors_are_averaged_place_by_place_in_float64_and_without_gradients() -> None:
    first, second, value = Averages(), Averages(), torch.tensor(0.1, requires_grad=True)
    first.add({"counts": torch.tensor([4, 0]), "loss": value * 1})
    second.load_state_dict(json.loads(json.dumps(first.state_dict())), CPU)
    second.add({"counts": torch.tensor([0, 1])})
    for _ in range(9_999):
        second.add({"loss": value * 1})
    for number in (1.0, 2.0**-30):
        first.add({"l1": torch.tensor(number)})
    assert first.pop()[0]["l1"] == (1 + 2.0**-30) / 2
    scalars, vectors = second.pop()
    assert scalars["loss"] == pytest.approx(float(value.detach()), rel=1e-12)
    assert vectors["counts"].tolist() == [2, 0.5]


def add(skipped: SkippedUpdates, pattern: str, start: int = 0) -> SkippedUpdates:
    for number, mark in enumerate(pattern, start=start + 1):
        skipped.add(number, torch.tensor(float(mark == "x")))
    return skipped


def test_too_many_skipped_updates_in_a_row_end_the_run_also_across_a_resume() -> None:
    skipped, resumed = add(SkippedUpdates(CPU, 3), "..xx.xx.xx"), SkippedUpdates(CPU, 3)
    assert skipped.check() == 6
    assert skipped.state_dict() == {"total": 6, "in_a_row": 2, "last_good": 8}
    resumed.load_state_dict(skipped.state_dict())
    assert resumed.state_dict() == skipped.state_dict()
    with pytest.raises(RunError, match=r"3 updates in a row .* last good step was 8.*--max_skipped"):
        add(resumed, "x", start=10).check()


@pytest.mark.parametrize(
    ("step_ms", "steps_between"), [(11, 10), (99, 10), (150, 6), (400, 2), (999, 1), (4500, 1), (0, 10)]
)
def test_processes_agree_once_a_second_or_every_ten_steps(
    monkeypatch: pytest.MonkeyPatch, step_ms: int, steps_between: int
) -> None:
    now, agreed = 0.0, []
    monkeypatch.setattr("time.monotonic", lambda: now)
    rhythm = Rhythm(100)
    for done in range(101, 151):
        now += step_ms / 1000
        if rhythm.due(done):
            agreed.append(done)
            assert rhythm.agree(done, ALONE, 1, 7) == (1, 7)
    assert agreed == list(range(101, 151, steps_between))


def test_the_slowest_process_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(Ranks):
        def agree(self, *numbers: int) -> tuple[int, ...]:
            return tuple(map(max, numbers, (9, 500)))  # the other one's

    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    rhythm = Rhythm(0)
    assert rhythm.due(1)
    assert rhythm.agree(1, Two(0, 2), 3) == (9,)
    assert [done for done in range(2, 5) if rhythm.due(done)] == [3, 4]
