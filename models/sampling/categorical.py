"""Draws from categorical distributions, exact to float64, and the generators that they come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

Wrap = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]  # a function → one that does the same, faster


def as_it_is(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The `Wrap` that does nothing."""
    return function


def invert_cdf(logits: Tensor, temp: float, uniforms: Tensor, invalid: Tensor | None = None) -> Tensor:
    """The code at which the running sum of softmax(logits / temp) passes a uniform number.

    logits: [...,K] of any float type; temp > 0; uniforms: [...] float64 in [0,1), one per draw. Returns [...] int64 in
    0..K-1, also where logits hold NaN or +inf and so are no distribution: the number of such draws is added to
    `invalid`, an int64 scalar on the logits' device. Nothing waits for the device.

    Everything is float64: float32 noise of 24 bits cuts the tails off, and so lowers the effective temperature (Zheng
    et al. 2024, arXiv 2409.02908).
    """
    # Below 1e-200 nothing but the largest logits is drawn, and quotients would leave float64's range.
    cdf = (logits.double() / max(temp, 1e-200)).softmax(-1).cumsum(-1)
    total = cdf[..., -1]
    if invalid is not None:
        invalid += total.isnan().sum()
    # Strictly below the total, which rounding may leave at a little less than 1.
    target = torch.minimum(uniforms * total, total.nextafter(torch.zeros_like(total)))
    ids = torch.searchsorted(cdf, target.unsqueeze(-1), right=True).squeeze(-1)
    return ids.clamp(max=logits.shape[-1] - 1)  # NaN sorts behind every number: it would draw K, which is the mask


def draw_categorical(logits: Tensor, temp: float, generator: torch.Generator, invalid: Tensor | None = None) -> Tensor:
    """One draw from softmax(logits / temp) per row: [...,K] → [...] int64. temp > 0; `invalid` as for `invert_cdf`."""
    uniforms = torch.rand(logits.shape[:-1], dtype=torch.float64, generator=generator, device=logits.device)
    return invert_cdf(logits, temp, uniforms, invalid)


def check_sampling(temp: float, batch_size: int) -> None:
    """ValueError unless logits can be divided by a temperature, and a batch holds an image."""
    if not (math.isfinite(temp) and temp > 0):
        raise ValueError(f"temp must be a number above 0, not {temp}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")


def stack_samples(samples: Iterable[Tensor], tokens: int, invalid: Tensor) -> Tensor:
    """Samples [N], N = `tokens`, as one tensor [n,N] int64; [0,N] of none.

    Raises:
        FloatingPointError: `invalid` has counted draws from logits that are not finite.
    """
    drawn = list(samples)
    if invalid:
        raise FloatingPointError("the logits are not finite: use float32 or bfloat16, or other weights")
    return torch.stack(drawn) if drawn else invalid.new_empty((0, tokens))


def image_generators(n: int, generator: torch.Generator | None) -> Iterator[torch.Generator]:
    """A CPU generator for each of n images, seeded by `generator`, or for None by torch's global stream."""
    if n < 0:
        raise ValueError(f"the number of samples must be at least 0, not {n}")
    device = generator.device if generator else "cpu"
    for seed in torch.randint(2**62, (n,), generator=generator, device=device).tolist():
        yield torch.Generator().manual_seed(seed)
