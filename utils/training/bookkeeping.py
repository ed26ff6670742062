"""What a training run counts: running means of its metrics, skipped updates, and when its processes agree."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hparams.errors import RunError

MOST_STEPS = 10  # as a message after every step would cost where steps take milliseconds
LONGEST_MS = 1000  # torchrun ends a process half a minute after SIGTERM


class Averages:
    """Means since the last `pop`, each metric over the steps that had it. Sums are float64."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Enter one step's scalars and vectors, without waiting for the device."""
        for name, value in metrics.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def pop(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The means by name, scalars and then vectors (on the CPU), and a new start."""
        means = {name: (total / self._counts[name]).cpu() for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        scalars = {name: mean.item() for name, mean in means.items() if not mean.ndim}
        return scalars, {name: mean for name, mean in means.items() if mean.ndim}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Sums and counts so far, as plain numbers and lists of them."""
        return {"sums": {name: total.tolist() for name, total in self._sums.items()}, "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]], device: torch.device) -> None:
        """Continue from `state_dict`."""
        self._sums = {
            name: torch.tensor(total, dtype=torch.float64, device=device) for name, total in state["sums"].items()
        }
        self._counts = {name: int(count) for name, count in state["counts"].items()}


class SkippedUpdates:
    """Counts on the device; only `check` and `state_dict` wait for it."""

    def __init__(self, device: torch.device, most_in_a_row: int) -> None:
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)  # in all, in a row, last good step
        self._most = most_in_a_row

    def add(self, done: int, skipped: Tensor) -> None:
        """Enter the update that makes it `done`; `skipped` is a scalar, 1 if it was left out."""
        total, in_a_row, last_good = self._counts.unbind()
        skip = skipped.detach().long()
        good = last_good.where(skip > 0, torch.full_like(last_good, done))
        self._counts = torch.stack([total + skip, (in_a_row + 1) * skip, good])

    def check(self) -> int:
        """How many were left out so far.

        Raises:
            RunError: too many in a row.
        """
        total, in_a_row, last_good = self._counts.tolist()
        if in_a_row >= self._most:
            raise RunError(
                f"{in_a_row} updates in a row had gradients that are not finite; the last good step was {last_good}: "
                "go on from the newest saved step with --resume and a lower --lr, or with --no_amp, or take an older "
                "one's weights by --load_step (--max_skipped allows more)"
            )
        return total

    def state_dict(self) -> dict[str, int]:
        """The counts, as plain numbers."""
        return dict(zip(("total", "in_a_row", "last_good"), self._counts.tolist(), strict=True))

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from `state_dict`."""
        self._counts = torch.tensor(list(state.values()), dtype=torch.int64, device=self._counts.device)


class Rhythm:
    """After which steps of a run its processes agree: after `MOST_STEPS`, or sooner where these take `LONGEST_MS`.

    Args:
        start: the number of updates done when the run starts.
        clock: seconds, from any time on.
    """

    def __init__(self, start: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._step, self._time = start, clock()
        self._next = start + 1

    def due(self, done: int) -> bool:
        """Whether they agree after `done` updates."""
        return done >= self._next

    def elapsed_ms(self) -> int:
        """By this process's clock, since they last agreed."""
        return round(1000 * (self._clock() - self._time))

    def agreed(self, done: int, elapsed_ms: int) -> None:
        """They did, after `done` updates, also on how long it had been: so the next time is the same for all."""
        steps = LONGEST_MS * (done - self._step) // max(1, elapsed_ms)
        self._step, self._time = done, self._clock()
        self._next = done + min(MOST_STEPS, max(1, steps))
