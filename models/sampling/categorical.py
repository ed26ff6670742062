"""What is drawn where a token is due: draws from categorical distributions, exact to float64, and their generators."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

LogitsFn = Callable[[Tensor], Tensor]  # x_t [B,N] int64 → logits [B,N,K] float
LogitsAtFn = Callable[[Tensor, Tensor], Tensor]  # x_t [B,N] and places [B,m], both int64 → logits there, [B,m,K]


@dataclass(frozen=True)
class Rule:
    """Which distribution a code is drawn from, given its logits: softmax(logits / temp); ValueError unless temp > 0."""

    temp: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temp) and self.temp > 0):
            raise ValueError(f"temp must be a number above 0, not {self.temp}")

    def probabilities(self, logits: Tensor) -> Tensor:
        """[...,K] of any float type → [...,K] float64, NaN where logits hold NaN or +inf.

        float32 noise of 24 bits cuts the tails off, and so lowers the effective temperature (Zheng et al. 2024, arXiv
        2409.02908): hence float64.
        """
        # Below 1e-200 nothing but the largest logits is drawn, and quotients would leave float64's range.
        return (logits.double() / max(self.temp, 1e-200)).softmax(-1)

    def draw(self, logits: Tensor, uniforms: Tensor, invalid: Tensor | None = None) -> Tensor:
        """A code for each row of logits [...,K]: [...] int64; see `invert_cdf`."""
        return invert_cdf(self.probabilities(logits), uniforms, invalid)


RULE = Rule()


def invert_cdf(p: Tensor, uniforms: Tensor, invalid: Tensor | None = None) -> Tensor:
    """The code at which the running sum of p [...,K] passes a uniform number's share of the whole.

    p: float64; uniforms: [...] float64 in [0,1), one per draw. Returns [...] int64 in 0..K-1, also where p is NaN: the
    number of such draws is added to `invalid`, an int64 scalar on p's device. Nothing waits for the device.
    """
    cdf = p.cumsum(-1)
    total = cdf[..., -1]
    if invalid is not None:
        invalid += total.isnan().sum()
    # Strictly below the total, which rounding may leave at a little less than 1.
    target = torch.minimum(uniforms * total, total.nextafter(torch.zeros_like(total)))
    ids = torch.searchsorted(cdf, target.unsqueeze(-1), right=True).squeeze(-1)
    return ids.clamp(max=p.shape[-1] - 1)  # NaN sorts behind every number: it would draw K, which is the mask


def image_generators(n: int, generator: torch.Generator | None) -> Iterator[torch.Generator]:
    """A CPU generator for each of n images, seeded by `generator`, or for None by torch's global stream."""
    if n < 0:
        raise ValueError(f"the number of samples must be at least 0, not {n}")
    device = generator.device if generator else "cpu"
    for seed in torch.randint(2**62, (n,), generator=generator, device=device).tolist():
        yield torch.Generator().manual_seed(seed)
