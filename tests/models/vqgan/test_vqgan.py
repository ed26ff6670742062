"""The VQGAN's objectives, as the equations have them."""

import pytest
import torch
from small_models import QUANTIZERS, gradients, perceptual, vqgan
from torch import Tensor

from models.parts import Noise
from models.vqgan.augment import diff_augment
from models.vqgan.vqgan import adaptive_weight, generator_loss, hinge_discriminator_loss


def images() -> Tensor:
    return torch.rand((4, 3, 16, 16), generator=torch.Generator().manual_seed(0))


def seeded() -> Noise:
    return Noise(torch.Generator().manual_seed(1))


# --- adversarial terms --------------------------------------------------------------------------------------------


def test_adversarial_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0, 1.0]), torch.tensor([-3.0, 0.0, 1.0, -0.5])
    assert generator_loss(fake).item() == pytest.approx(2.5 / 4)
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(0.5 * (2.5 / 4 + 3.5 / 4))


def test_adaptive_weight_by_hand() -> None:
    ones = torch.ones(4)
    assert adaptive_weight(3 * ones, 2 * ones, 1e9).item() == pytest.approx(6 / 4.0001)
    assert adaptive_weight(3 * ones, 2 * ones, 1.0) == 1
    assert adaptive_weight(0 * ones, 0 * ones, 2.5) == adaptive_weight(0 * ones, ones, 2.5) == 0
    assert adaptive_weight(ones, 0 * ones, 2.5) == 2.5


def test_adaptive_weight_is_computed_in_float32() -> None:
    tiny = torch.full((100,), 1e-5, dtype=torch.float16)  # its square vanishes in float16
    assert adaptive_weight(tiny, tiny, 1e9).item() == pytest.approx(0.5, rel=0.05)


# --- the generator's objective ------------------------------------------------------------------------------------


@pytest.mark.parametrize("diff_aug", [False, True])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("weight_max", [1e9, 0.01])
def test_the_terms_by_hand(quantizer: str, diff_aug: bool, weight_max: float) -> None:
    model, x, noise = vqgan(quantizer, diff_aug=diff_aug, disc_weight_max=weight_max), images(), seeded()
    terms = model.generator_losses(x, step=40_000, noise=seeded())

    x_hat, quantized = model.ae(x, step=40_000, noise=noise)
    reconstruction = (x - x_hat).abs().mean() + 0.5 * perceptual(x, x_hat).mean()
    g_loss = -model.disc(diff_augment(x_hat, noise) if diff_aug else x_hat).mean()
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
    terms = model.generator_losses(images(), step=9)
    assert terms.disc_weight == 0
    assert terms.g_loss != 0
    assert not torch.equal(model.disc.main[3].running_mean, statistics)
    assert model.disc.main[3].num_batches_tracked == 1
    terms.loss.backward()
    silent.generator_losses(images(), step=10).loss.backward()
    for name, gradient in gradients(model.ae).items():
        torch.testing.assert_close(gradient, gradients(silent.ae)[name], msg=name)


def test_the_gumbel_temperature_follows_the_step() -> None:
    model = vqgan("gumbel", disc_start_step=10**9)
    early, late, again = (model.ae(images(), step=step, noise=seeded())[0] for step in (0, 140_000, 0))
    assert torch.equal(early, again)
    assert not torch.allclose(early, late, atol=1e-3)


def test_the_discriminator_learns_from_the_step_after_its_start() -> None:
    model = vqgan(disc_start_step=10)
    assert [(model.adversarial(step), model.discriminator_learns(step)) for step in (9, 10, 11)] == [
        (False, False),
        (True, False),
        (True, True),
    ]


def test_the_discriminators_loss_is_of_reals_and_fakes() -> None:
    model = vqgan().eval()
    real, fake = images(), images().flip(0)
    expected = hinge_discriminator_loss(model.disc(real), model.disc(fake))
    torch.testing.assert_close(model.discriminator_loss(real, fake), expected)


def test_the_perceptual_network_is_no_part_of_the_state() -> None:
    assert {name.split(".")[0] for name in vqgan().state_dict()} == {"ae", "disc"}
