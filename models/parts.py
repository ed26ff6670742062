"""Parts of a batch, and random numbers that do not depend on how a batch is cut into parts.

So a batch gives the same gradient in one piece, in micro-batches, or spread over processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BatchPart:
    """Part number `index` of a batch cut into `count` equal parts."""

    index: int = 0
    count: int = 1

    def split(self, pieces: int) -> "list[BatchPart]":
        """This part in so many equal pieces."""
        return [BatchPart(self.index * pieces + piece, self.count * pieces) for piece in range(pieces)]


WHOLE = BatchPart()


@dataclass(frozen=True)
class Noise:
    """Random numbers for part `part` of a batch: drawn for the whole batch, then cut.

    In each method `shape` [b,…] is that of the part, and the numbers lie on the device of `like`.
    """

    generator: torch.Generator | None = None  # None: torch's global stream
    part: BatchPart = WHOLE

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Uniform on [0,1), in the type of `like` if that is a float, else float32."""
        dtype = like.dtype if like.is_floating_point() else None
        return self._cut(shape, lambda s: torch.rand(s, generator=self.generator, device=like.device, dtype=dtype))

    def exponential(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Exponential with rate 1, in the type of `like`."""
        return self._cut(shape, lambda s: like.new_empty(s).exponential_(generator=self.generator))

    def integers(self, low: int, high: int, shape: Sequence[int], like: Tensor) -> Tensor:
        """Uniform on low..high − 1, int64."""
        return self._cut(shape, lambda s: torch.randint(low, high, s, generator=self.generator, device=like.device))

    def _cut(self, shape: Sequence[int], draw: Callable[[Sequence[int]], Tensor]) -> Tensor:
        b, *rest = shape
        return draw((self.part.count * b, *rest))[self.part.index * b : (self.part.index + 1) * b]


NOISE = Noise()  # of a whole batch, from torch's global stream
