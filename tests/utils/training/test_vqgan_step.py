"""The fast step adds the gradients of the plain objectives, in one piece, in micro-batches, scaled and rounded."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_models import QUANTIZERS, gradients, perceptual, vqgan
from torch import Tensor

from models.parts import Noise
from models.vqgan.quantizers import Quantized
from models.vqgan.vqgan import VQGAN
from utils.training.vqgan_step import GeneratorPass, VQGANStep

SCALER = torch.amp.GradScaler("cpu", enabled=False)


def images() -> Tensor:
    return torch.rand((4, 3, 16, 16), generator=torch.Generator().manual_seed(0))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def backward(model: VQGAN, step: int = 0, x: Tensor | None = None, scale: Any = 1.0, **options: Any) -> GeneratorPass:
    return VQGANStep(model, **options).generator_backward(images() if x is None else x, step, seeded(), scale)


def assert_same_gradients(found: torch.nn.Module, expected: torch.nn.Module, **close: float) -> None:
    wanted = gradients(expected)
    assert gradients(found).keys() == wanted.keys()
    for name, gradient in gradients(found).items():
        torch.testing.assert_close(gradient, wanted[name], **close, msg=name)


# --- the generator's pass -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("diff_aug", [False, True])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("weight_max", [1e9, 0.01])
@pytest.mark.parametrize("pieces", [1, 4])
def test_its_gradients_are_those_of_the_plain_objective(
    monkeypatch: pytest.MonkeyPatch, quantizer: str, diff_aug: bool, weight_max: float, pieces: int, double: bool
) -> None:
    model, x = vqgan(quantizer, diff_aug=diff_aug, disc_weight_max=weight_max), images()
    if double:  # both compute in float32 where they must; here in float64
        monkeypatch.setattr(Tensor, "float", Tensor.double)
        model, x = model.double(), x.double()
    if pieces > 1:
        model.disc.eval()  # micro-batches have batch-norm statistics of their own
    reference = copy.deepcopy(model)
    done = backward(model, 40_000, x, micro_batches=pieces)
    terms = reference.generator_losses(x, 40_000, Noise(seeded()))
    terms.loss.backward(inputs=list(reference.ae.parameters()))

    assert terms.disc_weight > 0
    for name, value in vars(done.terms).items():
        torch.testing.assert_close(value, getattr(terms, name).detach(), rtol=1e-6 if double else 1e-3, atol=1e-6)
        assert not value.requires_grad
    close = {"rtol": 1e-6, "atol": 1e-12} if double else {"rtol": 1e-2, "atol": 1e-4}
    assert_same_gradients(model.ae, reference.ae, **close)
    assert gradients(model.disc) == {}


def test_before_its_start_the_discriminator_only_sees_fakes() -> None:
    model = vqgan(disc_start_step=10)
    reference = copy.deepcopy(model)
    done = backward(model, step=9)
    terms = reference.generator_losses(images(), 9, Noise(seeded()))
    terms.loss.backward()
    assert done.judged == []
    assert done.terms.disc_weight == 0
    torch.testing.assert_close(done.terms.g_loss, terms.g_loss.detach())
    assert_same_gradients(model.ae, reference.ae)
    for name, value in model.disc.named_buffers():
        torch.testing.assert_close(value, reference.disc.get_buffer(name), msg=name)


def test_a_quantiser_may_have_nothing_to_learn_by_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vqgan(perceptual=None, disc_start_step=5)
    forward = model.ae.quantize.forward

    def without_gradient(z: Tensor, **options: Any) -> Quantized:
        quantized = forward(z, **options)
        return replace(quantized, loss=quantized.loss.detach())

    monkeypatch.setattr(model.ae.quantize, "forward", without_gradient)
    reference = copy.deepcopy(model)
    reference.ae.quantize.forward = without_gradient  # type: ignore[method-assign]
    backward(model)
    reference.generator_losses(images(), 0).loss.backward(inputs=list(reference.ae.parameters()))
    assert_same_gradients(model.ae, reference.ae)


def test_the_scale_multiplies_gradients_and_nothing_else() -> None:
    plain, scaled = vqgan(), vqgan()
    one, many = backward(plain), backward(scaled, scale=torch.tensor(1024.0))
    for name in vars(one.terms):
        torch.testing.assert_close(getattr(many.terms, name), getattr(one.terms, name), rtol=1e-4, atol=1e-6, msg=name)
    expected = gradients(plain.ae)
    for name, gradient in gradients(scaled.ae).items():
        torch.testing.assert_close(gradient / 1024, expected[name], rtol=1e-3, atol=1e-6, msg=name)


def test_mixed_precision_stays_near_float32() -> None:
    exact, rough = backward(vqgan()).terms, backward(vqgan(), amp_dtype=torch.bfloat16)
    assert rough.x_hat.dtype == torch.float32
    assert rough.terms.l1.item() == pytest.approx(exact.l1.item(), rel=0.05)
    assert rough.terms.loss.isfinite()


def test_what_it_leaves_is_of_these_images() -> None:
    model = vqgan().eval()
    done = backward(model, micro_batches=2)
    with torch.no_grad():
        x_hat, quantized = model.ae(images())
    torch.testing.assert_close(done.x_hat, x_hat)
    torch.testing.assert_close(done.z, quantized.z)
    assert torch.equal(done.ids, quantized.ids)
    torch.testing.assert_close(done.terms.perceptual, 0.5 * perceptual(images(), x_hat).mean())
    assert not done.x_hat.requires_grad
    assert not done.z.requires_grad


# --- the discriminator's pass -------------------------------------------------------------------------------------


@pytest.mark.parametrize("diff_aug", [False, True])
def test_the_discriminators_loss_is_as_if_it_saw_everything_anew(
    monkeypatch: pytest.MonkeyPatch, diff_aug: bool
) -> None:
    """Loss, gradients and running statistics of the published order of passes: fakes, reals, fakes again."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    model = vqgan(diff_aug=diff_aug).double()
    reference, x, generator = copy.deepcopy(model), images().double(), seeded()
    fast = VQGANStep(model)
    done = fast.generator_backward(x, 0, generator)
    before, state = gradients(model.ae), generator.get_state()
    loss = fast.discriminator_backward(x, done.judged, generator, SCALER)

    first, second = seeded(), seeded()
    second.set_state(state)
    fake, real = reference.shown(done.x_hat, Noise(first)), reference.shown(x, Noise(second))
    reference.disc(fake)
    expected = reference.discriminator_loss(real, fake)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    assert gradients(model.disc).keys() == dict(model.disc.named_parameters()).keys()
    assert_same_gradients(model.disc, reference.disc, rtol=1e-5, atol=1e-9)
    for name, value in model.disc.named_buffers():
        torch.testing.assert_close(value, reference.disc.get_buffer(name), rtol=1e-6, atol=1e-9, msg=name)
    assert model.disc.main[3].num_batches_tracked == 3
    assert all(torch.equal(gradient, before[name]) for name, gradient in gradients(model.ae).items())


def test_in_evaluation_the_statistics_stay() -> None:
    model = vqgan().eval()
    buffers = [buffer.clone() for buffer in model.disc.buffers()]
    fast = VQGANStep(model)
    fast.discriminator_backward(images(), fast.generator_backward(images(), 0).judged, None, SCALER)
    assert all(map(torch.equal, model.disc.buffers(), buffers))
