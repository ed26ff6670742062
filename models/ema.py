"""Exponential moving average of a model's weights."""

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

ModelT = TypeVar("ModelT", bound=nn.Module)


def decay_of(n: int, beta: float, *, warmup: bool) -> float:
    """Decay of the update after n others: β, or with warm-up min(β, (1 + n)/(10 + n)), so that the start is forgotten.

    With warm-up the average's memory grows with its updates until it is as long as β makes it.
    """
    return min(beta, (1 + n) / (10 + n)) if warmup else beta


def updates_before(step: int, every: int) -> int:
    """How many updates an average has had before training step `step`, counted from 0: at every, 2 · every, …"""
    return max(0, step - 1) // every


def share_of_start(updates: int, beta: float, *, warmup: bool) -> float:
    """What the start still weighs in an average after so many updates, in [0,1]."""
    return math.prod(decay_of(n, beta, warmup=warmup) for n in range(updates)) if warmup else beta**updates


class EMA(Generic[ModelT]):
    """Keeps `model`, a frozen copy in evaluation mode whose parameters follow those of the trained one.

    Departure from the published code, whose average keeps the buffers of the start: buffers are copied.
    """

    def __init__(self, model: ModelT, beta: float, *, every: int = 1, warmup: bool = False) -> None:
        """every: training steps from one update to the next. beta, warmup: see `decay_of`."""
        self._beta, self._every, self._warmup = beta, every, warmup
        self.model: ModelT = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def follow(self, model: ModelT, step: int) -> None:
        """average ← decay · average + (1 − decay) · weight after training step `step`, counted from 0, if it is due.

        As published, it is not at step 0.
        """
        if step > 0 and step % self._every == 0:
            decay = decay_of(updates_before(step, self._every), self._beta, warmup=self._warmup)
            averages: list[Tensor] = list(self.model.parameters())
            torch._foreach_lerp_(averages, list(model.parameters()), 1 - decay)
            for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
                mine.copy_(theirs)
