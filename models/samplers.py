"""Samplers: functions from start tokens and a logits function to codes (paper, section 3.3).

Each runs as well with a fake model. Logits are taken in float32; categorical draws are made in float64, since float32
Gumbel noise lowers the effective temperature (Zheng et al. 2024, arXiv 2409.02908).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.diffusion import LogitsFn
from models.transformer import KeyValue, Transformer


def own_generator(generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    """`generator`, or for None one on `device` that is seeded by torch's global stream."""
    if generator is not None:
        return generator
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, ())))


def draw_categorical(logits: Tensor, temp: float, generator: torch.Generator) -> Tensor:
    """One draw from softmax(logits / temp) per row: [...,K] → [...] int64. temp > 0."""
    scores = logits.double() / temp
    race = torch.empty_like(scores).exponential_(generator=generator)
    return (scores - race.log()).argmax(-1)


@torch.no_grad()
def sample_diffusion(
    logits_fn: LogitsFn, x_T: Tensor, *, mask_id: int, steps: int, temp: float, generator: torch.Generator
) -> Tensor:
    """Ancestral sampling: for s = steps … 1, reveal each masked token with probability 1/s, drawn from p(x_0 | x_t).

    x_T: [B,N] int64 start tokens; those that are not `mask_id` stay as they are. Returns [B,N] int64.
    """
    *_, x = diffusion_trajectory(logits_fn, x_T, mask_id=mask_id, steps=steps, temp=temp, generator=generator)
    return x


@torch.no_grad()
def diffusion_trajectory(
    logits_fn: LogitsFn, x_T: Tensor, *, mask_id: int, steps: int, temp: float, generator: torch.Generator
) -> Iterator[Tensor]:
    """The states of `sample_diffusion`: x_T itself, then the tokens after each of the steps, each [B,N]."""
    x = x_T.clone()
    yield x.clone()
    for s in range(steps, 0, -1):
        due = (x == mask_id) & (torch.rand(x.shape, generator=generator, device=x.device) < 1 / s)
        rows = due.any(1).nonzero().squeeze(1)
        # The network does not see the time: an image of which nothing is due needs no evaluation.
        if len(rows):
            logits = logits_fn(x[rows])
            x[due] = draw_categorical(logits[due[rows]], temp, generator)
        yield x.clone()


def remask_times(total_steps: int, steps: int) -> list[int]:
    """`steps` times, evenly from T down to 1."""
    return torch.linspace(total_steps, 1, steps, dtype=torch.float64).round().long().tolist()


@torch.no_grad()
def sample_mlm(
    logits_fn: LogitsFn,
    x_T: Tensor,
    *,
    mask_id: int,
    mask_probabilities: Sequence[float],
    temp: float,
    generator: torch.Generator,
) -> Tensor:
    """Mask and fill, again and again: each token is masked with the step's probability, and drawn from p(x_0 | x_t).

    x_T: [B,N] int64 start tokens; those that are `mask_id` are filled at the first step. Returns [B,N] int64.
    """
    x = x_T.clone()
    for probability in mask_probabilities:
        mask = (torch.rand(x.shape, generator=generator, device=x.device) < probability) | (x == mask_id)
        rows = mask.any(1).nonzero().squeeze(1)
        if len(rows):
            logits = logits_fn(x[rows].masked_fill(mask[rows], mask_id))
            x[mask] = draw_categorical(logits[mask[rows]], temp, generator)
    return x


@torch.no_grad()
def sample_autoregressive(
    net: Transformer, batch: int, tokens: int, *, temp: float, generator: torch.Generator
) -> Tensor:
    """Draw the tokens one by one in raster order, keeping keys and values of those before: [batch,tokens] int64."""
    ids = torch.empty((batch, 0), dtype=torch.int64, device=generator.device)
    new = ids
    past: list[KeyValue] | None = None
    for _ in range(tokens):
        logits, past = net.next_logits(new, past)
        new = draw_categorical(logits[:, -1], temp, generator).unsqueeze(1)
        ids = torch.cat([ids, new], dim=1)
    return ids
