"""The VQGAN's objectives, as the equations have them."""

import pytest
import torch
from small_models import QUANTIZERS, gradients, noise, perceptual, uniform, vqgan

from models.vqgan.augment import diff_augment
from models.vqgan.vqgan import adaptive_weight, generator_loss, hinge_discriminator_loss

IMAGES = uniform(4, 3, 16, 16)


def test_adversarial_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0, 1.0]), torch.tensor([-3.0, 0.0, 1.0, -0.5])
    assert generator_loss(fake).item() == pytest.approx(2.5 / 4)
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(0.5 * (2.5 / 4 + 3.5 / 4))
    model, other = vqgan().eval(), IMAGES.square()
    expected = hinge_discriminator_loss(model.disc(IMAGES), model.disc(other))
    torch.testing.assert_close(model.discriminator_loss(IMAGES, other), expected)


def test_adaptive_weight_by_hand() -> None:
    ones = torch.ones(4)
    assert adaptive_weight(3 * ones, 2 * ones, 1e9).item() == pytest.approx(6 / 4.0001)
    assert adaptive_weight(3 * ones, 2 * ones, 1.0) == 1
    assert adaptive_weight(0 * ones, 0 * ones, 2.5) == adaptive_weight(0 * ones, ones, 2.5) == 0
    assert adaptive_weight(ones, 0 * ones, 2.5) == 2.5
    tiny = torch.full((100,), 1e-5, dtype=torch.float16)  # its square vanishes in float16
    assert adaptive_weight(tiny, tiny, 1e9).item() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("diff_aug", [False, True])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("weight_max", [1e9, 0.01])
def test_the_terms_by_hand(quantizer: str, diff_aug: bool, weight_max: float) -> None:
    model, x, draws = vqgan(quantizer, diff_aug=diff_aug, disc_weight_max=weight_max), IMAGES, noise(1)
    terms = model.generator_losses(x, step=40_000, noise=noise(1))

    quantized = model.ae.quantize(model.ae.encoder(x), step=40_000, noise=draws)
    x_hat = model.ae.generator(quantized.z_q)
    reconstruction = (x - x_hat).abs().mean() + 0.5 * perceptual(x, x_hat).mean()
    g_loss = -model.disc(diff_augment(x_hat, draws) if diff_aug else x_hat).mean()
    last = model.ae.generator.last_layer
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, g_loss)]
    weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, weight_max)
    assert weight > 0
    assert not terms.disc_weight.requires_grad
    torch.testing.assert_close(terms.disc_weight, weight)
    torch.testing.assert_close(terms.l1 + terms.perceptual, reconstruction)
    torch.testing.assert_close(terms.g_loss, g_loss)
    torch.testing.assert_close(terms.codebook, quantized.loss)
    torch.testing.assert_close(terms.loss, reconstruction + weight * g_loss + quantized.loss)


def test_before_its_start_the_discriminator_only_sees_fakes() -> None:
    model, silent = vqgan(disc_start_step=10), vqgan(disc_start_step=10, disc_weight_max=0.0)
    statistics = model.disc.main[3].running_mean.clone()
    terms = model.generator_losses(IMAGES, step=9)
    assert terms.disc_weight == 0
    assert terms.g_loss != 0
    assert not torch.equal(model.disc.main[3].running_mean, statistics)
    assert model.disc.main[3].num_batches_tracked == 1
    terms.loss.backward()
    silent.generator_losses(IMAGES, step=10).loss.backward()
    for name, gradient in gradients(model.ae).items():
        torch.testing.assert_close(gradient, gradients(silent.ae)[name], msg=name)
    assert [model.adversarial(step) for step in (9, 10, 11)] == [False, True, True]
    assert [model.discriminator_learns(step) for step in (9, 10, 11)] == [False, False, True]
