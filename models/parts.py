"""Parts of a batch: each draws its random numbers as the whole batch would, and keeps its own.

So that a batch gives the same gradient in one piece, in micro-batches, or spread over processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Wrap = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]  # a function → one that does the same, faster
Draw = Callable[[Sequence[int]], Tensor]  # shape → random numbers


@dataclass(frozen=True)
class BatchPart:
    """Part number `index` of a batch cut into `count` equal parts."""

    index: int = 0
    count: int = 1

    def draw(self, shape: Sequence[int], draw: Draw) -> Tensor:
        """Random numbers of this part, [b,…] = `shape`: drawn for the whole batch [count·b,…], and cut."""
        b, *rest = shape
        return draw((self.count * b, *rest))[self.index * b : (self.index + 1) * b]

    def split(self, pieces: int) -> list[BatchPart]:
        """This part in so many equal pieces."""
        return [BatchPart(self.index * pieces + piece, self.count * pieces) for piece in range(pieces)]


WHOLE = BatchPart()


def as_it_is(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The `Wrap` that does nothing."""
    return function


class Replica(Protocol):
    """A module whose gradients are averaged over processes when a backward pass through it ends."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def no_sync(self) -> AbstractContextManager[None]:
        """Leave the gradients of passes in this block to the next one outside."""


def rewind(generator: torch.Generator | None, state: Tensor | None) -> None:
    """Put a generator back to an earlier `get_state`, so that the next micro-batch draws what the last one did."""
    if generator is not None and state is not None:
        generator.set_state(state)
