"""Networks, objectives, the bound and the mixture of windows against the authors' code."""

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
from models.vqgan.gaussian import gaussian_nll_nats
from models.vqgan.quantizers import GumbelQuantizer, VectorQuantizer, id_counts, perplexity
from models.vqgan.vqgan import hinge_discriminator_loss


def test_encoder_and_quantiser(reference: Any) -> None:
    autoencoder, x = reference.vqgan().ae, reference.expected["x"]
    with torch.no_grad():
        z = autoencoder.encoder(x)
        quantized = autoencoder.quantize(z)
    reference.check({"z": z, "indices": quantized.ids, "quantized": quantized.z_q})
    reference.check({"indices": autoencoder.encode(x)})
    ids = reference.expected["indices"]
    reference.check({"quantized": autoencoder.quantize.lookup(ids, autoencoder.latent_size)})


def test_quantiser_terms(reference: Any) -> None:
    quantizer, z = reference.vqgan().ae.quantize, reference.expected["z"]
    quantized = quantizer(z)
    if isinstance(quantizer, GumbelQuantizer):
        reference.check({"gumbel_logits": quantizer.logits(z), "gumbel_kl": quantized.loss})
    else:
        counts = id_counts(quantized.ids, reference.hparams["codebook_size"])
        reference.check({"codebook_loss": quantized.loss, "perplexity": perplexity(counts)})


def test_quantiser_gradients(nearest_reference: Any) -> None:
    quantizer = nearest_reference.vqgan().ae.quantize
    assert isinstance(quantizer, VectorQuantizer)
    z = nearest_reference.expected["z"].clone().requires_grad_()
    quantized = quantizer(z)
    a = torch.arange(z.numel()).reshape(z.shape) / z.numel()
    (quantized.loss + (quantized.z_q * a).sum()).backward()
    nearest_reference.check({"quantizer_z_grad": z.grad, "quantizer_codebook_grad": quantizer.codebook.grad})


def test_generator_and_its_density(reference: Any) -> None:
    autoencoder, expected = reference.vqgan().ae, reference.expected
    with torch.no_grad():
        x_hat, logsigma = autoencoder.generator.distribution(expected["quantized"])
        decoded = autoencoder.decode(expected["indices"])
    reference.check({"x_hat": x_hat, "logsigma": logsigma})
    reference.check({"pixel_nll_nats": gaussian_nll_nats(expected["x"], x_hat, logsigma)})
    torch.testing.assert_close(decoded, expected["x_hat"].clamp(0, 1), rtol=1e-4, atol=1e-5)


def test_discriminator(reference: Any) -> None:
    discriminator, expected = reference.vqgan().disc, reference.expected
    fake, real = expected["x_hat"], expected["x"]
    with torch.no_grad():
        reference.check({"disc_eval_fake": discriminator(fake), "disc_eval_real": discriminator(real)})
        discriminator.train()
        logits_fake, logits_real = discriminator(fake), discriminator(real)
    reference.check({"disc_train_fake": logits_fake, "disc_train_real": logits_real})
    reference.check({"hinge_d_loss": hinge_discriminator_loss(logits_real, logits_fake)})
    reference.check({"disc_running_mean_after": discriminator.main[3].running_mean})


@pytest.mark.parametrize("weight_max", [1.0, 1e9])
def test_generator_objective(reference: Any, weight_max: float) -> None:
    vqgan = reference.vqgan(disc_weight_max=weight_max)
    vqgan.disc.train()
    terms = vqgan.generator_losses(reference.expected["x"], step=0)
    terms.loss.backward()
    reference.check({"l1": terms.l1, "g_loss": terms.g_loss})
    reference.check({f"adaptive_weight_max{weight_max:.0g}".replace("+0", ""): terms.disc_weight})
    if weight_max == 1:
        generator = vqgan.ae.generator
        reference.check({"generator_last_conv_grad": generator.last_layer.grad})
        reference.check({"generator_first_conv_grad": generator.blocks[0].weight.grad})


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
