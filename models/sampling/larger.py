"""Grids of codes larger than the prior's own, by a mixture of what it predicts in windows.

Windows of the prior's own size cover the grid; where they overlap, their distributions are averaged (as published).
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from models.sampling.categorical import LogitsAtFn, Rule

ORDERS = ("raster", "random")


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First places of windows that cover an axis, every `stride`; ValueError unless 1 ≤ stride ≤ window ≤ length."""
    if not 1 <= stride <= window <= length:
        raise ValueError(f"need 1 ≤ stride ≤ window ≤ length, got {stride}, {window}, {length}")
    return sorted({*range(0, length - window + 1, stride), length - window})


@torch.no_grad()
def window_mixture(
    logits_at: LogitsAtFn, x_t: Tensor, due: Tensor, *, window: tuple[int, int], stride: int, batch_size: int
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
        seen = n >= 0
        # Due places first, and of every window as many places as the one with the most of them has.
        places = seen.logical_not().long().argsort(dim=1, stable=True)[:, : int(seen.sum(1).max())]
        numbers, seen = n.gather(1, places), seen.gather(1, places)
        p = logits_at(x, places)[seen].double().softmax(-1)
        if total is None:
            total = p.new_zeros(len(count), p.shape[1])
        total.index_add_(0, numbers[seen], p)
        count.index_add_(0, numbers[seen], torch.ones_like(p[:, 0]))
    assert total is not None, "no place is due"
    return total / count.unsqueeze(1)


def reveal_plan(shape: tuple[int, int], order: str, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """When each place of a grid is drawn, and by which random number: [H,W] int64 and [H,W] float64 in [0,1).

    order: `raster` draws one place a step, row by row, as published; `random` each at a step that is uniform on
    0..steps−1, as `diffusion_plan` does. The random numbers come from a CPU generator.
    """
    uniforms = torch.rand(shape, dtype=torch.float64, generator=generator)
    if order == "raster":
        return torch.arange(uniforms.numel()).view(shape), uniforms
    if order == "random":
        return torch.randint(steps, shape, generator=generator), uniforms
    raise ValueError(f"order must be one of {ORDERS}, not {order!r}")


def larger_trajectory(
    logits_at: LogitsAtFn, x: Tensor, reveal: Tensor, uniforms: Tensor, *, mask_id: int, window: tuple[int, int],
    stride: int, rule: Rule, batch_size: int, invalid: Tensor | None = None,
) -> Iterator[Tensor]:  # fmt: skip
    """Draw the masked tokens of a grid x [B,H,W] int64 from their mixture by a rule, step by step.

    reveal, uniforms: [B,H,W], each image's `reveal_plan`. Yields the grid after each step. `invalid`: see `invert_cdf`.
    With order `raster` and stride 1 this is the published algorithm.
    """
    x = x.clone()
    for step in range(int(reveal.max()) + 1):
        due = (reveal == step) & (x == mask_id)
        if due.any():
            mixture = window_mixture(logits_at, x, due, window=window, stride=stride, batch_size=batch_size)
            x[due] = rule.draw(mixture.log(), uniforms[due], invalid)
        yield x.clone()
