"""Draws from categorical distributions, exact to float64, and the generators that they come from."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def invert_cdf(logits: Tensor, temp: float, uniforms: Tensor) -> Tensor:
    """The code at which the running sum of softmax(logits / temp) passes a uniform number.

    logits: [...,K] of any float type; temp > 0; uniforms: [...] float64 in [0,1), one per draw. Returns [...] int64.

    Everything is float64: float32 noise of 24 bits cuts the tails off, and so lowers the effective temperature (Zheng
    et al. 2024, arXiv 2409.02908).
    """
    # Below 1e-200 nothing but the largest logits is drawn, and quotients would leave float64's range.
    cdf = (logits.double() / max(temp, 1e-200)).softmax(-1).cumsum(-1)
    total = cdf[..., -1]
    # Strictly below the total, which rounding may leave at a little less than 1.
    target = torch.minimum(uniforms * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cdf, target.unsqueeze(-1), right=True).squeeze(-1)


def draw_categorical(logits: Tensor, temp: float, generator: torch.Generator) -> Tensor:
    """One draw from softmax(logits / temp) per row: [...,K] → [...] int64. temp > 0."""
    uniforms = torch.rand(logits.shape[:-1], dtype=torch.float64, generator=generator, device=logits.device)
    return invert_cdf(logits, temp, uniforms)


def check_temperature(temp: float) -> None:
    """ValueError unless a temperature is one to divide logits by."""
    if not (math.isfinite(temp) and temp > 0):
        raise ValueError(f"temp must be a number above 0, not {temp}")


def image_generators(n: int, generator: torch.Generator | None) -> Iterator[torch.Generator]:
    """A CPU generator for each of n images, seeded by `generator`, or for None by torch's global stream."""
    device = generator.device if generator else "cpu"
    for seed in torch.randint(2**62, (n,), generator=generator, device=device).tolist():
        yield torch.Generator().manual_seed(seed)
