"""Upper bounds on −log p(codes) by a few network evaluations: the T-step bound, and its limit in continuous time.

Both are sums over levels of masking of the cross entropy at the masked places. The T-step bound (paper, section 3.2)
masks each place with probability t/T and weighs by 1/t. In continuous time only the order matters in which tokens
appear, so that exactly k of N places are masked, k uniform, weighed by N/k (Hoogeboom et al. 2022, arXiv 2110.02037):
less varies, and the bound is at most the T-step one. Masking n of n levels at level n, both are the same sum.
"""

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
    bound = torch.zeros(x_0.shape[0], dtype=torch.float64, device=x_0.device)
    for t, noise in enumerate(uniforms, start=1):
        mask = noise < t / len(uniforms)
        bound += masked_cross_entropy(logits_fn(x_0.masked_fill(mask, mask_id)), x_0, mask).double() / t
    return bound


def estimate_bound(
    logits_fn: LogitsFn, x_0: Tensor, bound: str, *, total_steps: int, mask_id: int, evaluations: int,
    generator: torch.Generator,
) -> CodeLength:  # fmt: skip
    """Estimate a bound on −log p(x_0) of codes x_0 [B,N] int64 with `evaluations` of the network per image.

    bound: `t_step` (the only one that `total_steps` matters for) or `continuous`. The evaluations make two independent
    estimates, each stratified over the levels of masking; their mean is the value, their difference its error.

    Raises:
        ValueError: no such bound; fewer than 2 evaluations, or more than twice the terms of its sum.
    """
    if evaluations < 2:
        raise ValueError(f"an estimate and its error need at least 2 evaluations, not {evaluations}")
    if bound not in CODE_BOUNDS:
        raise ValueError(f"bound must be one of {CODE_BOUNDS}, not {bound!r}")
    batch, tokens = x_0.shape
    # Of N levels, `fixed` masks at level k exactly round(k/N · N) = k places.
    levels, schedule = (total_steps, "random") if bound == "t_step" else (tokens, "fixed")

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
