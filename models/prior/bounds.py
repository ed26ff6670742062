"""Upper bounds on −log p(codes) by a few network evaluations: the T-step bound, and its limit in continuous time.

Both are sums over levels of masking of the cross entropy at the masked places. The T-step bound (paper, section 3.2)
masks each place with probability t/T and weighs by 1/t. In continuous time only the order matters in which tokens
appear, so that exactly k of N places are masked, k uniform, weighed by N/k (Hoogeboom et al. 2022, arXiv 2110.02037):
less varies, and the bound is at most the T-step one. Masking n of n levels at level n, both are the same sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.prior.diffusion import masked_cross_entropy, sample_mask
from models.prior.prior import CodeLength
from models.sampling.categorical import LogitsFn

CODE_BOUNDS = ("t_step", "continuous")


def bound_nats(logits_fn: LogitsFn, x_0: Tensor, uniforms: Tensor, *, mask_id: int) -> Tensor:
    """One-draw estimate of the T-step bound on −log p(x_0), Σ_t CE_t / t: [B] float64, nats.

    x_0: [B,N] int64; uniforms: [T,B,N] in [0,1): place j of image b is masked at step t where uniforms[t−1,b,j] < t/T.
    """
    total_steps = len(uniforms)
    bound = torch.zeros(x_0.shape[0], dtype=torch.float64, device=x_0.device)
    for t, noise in enumerate(uniforms, start=1):
        mask = noise < t / total_steps
        bound += masked_cross_entropy(logits_fn(x_0.masked_fill(mask, mask_id)), x_0, mask).double() / t
    return bound


def estimate_bound(
    logits_fn: LogitsFn,
    x_0: Tensor,
    bound: str,
    *,
    total_steps: int,
    mask_id: int,
    evaluations: int,
    generator: torch.Generator,
) -> CodeLength:
    """Estimate a bound on −log p(x_0) of codes x_0 [B,N] int64 with `evaluations` ≥ 2 of the network per image.

    bound: `t_step` (the only one that `total_steps` matters for) or `continuous`. The evaluations make two independent
    estimates, each stratified over the levels of masking; their mean is the value, their difference its error.
    """
    if evaluations < 2:
        raise ValueError(f"an estimate and its error need at least 2 evaluations, not {evaluations}")
    batch, tokens = x_0.shape
    levels = bound_levels(bound, total_steps, tokens)
    schedule = "random" if bound == "t_step" else "fixed"  # k of N levels: round(k/N · N) = k places exactly

    def stratified(strata: int) -> Tensor:
        """One level per image from each of `strata` even parts of 1..levels: [B] float64, nats."""
        if strata > levels:
            raise ValueError(f"{strata} strata are more than the {levels} terms of the sum")
        nats = torch.zeros(batch, dtype=torch.float64, device=x_0.device)
        for stratum in range(strata):
            first, stop = (1 + levels * edge // strata for edge in (stratum, stratum + 1))
            level = torch.randint(first, stop, (batch,), generator=generator, device=x_0.device)
            mask = sample_mask(level, levels, tokens, schedule, generator)
            cross_entropy = masked_cross_entropy(logits_fn(x_0.masked_fill(mask, mask_id)), x_0, mask)
            nats += (stop - first) * cross_entropy.double() / level
        return nats

    halves = [stratified(count) for count in (evaluations - evaluations // 2, evaluations // 2)]
    return CodeLength((halves[0] + halves[1]) / 2, (halves[0] - halves[1]).square() / 4)


def bound_levels(bound: str, total_steps: int, tokens: int) -> int:
    """Number of terms in a bound's sum: more evaluations than twice as many are not possible.

    Raises:
        ValueError: no such bound.
    """
    if bound not in CODE_BOUNDS:
        raise ValueError(f"bound must be one of {CODE_BOUNDS}, not {bound!r}")
    return total_steps if bound == "t_step" else tokens
