"""Which images make up a batch: a function of the seed and the step alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from models.parts import WHOLE, BatchPart


class BatchOrder:
    """Which of n images make up the batch of a step: a pure function of (n, batch size, seed, step).

    Every epoch is a permutation of its own, drawn from (seed, epoch); what is left at its end and fills no batch is
    dropped. With fewer images than a batch holds, an epoch is one batch, which repeats its permutation to fill up.
    Of every batch `indices` gives one `part`, its images in the batch's order.
    """

    def __init__(self, n: int, batch_size: int, seed: int, part: BatchPart = WHOLE) -> None:
        if n < 1 or batch_size < 1 or seed < 0:
            raise ValueError(f"need n ≥ 1, batch_size ≥ 1, seed ≥ 0; got {n}, {batch_size}, {seed}")
        self.n, self.batch_size, self.seed, self.part = n, batch_size, seed, part
        self._permutation = lru_cache(1)(lambda epoch: np.random.default_rng([self.seed, epoch]).permutation(self.n))

    @property
    def batches_per_epoch(self) -> int:
        return max(1, self.n // self.batch_size)

    def indices(self, step: int) -> np.ndarray:
        """Images of this part of the batch that update number `step` (from 0) sees: int64, values 0..n-1."""
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        epoch, batch = divmod(step, self.batches_per_epoch)
        if self.n < self.batch_size:
            whole = np.resize(self._permutation(epoch), self.batch_size)
        else:
            whole = self._permutation(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]
        return np.split(whole, self.part.count)[self.part.index]
