"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

ModelT = TypeVar("ModelT", bound=nn.Module)


class EMA(Generic[ModelT]):
    """Keeps `model`, a frozen copy in evaluation mode whose parameters follow those of the trained one.

    Departure from the published code, whose average keeps the buffers of the start: buffers are copied.
    """

    def __init__(self, model: ModelT, beta: float) -> None:
        self.beta = beta
        self.model: ModelT = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: ModelT) -> None:
        """average ← β · average + (1 − β) · weight, for every parameter; buffers are copied."""
        averages: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averages, list(model.parameters()), 1 - self.beta)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
