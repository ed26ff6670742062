"""What a training run counts: running means of its metrics, skipped updates, and when its processes agree."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hparams.errors import RunError
from utils.machine.distributed import Ranks

MOST_STEPS = 10  # as a message after every step would cost where steps take milliseconds
LONGEST_MS = 1000  # torchrun ends a process half a minute after SIGTERM


class Averages:
    """Means since the last `pop`, each metric over the steps that had it. Sums are float64."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Enter one step's scalars and vectors, without waiting for the device."""
        self._counts.update(metrics.keys())
        for name, value in metrics.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def pop(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The means by name, scalars and then vectors (on the CPU), and a new start."""
        means = {name: (total / self._counts[name]).cpu() for name, total in self._sums.items()}
        self._sums, self._counts = {}, Counter()
        scalars = {name: mean.item() for name, mean in means.items() if not mean.ndim}
        return scalars, {name: mean for name, mean in means.items() if mean.ndim}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        return {"sums": {name: total.tolist() for name, total in self._sums.items()}, "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]], device: torch.device) -> None:
        sums = state["sums"].items()
        self._sums = {name: torch.tensor(total, dtype=torch.float64, device=device) for name, total in sums}
        self._counts = Counter(state["counts"])


class SkippedUpdates:
    """Counts on the device; only `check` and `state_dict` wait for it."""

    def __init__(self, device: torch.device, most_in_a_row: int) -> None:
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)  # in all, in a row
        self._done, self._most = 0, most_in_a_row

    def add(self, done: int, skipped: Tensor) -> None:
        """Enter the update that makes it `done`; `skipped` is a scalar, 1 if it was left out."""
        skip = skipped.detach().long()
        total, in_a_row = self._counts.unbind()
        self._counts, self._done = torch.stack([total + skip, (in_a_row + 1) * skip]), done

    def check(self) -> int:
        """How many were left out so far. RunError: too many in a row."""
        total, in_a_row, last_good = self.state_dict().values()
        if in_a_row >= self._most:
            raise RunError(
                f"{in_a_row} updates in a row had gradients that are not finite; the last good step was {last_good}: "
                "go on from the newest saved step with --resume and a lower --lr, or with --no_amp, or take an older "
                "one's weights by --load_step (--max_skipped allows more)"
            )
        return total

    def state_dict(self) -> dict[str, int]:
        total, in_a_row = self._counts.tolist()
        return {"total": total, "in_a_row": in_a_row, "last_good": self._done - in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        total, in_a_row, last_good = state.values()
        self._counts, self._done = self._counts.new_tensor([total, in_a_row]), last_good + in_a_row


class Rhythm:
    """After which steps of a run its processes agree: after `MOST_STEPS`, or sooner where these take `LONGEST_MS`."""

    def __init__(self, start: int) -> None:
        self._step, self._time, self._next = start, time.monotonic(), start + 1

    def due(self, done: int) -> bool:
        return done >= self._next

    def agree(self, done: int, ranks: Ranks, *numbers: int) -> tuple[int, ...]:
        """The maximum of each number, after `done` updates. They agree on the time too, so that all are due next."""
        *agreed, elapsed_ms = ranks.agree(*numbers, round(1000 * (time.monotonic() - self._time)))
        steps = LONGEST_MS * (done - self._step) // max(1, elapsed_ms)
        self._step, self._time, self._next = done, time.monotonic(), done + min(MOST_STEPS, max(1, steps))
        return tuple(agreed)
