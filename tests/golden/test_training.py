"""Eight updates of each stage against the authors' code: losses, weights, averages, histories."""

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from models.prior import absorbing
from models.prior.prior import Codes, Draws
from utils.runs.job import Job
from utils.training.prior_trainer import PriorTrainer
from utils.training.vqgan_trainer import VQGANTrainer

EMA = {"ema": True, "ema_beta": 0.995, "steps_per_update_ema": 2}
CPU = torch.device("cpu")

# Without a true gradient, and moved by Adam on rounding noise. A GroupNorm with one channel per group takes away the
# mean of its channel, and with it the bias directly before it; softmax takes away what all keys share, and with it
# their bias.
VQGAN_WITHOUT_GRADIENT = [f"ae.encoder.blocks.{name}.bias" for name in ("1.conv1", "4.k", "6.k")]
VQGAN_WITHOUT_GRADIENT += [
    f"ae.generator.blocks.{name}.bias" for name in ("7.conv1", "7.conv2", "7.conv_out", "2.k", "5.k")
]
PRIOR_WITHOUT_GRADIENT = [f"_denoise_fn.blocks.{block}.attn.key.bias" for block in range(2)]


def check_norms(model: torch.nn.Module, names: list[str], norms: Tensor, without_gradient: Iterable[str]) -> None:
    parameters = dict(model.named_parameters())
    assert set(parameters) == set(names)
    assert set(without_gradient) < set(names)
    for name, norm in zip(names, norms.tolist(), strict=True):
        tolerance = 5e-3 if name in without_gradient else 1e-4
        assert parameters[name].double().norm().item() == pytest.approx(norm, rel=tolerance, abs=1e-12), name


def test_vqgan(monkeypatch: pytest.MonkeyPatch, nearest_reference: Any) -> None:
    training = nearest_reference.training
    settings = nearest_reference.vqgan_settings(lr=1e-4, disc_start_step=3, perceptual_weight=0.0, **EMA)
    vqgan = nearest_reference.vqgan(disc_start_step=3)
    trainer = VQGANTrainer(Job(settings, CPU), settings.training, settings.vqgan, vqgan)
    monkeypatch.setattr(trainer, "_prepare", lambda images: images)  # the reference's images are float, not 8-bit
    metrics = [trainer.step(images, step) for step, images in enumerate(training["vqgan_images"])]

    columns = ("loss", "l1", "g_loss", "disc_weight", "codebook", "d_loss")
    found = torch.tensor([[terms[c].item() if c in terms else math.nan for c in columns] for terms in metrics])
    expected = training["vqgan_loss_l1_g_dweight_codebook_dloss"]
    assert expected.shape == (8, len(columns))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-8, equal_nan=True)
    names = training["vqgan_param_names"]
    check_norms(trainer.vqgan, names, training["vqgan_param_norms"], VQGAN_WITHOUT_GRADIENT)
    check_norms(trainer.averaged, names, training["vqgan_ema_norms"], VQGAN_WITHOUT_GRADIENT)


def test_prior(monkeypatch: pytest.MonkeyPatch, nearest_reference: Any) -> None:
    training = nearest_reference.training
    settings = nearest_reference.prior_settings("absorbing", lr=1e-3, warmup_iters=5, **EMA)
    prior = nearest_reference.prior("absorbing")
    trainer = PriorTrainer(Job(settings, CPU), settings.training, settings.prior, prior)
    times, masks = iter(training["prior_t"]), iter(training["prior_mask"])
    monkeypatch.setattr(absorbing, "sample_time", lambda *_: next(times))
    monkeypatch.setattr(absorbing, "sample_mask", lambda *_: next(masks))
    metrics = [trainer.step(ids, step) for step, ids in enumerate(training["prior_ids"])]

    found = torch.stack([torch.stack([terms["loss"], terms["elbo_bits_per_token"]]) for terms in metrics]).detach()
    torch.testing.assert_close(found.double(), training["prior_loss_vbloss"], rtol=1e-4, atol=0)
    assert [terms["lr"].item() for terms in metrics] == pytest.approx([0, 2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3, 1e-3])
    names = training["prior_param_names"]
    check_norms(trainer.prior, names, training["prior_param_norms"], PRIOR_WITHOUT_GRADIENT)
    check_norms(trainer.averaged, names, training["prior_ema_norms"], PRIOR_WITHOUT_GRADIENT)
    for history in ("loss_history", "Lt_history", "Lt_count"):
        torch.testing.assert_close(getattr(trainer.prior, history), training[f"prior_{history}"], rtol=1e-4, atol=1e-7)


def check_no_gradient(model: torch.nn.Module, names: Iterable[str]) -> None:
    gradients = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    assert {name for name, norm in gradients.items() if norm < 1e-14} == set(names)


def test_loosely_compared_parameters_have_no_gradient(monkeypatch: pytest.MonkeyPatch, nearest_reference: Any) -> None:
    training = nearest_reference.training
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # all of the pass in float64
    vqgan = nearest_reference.vqgan().double()
    vqgan.generator_losses(training["vqgan_images"][0].double(), step=0).loss.backward()
    check_no_gradient(vqgan, VQGAN_WITHOUT_GRADIENT)
    prior = nearest_reference.prior("absorbing").double()
    ids, t, mask = (training[name][1] for name in ("prior_ids", "prior_t", "prior_mask"))
    prior.losses(Codes(ids), Draws(t, mask)).loss.mean().backward()
    check_no_gradient(prior, PRIOR_WITHOUT_GRADIENT)
