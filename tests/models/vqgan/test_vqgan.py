"""The VQGAN's objectives: one backward pass equals autograd's textbook way, and who sees what when."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.vqgan.adversarial import adaptive_weight, generator_loss, hinge_discriminator_loss
from models.vqgan.augment import diff_augment
from models.vqgan.autoencoder import VQAutoEncoder
from models.vqgan.discriminator import Discriminator
from models.vqgan.quantizers import QUANTIZERS
from models.vqgan.vqgan import VQGAN


def perceptual(x: Tensor, y: Tensor) -> Tensor:
    """A stand-in with one distance per image."""
    return F.avg_pool2d(x - y, 4).square().mean((1, 2, 3), keepdim=True)


def vqgan(quantizer: str = "nearest", **changes: Any) -> VQGAN:
    torch.manual_seed(0)
    autoencoder = VQAutoEncoder(
        n_channels=3,
        img_size=16,
        nf=32,
        ch_mult=(1, 2),
        res_blocks=1,
        attn_resolutions=(8,),
        codebook_size=16,
        emb_dim=8,
        quantizer=quantizer,
        beta=0.25,
        gumbel_kl_weight=1e-2,
        gumbel_straight_through=False,
    )
    settings = {"perceptual": perceptual, "perceptual_weight": 0.5, "disc_start_step": 0, "disc_weight_max": 1e9}
    return VQGAN(autoencoder, Discriminator(3, 8, 2), **settings | {"diff_aug": False} | changes).train()


def images() -> Tensor:
    return torch.rand((4, 3, 16, 16), generator=torch.Generator().manual_seed(0))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


# --- adversarial terms --------------------------------------------------------------------------------------------


def test_adversarial_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0, 1.0]), torch.tensor([-3.0, 0.0, 1.0, -0.5])
    assert generator_loss(fake).item() == pytest.approx(2.5 / 4)
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(0.5 * (2.5 / 4 + 3.5 / 4))


def test_adaptive_weight_by_hand() -> None:
    ones = torch.ones(4)
    assert adaptive_weight(3 * ones, 2 * ones, 1e9).item() == pytest.approx(6 / 4.0001)
    assert adaptive_weight(3 * ones, 2 * ones, 1.0) == 1


@pytest.mark.parametrize(
    ("reconstruction", "adversarial", "expected"), [(0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 0.0, 2.5)]
)
def test_adaptive_weight_is_finite_for_zero_gradients(
    reconstruction: float, adversarial: float, expected: float
) -> None:
    assert adaptive_weight(torch.full((9,), reconstruction), torch.full((9,), adversarial), 2.5) == expected


def test_adaptive_weight_is_computed_in_float32() -> None:
    tiny = torch.full((100,), 1e-5, dtype=torch.float16)  # its square vanishes in float16
    assert adaptive_weight(tiny, tiny, 1e9).item() == pytest.approx(0.5, rel=0.05)


# --- the generator's pass -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("diff_aug", [False, True])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("weight_max", [1e9, 0.01])
def test_one_backward_pass_equals_autograd_through_everything(
    monkeypatch: pytest.MonkeyPatch, quantizer: str, diff_aug: bool, weight_max: float
) -> None:
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # the pass computes in float32 where it must; here in float64
    model = vqgan(quantizer, diff_aug=diff_aug, disc_weight_max=weight_max).double()
    x, reference = images().double(), copy.deepcopy(model)
    done = model.generator_backward(x, step=40_000, generator=seeded())

    generator = seeded()
    z = reference.ae.encoder(x)
    quantized = reference.ae.quantize(z, temperature=0.75, generator=generator)
    x_hat = reference.ae.generator(quantized.z_q)
    reconstruction = (x - x_hat).abs().mean() + 0.5 * perceptual(x, x_hat).mean()
    g_loss = -reference.disc(diff_augment(x_hat, generator) if diff_aug else x_hat).mean()
    last = reference.ae.generator.last_layer
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, g_loss)]
    weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, weight_max)
    loss = reconstruction + weight * g_loss + quantized.loss
    loss.backward()

    assert weight > 0
    torch.testing.assert_close(done.terms.disc_weight, weight, rtol=1e-6, atol=0)
    torch.testing.assert_close(done.terms.loss, loss.detach(), rtol=1e-6, atol=0)
    expected = gradients(reference.ae)
    found = gradients(model.ae)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-12, msg=name)


def test_the_terms_add_up() -> None:
    done = vqgan().generator_backward(images(), step=0, generator=seeded())
    terms = done.terms
    torch.testing.assert_close(terms.l1, (images() - done.x_hat).abs().mean())
    torch.testing.assert_close(terms.perceptual, 0.5 * perceptual(images(), done.x_hat).mean())
    torch.testing.assert_close(
        terms.loss, terms.l1 + terms.perceptual + terms.disc_weight * terms.g_loss + terms.codebook
    )
    assert not any(value.requires_grad for value in [*vars(terms).values(), done.x_hat, done.z])


def test_before_its_start_the_discriminator_only_sees_fakes() -> None:
    model = vqgan(disc_start_step=10)
    statistics = model.disc.main[3].running_mean.clone()
    done = model.generator_backward(images(), step=9, generator=seeded())
    assert done.terms.disc_weight == 0
    assert done.terms.g_loss != 0
    assert not torch.equal(model.disc.main[3].running_mean, statistics)
    assert model.disc.main[3].num_batches_tracked == 1
    silent = vqgan(disc_start_step=10, disc_weight_max=0.0)
    silent.generator_backward(images(), step=10, generator=seeded())
    for name, gradient in gradients(model.ae).items():
        torch.testing.assert_close(gradient, gradients(silent.ae)[name], msg=name)


def test_from_its_start_the_discriminator_has_a_say_but_no_gradient() -> None:
    model = vqgan(disc_start_step=10)
    assert model.generator_backward(images(), step=10, generator=seeded()).terms.disc_weight > 0
    assert gradients(model.disc) == {}


def test_gradients_add_to_what_is_there() -> None:
    model = vqgan(perceptual=None, disc_start_step=5)
    model.generator_backward(images(), step=0)
    once = gradients(model.ae)
    model.generator_backward(images(), step=0)
    for name, gradient in gradients(model.ae).items():
        torch.testing.assert_close(gradient, 2 * once[name], msg=name)


def test_the_scale_multiplies_gradients_and_nothing_else() -> None:
    plain, scaled = vqgan(), vqgan()
    one = plain.generator_backward(images(), step=0)
    many = scaled.generator_backward(images(), step=0, scale=torch.tensor(1024.0))
    for name in vars(one.terms):
        torch.testing.assert_close(getattr(many.terms, name), getattr(one.terms, name), rtol=1e-4, atol=1e-6, msg=name)
    expected = gradients(plain.ae)
    for name, gradient in gradients(scaled.ae).items():
        torch.testing.assert_close(gradient / 1024, expected[name], rtol=1e-3, atol=1e-6, msg=name)


def test_mixed_precision_stays_near_float32() -> None:
    exact = vqgan().generator_backward(images(), step=0).terms
    rough = vqgan().generator_backward(images(), step=0, amp_dtype=torch.bfloat16)
    assert rough.x_hat.dtype == torch.float32
    assert rough.terms.l1.item() == pytest.approx(exact.l1.item(), rel=0.05)
    assert rough.terms.loss.isfinite()


def test_a_discriminator_that_never_answers_leaves_finite_gradients() -> None:
    model = vqgan(disc_weight_max=1.0)
    for parameter in model.disc.main[-1].parameters():
        nn.init.zeros_(parameter)
    assert model.generator_backward(images(), step=0).terms.disc_weight == 1
    assert all(gradient.isfinite().all() for gradient in gradients(model.ae).values())


@pytest.mark.parametrize("diff_aug", [False, True])
def test_the_discriminator_judges_the_reconstruction(diff_aug: bool) -> None:
    model = vqgan(diff_aug=diff_aug)
    reference = copy.deepcopy(model.disc)
    done = model.generator_backward(images(), step=0, generator=seeded())
    assert done.judged
    shown = diff_augment(done.x_hat, seeded()) if diff_aug else done.x_hat
    torch.testing.assert_close(done.judged[0].logits, reference(shown))


def test_the_gumbel_temperature_follows_the_step() -> None:
    model = vqgan("gumbel", disc_start_step=10**9)
    early, late, again = (
        model.generator_backward(images(), step=step, generator=seeded()).x_hat for step in (0, 140_000, 0)
    )
    assert torch.equal(early, again)
    assert not torch.allclose(early, late, atol=1e-3)


# --- the discriminator's pass -------------------------------------------------------------------------------------


@pytest.mark.parametrize("diff_aug", [False, True])
def test_the_discriminators_loss_is_as_if_it_saw_everything_anew(
    monkeypatch: pytest.MonkeyPatch, diff_aug: bool
) -> None:
    """Loss, gradients and running statistics of the published order of passes: fakes, reals, fakes again."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    model = vqgan(diff_aug=diff_aug).double()
    reference = copy.deepcopy(model.disc)
    x = images().double()
    generator = seeded()
    done = model.generator_backward(x, step=0, generator=generator)
    assert done.judged
    assert gradients(model.disc) == {}
    state = generator.get_state()
    before = {name: gradient.clone() for name, gradient in gradients(model.ae).items()}
    loss = model.discriminator_loss(x, done.judged[0], generator)
    loss.backward(inputs=list(model.disc.parameters()))

    generator, later = seeded(), seeded()
    later.set_state(state)
    fake = diff_augment(done.x_hat, generator) if diff_aug else done.x_hat
    real = diff_augment(x, later) if diff_aug else x
    reference(fake)
    logits_real = reference(real)
    expected = hinge_discriminator_loss(logits_real, reference(fake))
    expected.backward()
    torch.testing.assert_close(loss, expected)
    assert gradients(model.disc).keys() == dict(model.disc.named_parameters()).keys()
    for name, gradient in gradients(model.disc).items():
        torch.testing.assert_close(gradient, gradients(reference)[name], rtol=1e-5, atol=1e-9, msg=name)
    for name, value in model.disc.named_buffers():
        torch.testing.assert_close(value, reference.get_buffer(name), rtol=1e-6, atol=1e-9, msg=name)
    assert model.disc.main[3].num_batches_tracked == 3
    assert all(torch.equal(gradient, before[name]) for name, gradient in gradients(model.ae).items())


def test_in_evaluation_the_statistics_stay() -> None:
    model = vqgan().eval()
    statistics = model.disc.statistics()
    done = model.generator_backward(images(), step=0)
    assert done.judged
    model.discriminator_loss(images(), done.judged[0])
    assert all(map(torch.equal, model.disc.statistics(), statistics))


def test_the_perceptual_network_is_no_part_of_the_state() -> None:
    assert {name.split(".")[0] for name in vqgan().state_dict()} == {"ae", "disc"}
