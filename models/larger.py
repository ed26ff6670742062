"""Grids of codes larger than the prior's own, by a mixture of what it predicts in windows.

Windows of the prior's own size cover the grid; where they overlap, their distributions are averaged (as published).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from models.categorical import draw_categorical
from models.diffusion import LogitsFn

ORDERS = ("raster", "random")


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First places of the windows along an axis: every `stride` places, and at the end so that all is covered.

    Raises:
        ValueError: the window is longer than the axis, or the stride leaves gaps.
    """
    if not 1 <= stride <= window <= length:
        raise ValueError(f"need 1 ≤ stride ≤ window ≤ length, got {stride}, {window}, {length}")
    return sorted({*range(0, length - window + 1, stride), length - window})


@torch.no_grad()
def window_mixture(
    logits_fn: LogitsFn, x_t: Tensor, due: Tensor, *, window: tuple[int, int], stride: int, batch_size: int
) -> Tensor:
    """Mean over windows of their p(x_0 | x_t), at due places.

    x_t: [B,H,W] int64, partly masked; due: [B,H,W] bool. Only windows (h, w) that see a due place are evaluated, at
    most `batch_size` at once. Returns [D,K] float64, rows in the order of `due.nonzero()`.
    """
    tops, lefts = (
        torch.tensor(window_starts(length, size, stride), device=x_t.device)
        for length, size in zip(x_t.shape[1:], window, strict=True)
    )
    number = torch.full_like(x_t, -1)  # of each due place
    number[due] = torch.arange(int(due.sum()), device=x_t.device)

    near_due = F.max_pool2d(due.float(), window, stride=1)[:, tops][:, :, lefts]
    image, row, column = near_due.nonzero(as_tuple=True)

    def windows(grid: Tensor) -> Tensor:
        """[B,H,W] → [windows that see a due place, h·w]."""
        return grid.unfold(1, window[0], 1).unfold(2, window[1], 1)[image, tops[row], lefts[column]].flatten(1)

    total: Tensor | None = None
    count = torch.zeros(int(due.sum()), dtype=torch.float64, device=x_t.device)
    for x, n in zip(windows(x_t).split(batch_size), windows(number).split(batch_size), strict=True):
        places = n >= 0
        p = logits_fn(x)[places].double().softmax(-1)
        if total is None:
            total = p.new_zeros(len(count), p.shape[1])
        total.index_add_(0, n[places], p)
        count.index_add_(0, n[places], torch.ones_like(p[:, 0]))
    if total is None:
        raise ValueError("no place is due")
    return total / count.unsqueeze(1)


def larger_trajectory(
    logits_fn: LogitsFn,
    x: Tensor,
    *,
    mask_id: int,
    window: tuple[int, int],
    stride: int,
    order: str,
    steps: int,
    start: int = 0,
    temp: float,
    batch_size: int,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Fill a grid x [B,H,W] int64 whose tokens are `mask_id` where unknown; yields it, [B,H,W], after each step.

    order: `raster` fills one place a step, row by row, as published (with stride 1); `random` reveals each masked token
    with probability 1/s for s = steps … 1, like `diffusion_trajectory`. What comes from softmax(log mixture / temp) is
    drawn. start: steps that were done before, to go on from the grid and the generator that they left.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {ORDERS}, not {order!r}")
    x = x.clone()
    for step in range(start, larger_steps(x.shape[1:], order, steps)):
        due = x == mask_id
        if order == "raster":
            due &= (torch.arange(x[0].numel(), device=x.device) == step).view(x.shape[1:])
        else:
            due &= torch.rand(x.shape, generator=generator, device=x.device) < 1 / (steps - step)
        if due.any():
            mixture = window_mixture(logits_fn, x, due, window=window, stride=stride, batch_size=batch_size)
            x[due] = draw_categorical(mixture.log(), temp, generator)
        yield x.clone()


def larger_steps(shape: torch.Size, order: str, steps: int) -> int:
    """Steps that a grid of a shape takes: one a place, or `steps` in random order."""
    return shape.numel() if order == "raster" else steps
