"""When processes agree."""

from __future__ import annotations

import pytest

from utils.training.rhythm import Rhythm


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
