"""Samplers that go through all steps for all images together (paper, section 3.3).

`models.sampling.events` draws the same distribution with fewer evaluations; here every state on the way can be seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from models.prior.diffusion import LogitsFn
from models.prior.transformer import Transformer
from models.sampling.categorical import Wrap, as_it_is, draw_categorical, invert_cdf


@torch.no_grad()
def diffusion_trajectory(
    logits_fn: LogitsFn,
    x_T: Tensor,
    *,
    mask_id: int,
    steps: int,
    temp: float,
    generator: torch.Generator,
    invalid: Tensor | None = None,
) -> Iterator[Tensor]:
    """Ancestral sampling: for s = steps … 1, reveal each masked token with probability 1/s, drawn from p(x_0 | x_t).

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
            logits = logits_fn(x[rows])
            x[due] = draw_categorical(logits[due[rows]], temp, generator, invalid)
        yield x.clone()


@torch.no_grad()
def sample_autoregressive(
    net: Transformer,
    uniforms: Tensor,
    *,
    temp: float,
    static: bool = False,
    wrap: Wrap = as_it_is,
    invalid: Tensor | None = None,
) -> Tensor:
    """Draw the tokens one by one in raster order, keeping keys and values of those before.

    uniforms: [B,N] float64 in [0,1) on the model's device, the random number of each token. `static`: with the same
    shapes at every place, for compiled code; `wrap` is given what then gives a place's logits. `invalid`: see
    `invert_cdf`. Returns [B,N] int64.
    """
    batch, tokens = uniforms.shape
    ids = torch.empty((batch, tokens), dtype=torch.int64, device=uniforms.device)
    cache = net.new_cache(batch)
    logits = net.next_logits(ids[:, :0], cache)
    following = wrap(partial(net.following_logits, cache=cache))
    for place in range(tokens):
        ids[:, place] = invert_cdf(logits[:, -1], temp, uniforms[:, place], invalid)
        if place + 1 == tokens:
            break
        new = ids[:, place : place + 1]
        if static:
            logits = following(new, torch.tensor([place + 1]).to(ids.device, non_blocking=True))
        else:
            logits = net.next_logits(new, cache)
    return ids
