"""Both priors, their objectives and the bound against the authors' code."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from models.ema import EMA
from models.prior.bounds import bound_nats
from models.prior.diffusion import LOSS_TYPES
from models.prior.prior import Codes, Draws
from models.sampling.categorical import Rule
from models.sampling.larger import window_mixture


def test_denoiser(reference: Any) -> None:
    prior, expected = reference.prior("absorbing"), reference.expected
    assert prior.tokens == reference.hparams["block_size"]
    reference.check({"x_t": expected["indices"].masked_fill(expected["mask"], prior.mask_id)})
    with torch.no_grad():
        reference.check({"logits": prior.logits(expected["x_t"])})


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_objectives(reference: Any, loss_type: str) -> None:
    prior, expected = reference.prior("absorbing"), reference.expected
    prior.loss_type = loss_type
    with torch.no_grad():
        losses = prior.losses(Codes(expected["indices"]), Draws(expected["t"], expected["mask"]))
    reference.check({f"loss_{loss_type}": losses.loss.mean(), "vb_loss": losses.vb_loss.mean()})
    reference.check({"cross_entropy_nats_sum": losses.cross_entropy})


def test_bound(reference: Any) -> None:
    prior, expected = reference.prior("absorbing"), reference.expected
    with torch.no_grad():
        nats = bound_nats(prior.logits, expected["indices"], expected["elbo_uniforms"], mask_id=prior.mask_id)
    reference.check({"elbo_nats": nats})


def test_autoregressive_prior(reference: Any) -> None:
    prior, ids = reference.prior("autoregressive"), reference.expected["indices"]
    with torch.no_grad():
        reference.check({"ar_logits": prior.logits(ids)})
        reference.check({"ar_loss_bits_per_token": prior.losses(Codes(ids)).loss.mean()})


def test_moving_average(reference: Any) -> None:
    expected = reference.expected
    ema = EMA(nn.ParameterList([expected["ema_start"].clone()]), beta=0.995)
    for step, weights in enumerate(expected["ema_inputs"], start=1):
        ema.follow(nn.ParameterList([weights]), step)
    reference.check({"ema_end": ema.model[0]})


def test_mixture_of_windows(reference: Any) -> None:
    """Distributions at every place of a grid larger than the prior's; those of places not masked too."""
    prior, expected = reference.prior("absorbing"), reference.expected
    x_t, side = expected["big_x_t"], math.isqrt(prior.tokens)
    everywhere = torch.ones_like(x_t, dtype=torch.bool)
    mixture = window_mixture(prior.logits_at, x_t, everywhere, window=(side, side), stride=1, batch_size=64)
    mixture = mixture.view(*x_t.shape, -1)
    cooled = Rule(0.8).probabilities(mixture.log())
    reference.check({"big_mixture_probs": mixture, "big_mixture_probs_temp08": cooled})
