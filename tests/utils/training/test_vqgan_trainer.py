"""Updates of the VQGAN, its validation, and its state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.vqgan.quantizers import BETA_TERMS
from trainers import vqgan_trainer as trainer
from utils.training.vqgan_trainer import VQGANTrainer


def images(step: int = 0, n: int = 4) -> Tensor:
    return torch.randint(256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(step))


def run(trainer: VQGANTrainer, start: int, stop: int) -> list[dict[str, Tensor]]:
    return [trainer.step(images(step), step) for step in range(start, stop)]


def test_metrics_are_named_after_the_terms_and_each_network_is_moved_by_its_own_loss_only() -> None:
    """The adversarial weight counts from disc_start_step, the discriminator's own updates from the step after."""
    training = trainer()
    terms = {"loss", "l1", "g_loss", "disc_weight", "codebook", "batch_perplexity", "code_counts", "lr", "skipped"}
    for step in range(4):
        before = copy.deepcopy(training.vqgan)
        metrics = training.step(images(step), step)
        learns = step == 3
        assert set(metrics) == (terms | {"d_loss"} if learns else terms)
        assert bool(metrics["disc_weight"] > 0) == (step >= 2)
        counts = metrics.pop("code_counts")
        assert counts.shape == (32,)
        assert counts.sum() == images().shape[0] * 64
        assert all(value.shape == () and value.isfinite() for value in metrics.values())
        assert 1 <= metrics["batch_perplexity"] <= 32
        still = map(torch.equal, training.vqgan.disc.parameters(), before.disc.parameters())
        assert all(still) != learns
        assert not torch.equal(training.vqgan.ae.generator.last_layer, before.ae.generator.last_layer)


def test_beta_weighs_the_term_that_the_settings_name() -> None:
    assert [trainer(beta_term=term).vqgan.ae.quantize.beta_term for term in BETA_TERMS] == list(BETA_TERMS)


def test_whole_batches_are_flipped_half_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    training = trainer(horizontal_flip=True)
    seen: list[Tensor] = []

    def look(x: Tensor, *_: Any) -> None:
        seen.append(x)
        raise NotImplementedError  # the rest of the step is of no interest

    monkeypatch.setattr(training._gradients, "backward", look)
    for step in range(400):
        with pytest.raises(NotImplementedError):
            training.step(images(), step)
    plain = images().float() / 255
    flipped = [torch.equal(x, plain.flip(-1)) for x in seen]
    assert all(flip or torch.equal(x, plain) for flip, x in zip(flipped, seen, strict=True))
    assert 150 < sum(flipped) < 250


def test_codes_start_at_encoder_outputs_when_asked() -> None:
    plain, started = trainer(), trainer(codebook_init="encoder")
    z = started.vqgan.ae.encoder(images().float() / 255).detach()
    places = {tuple(row) for row in z.permute(0, 2, 3, 1).reshape(-1, 4).tolist()}
    started._restart(torch.ones(32, dtype=torch.bool), z, torch.Generator().manual_seed(0))
    codes = [tuple(row) for row in started.vqgan.ae.quantize.codebook.tolist()]
    assert set(codes) <= places
    assert len(set(codes)) == 32
    assert torch.equal(started.averaged.ae.quantize.codebook, started.vqgan.ae.quantize.codebook)
    assert plain.vqgan.ae.quantize.codebook.abs().max() <= 1 / 32
    before, after = (each.step(images(), 0)["batch_perplexity"] for each in (plain, trainer(codebook_init="encoder")))
    assert after > before


def test_dead_codes_restart_with_clean_moments_and_average() -> None:
    training = trainer(restart_dead_codes=3, disc_start_step=10**6, lr=1e-5)
    codebook = training.vqgan.ae.quantize.codebook
    run(training, 0, 2)
    used = training.usage > 0
    before, moments = codebook.detach().clone(), training.optimisers["ae"].adam.state[codebook]
    assert 0 < used.sum() < 32
    for name in ("exp_avg", "exp_avg_sq"):  # as if every code had been in use once
        moments[name].fill_(1)
    training.step(images(2), 2)
    moved = (codebook.detach() - before).abs().amax(1) > 1e-3
    assert moved.any()
    assert not moved[used].any()
    assert training.ema is not None
    assert torch.equal(training.ema.model.ae.quantize.codebook[moved], codebook[moved])
    assert not moments["exp_avg"][moved].any()
    assert not moments["exp_avg_sq"][moved].any()
    assert moments["exp_avg_sq"][used].any()
    assert not training.usage.any()


def test_restarts_end_when_they_should() -> None:
    training = trainer(restart_dead_codes=2, restart_dead_codes_until=2, disc_start_step=10**6, lr=1e-5)
    run(training, 0, 2)
    before = training.vqgan.ae.quantize.codebook.detach().clone()
    run(training, 2, 6)
    assert (training.vqgan.ae.quantize.codebook - before).abs().max() < 1e-3


def test_a_perceptual_network_adds_its_term() -> None:
    training = trainer(perceptual=lambda x, y: (x - y).abs().mean((1, 2, 3)))
    (trained,), validated = run(training, 0, 1), training.validate([images(7)])
    for metrics in (trained, validated):
        assert float(metrics["perceptual"]) == pytest.approx(float(metrics["l1"]), rel=1e-5)
        assert metrics["perceptual"] > 0


def test_validation_and_reconstruction_are_of_the_averaged_model() -> None:
    training = trainer(ema_beta=0.5)
    run(training, 0, 3)
    nn.init.zeros_(training.vqgan.ae.generator.last_layer)  # the trained model only
    batches = [images(7), images(8, n=3)]  # of different sizes
    usage = training.usage.clone()
    metrics = training.validate(batches)
    assert torch.equal(training.usage, usage)  # which says what dead codes are
    assert training.ema is not None
    x = torch.cat(batches).double() / 255
    with torch.no_grad():
        x_hat, quantized = training.ema.model.ae(x.float())
    mse = (x_hat.double().clamp(0, 1) - x).square().mean((1, 2, 3))
    p = torch.bincount(quantized.ids.flatten(), minlength=32).double() / quantized.ids.numel()
    assert metrics["l1"] == pytest.approx((x_hat.double() - x).abs().mean().item(), rel=1e-5)
    assert metrics["psnr_db"] == pytest.approx((-10 * mse.log10()).mean().item(), rel=1e-5)
    assert "perceptual" not in metrics
    assert metrics["codebook_used"] == (p > 0).double().mean()
    assert metrics["codebook_perplexity"] == pytest.approx(torch.exp(torch.special.entr(p).sum()).item())
    shown = training.reconstruct(torch.cat(batches))
    torch.testing.assert_close(shown, x_hat.clamp(0, 1))
    assert shown.min() < shown.max()


def test_codes_of_the_gumbel_quantiser_are_left_to_learn() -> None:
    """Encoder outputs say nothing about which of its codes are used."""
    codebooks = []
    for care in ({}, {"codebook_init": "encoder", "restart_dead_codes": 1}):
        training = trainer(quantizer="gumbel", disc_start_step=10**6, **care)
        run(training, 0, 2)
        codebooks.append(training.vqgan.ae.quantize.codebook)
    assert torch.equal(*codebooks)
