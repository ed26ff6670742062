"""Absorbing-state diffusion over codes: the forward process, the objectives and the bound (paper, section 3.2).

The forward process replaces each token by the mask id, and keeps it there: after t of T steps a token is masked with
probability t/T. The network predicts every token at once from what is left; it does not see t.

The rate t/T is also in the weights of the bound (`objective`, `models.prior.bounds`), and in when samplers reveal a
token (`models.sampling`): a schedule of another rate changes them too.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.prior.prior import PriorLoss
from models.prior.transformer import Transformer

LOSS_TYPES = ("reweighted_elbo", "elbo", "mlm")
REWEIGHTINGS = ("published", "paper")
MASK_SCHEDULES = ("random", "fixed")


def sample_time(batch: int, total_steps: int, generator: torch.Generator) -> Tensor:
    """t uniform on 1..T: [batch] int64 on the generator's device."""
    return torch.randint(1, total_steps + 1, (batch,), generator=generator, device=generator.device)


def sample_mask(t: Tensor, total_steps: int, tokens: int, schedule: str, generator: torch.Generator) -> Tensor:
    """Draw which places are masked at times t [B] int64 in 1..T, q(x_t | x_0): [B,tokens] bool.

    `random`: each place with probability t/T; `fixed`: exactly round(t/T · tokens), at least one, uniformly chosen.
    """
    noise = torch.rand((len(t), tokens), generator=generator, device=t.device)
    fraction = t.to(torch.float64).unsqueeze(1) / total_steps
    if schedule == "random":
        return noise < fraction
    if schedule == "fixed":
        count = (fraction * tokens).round().clamp(min=1)
        return noise.argsort(dim=1).argsort(dim=1) < count
    raise ValueError(f"schedule must be one of {MASK_SCHEDULES}, not {schedule!r}")


def masked_cross_entropy(logits: Tensor, x_0: Tensor, mask: Tensor) -> Tensor:
    """−log p(x_0 | x_t) summed over the masked places: [B,N,K], [B,N], [B,N] bool → [B] nats."""
    target = x_0.masked_fill(~mask, -1).flatten()
    nats = F.cross_entropy(logits.flatten(0, 1).float(), target, ignore_index=-1, reduction="none")
    return nats.view(x_0.shape).sum(1)


def cross_entropy_of(net: Transformer, x_t: Tensor, x_0: Tensor, mask: Tensor) -> Tensor:
    """`masked_cross_entropy` of a network's prediction from x_t [B,N], by the fastest way that a device has."""
    if x_0.is_cuda:  # one shape whatever is masked, and no wait to learn how much is
        return masked_cross_entropy(net(x_t), x_0, mask)
    nats = F.cross_entropy(net(x_t, mask), x_0[mask], reduction="none")
    return nats.new_zeros(mask.shape).masked_scatter(mask, nats).sum(1)


def objective(
    cross_entropy: Tensor, t: Tensor, mask: Tensor, *, total_steps: int, loss_type: str, reweighting: str = "published"
) -> PriorLoss:
    """Objective (paper, equations 5 to 8) and bound at given times and masks.

    cross_entropy: [B] nats, summed over the masked places; t: [B] int64 in 1..T; mask: [B,N] bool. `reweighted_elbo`
    weighs by (T − t + 1) / T in `paper`, and by 1 − t/T as `published`, what the paper's models were trained with; no
    gradient at t = T.

    With `random` masks the bound is the T-step one. With `fixed` ones it is, where T = N, that of continuous time (see
    `models.prior.bounds`); where T is not N, rounding t/T · N leaves an approximation, which may lie a little below it.
    """
    per_token = cross_entropy / (math.log(2) * mask.shape[1])
    vb_loss = per_token * total_steps / t
    if loss_type == "elbo":
        loss = vb_loss
    elif loss_type == "reweighted_elbo":
        if reweighting not in REWEIGHTINGS:
            raise ValueError(f"reweighting must be one of {REWEIGHTINGS}, not {reweighting!r}")
        shift = 1 if reweighting == "paper" else 0
        loss = (total_steps - t + shift) / total_steps * per_token
    elif loss_type == "mlm":
        loss = cross_entropy / mask.sum(1).clamp(min=1)
    else:
        raise ValueError(f"loss_type must be one of {LOSS_TYPES}, not {loss_type!r}")
    return PriorLoss(loss, vb_loss, cross_entropy)
