"""Samplers of priors that predict masked tokens (paper, section 3.3), by name.

One more sampler is a function as `Sampler` has it, and its name: in `SAMPLERS`, and in the settings' `sample_type`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.sampling.categorical import LogitsAtFn, LogitsFn, Rule
from models.sampling.plans import diffusion_plan, mlm_plan, remask_times
from models.sampling.rounds import Batching, run_plans

Start = tuple[torch.Generator, Tensor]  # what is random in an image, and its tokens [N] at the start, both on the CPU


@dataclass(frozen=True)
class Denoiser:
    """What a sampler draws from."""

    logits_at: LogitsAtFn
    mask_id: int  # K
    total_steps: int  # T
    device: torch.device


class Sampler(Protocol):
    """Draws an image from each start, in order: ids [N] int64 on the denoiser's device.

    An image is a function of its start, whatever is drawn beside it. Tokens that are not masked at the start are given,
    and stay.
    """

    def __call__(
        self, denoiser: Denoiser, starts: Iterable[Start], *, steps: int, rule: Rule, batching: Batching
    ) -> Iterator[Tensor]: ...


def diffusion(
    denoiser: Denoiser, starts: Iterable[Start], *, steps: int, rule: Rule, batching: Batching
) -> Iterator[Tensor]:
    """Ancestral sampling: for s = steps … 1, reveal each masked token with probability 1/s."""
    mask_id = denoiser.mask_id
    plans = (diffusion_plan(x, mask_id=mask_id, steps=steps, generator=generator) for generator, x in starts)
    return run_plans(denoiser.logits_at, plans, rule, batching, mask_id=mask_id, device=denoiser.device)


def mlm(denoiser: Denoiser, starts: Iterable[Start], *, steps: int, rule: Rule, batching: Batching) -> Iterator[Tensor]:
    """For `steps` times t evenly from T down to 1: mask each token with probability t/T, and draw what is masked.

    Raises:
        ValueError: a start has given tokens, which would be drawn anew.
    """
    mask_id, total_steps = denoiser.mask_id, denoiser.total_steps
    probabilities = [t / total_steps for t in remask_times(total_steps, steps)]

    def blank(x: Tensor) -> Tensor:
        if not (x == mask_id).all():
            raise ValueError("sample_type 'mlm' would draw given tokens anew: use 'diffusion'")
        return x

    plans = (
        mlm_plan(blank(x), mask_id=mask_id, mask_probabilities=probabilities, generator=generator)
        for generator, x in starts
    )
    return run_plans(denoiser.logits_at, plans, rule, batching, mask_id=mask_id, device=denoiser.device)


SAMPLERS: dict[str, Sampler] = {"diffusion": diffusion, "mlm": mlm}


@torch.no_grad()
def diffusion_trajectory(
    logits_fn: LogitsFn,
    x_T: Tensor,
    *,
    mask_id: int,
    steps: int,
    rule: Rule,
    generator: torch.Generator,
    invalid: Tensor | None = None,
) -> Iterator[Tensor]:
    """`diffusion` step by step for all images together, so that every state on the way can be seen.

    x_T: [B,N] int64 start tokens; those that are not `mask_id` stay as they are. Yields x_T itself, then the tokens
    after each of the steps, each [B,N]; the last one is the sample. `invalid`: see `invert_cdf`.
    """
    x = x_T.clone()
    yield x.clone()
    for s in range(steps, 0, -1):
        due = (x == mask_id) & (torch.rand(x.shape, generator=generator, device=x.device) < 1 / s)
        rows = due.any(1).nonzero().squeeze(1)
        # The network does not see the time: an image of which nothing is due needs no evaluation.
        if len(rows):
            logits = logits_fn(x[rows])[due[rows]]
            uniforms = torch.rand(len(logits), dtype=torch.float64, generator=generator, device=x.device)
            x[due] = rule.draw(logits, uniforms, invalid)
        yield x.clone()
