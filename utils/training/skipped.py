"""Counting the updates that were left out because gradients were not finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hparams.errors import RunError


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
