"""Samplers of priors that predict masked tokens (paper, section 3.3), by name.

One more sampler is a function as `Sampler` has it, and its name: in `SAMPLERS`, and in the settings' `sample_type`.
"""

from collections.abc import Iterable, Iterator
from itertools import starmap
from typing import Protocol

import torch
from torch import Tensor

from models.sampling.categorical import LogitsFn, Rule
from models.sampling.plans import Plan, diffusion_plan, mlm_plan, remask_times
from models.sampling.rounds import Denoiser, Drawing, run_plans

Start = tuple[torch.Generator, Tensor]  # what is random in an image, and its tokens [N] at the start, both on the CPU


class Sampler(Protocol):
    """Draws an image from each start, in order: ids [N] int64 on the denoiser's device.

    An image is a function of its start, whatever is drawn beside it. Tokens that are not masked at the start are given,
    and stay.
    """

    def __call__(self, denoiser: Denoiser, starts: Iterable[Start], drawing: Drawing) -> Iterator[Tensor]: ...


def diffusion(denoiser: Denoiser, starts: Iterable[Start], drawing: Drawing) -> Iterator[Tensor]:
    """Ancestral sampling: for s = steps … 1, reveal each masked token with probability 1/s."""
    steps = drawing.steps or denoiser.total_steps
    plans = (diffusion_plan(x, mask_id=denoiser.mask_id, steps=steps, generator=generator) for generator, x in starts)
    return run_plans(denoiser, plans, drawing)


def mlm(denoiser: Denoiser, starts: Iterable[Start], drawing: Drawing) -> Iterator[Tensor]:
    """For `steps` times t evenly from T down to 1: mask each token with probability t/T, draw what is masked.

    ValueError: a start has given tokens.
    """
    mask_id, T = denoiser.mask_id, denoiser.total_steps
    probabilities = [t / T for t in remask_times(T, drawing.steps or T)]

    def plan(generator: torch.Generator, x: Tensor) -> Plan:
        if not (x == mask_id).all():
            raise ValueError("sample_type 'mlm' would draw given tokens anew: use 'diffusion'")
        return mlm_plan(x, mask_id=mask_id, mask_probabilities=probabilities, generator=generator)

    return run_plans(denoiser, starmap(plan, starts), drawing)


SAMPLERS: dict[str, Sampler] = {"diffusion": diffusion, "mlm": mlm}


@torch.no_grad()
def diffusion_trajectory(
    logits_fn: LogitsFn, x_T: Tensor, *, mask_id: int, steps: int, rule: Rule, generator: torch.Generator,
    invalid: Tensor | None = None,
) -> Iterator[Tensor]:  # fmt: skip
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
