"""The fast step adds the gradients of the plain objectives, in one piece, in micro-batches, scaled and rounded."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_models import QUANTIZERS, gradients, perceptual, seeded, vqgan
from torch import Tensor, nn

from models.parts import Noise
from models.vqgan.quantizers import Quantized, VectorQuantizer
from models.vqgan.vqgan import VQGAN, GeneratorTerms
from utils.training.vqgan_step import VQGANStep


def images() -> Tensor:
    return torch.rand((4, 3, 16, 16), generator=seeded())


def backward(model: VQGAN, step: int = 0, x: Tensor | None = None, scales: Any = (), **options: Any) -> Any:
    """Terms, ids and the encoder's output. At step 0 the discriminator of `vqgan` does not yet learn."""
    return VQGANStep(model, **options).backward(images() if x is None else x, step, seeded(1), *scales)


def plain_backward(model: VQGAN, step: int = 0, x: Tensor | None = None) -> GeneratorTerms:
    terms = model.generator_losses(images() if x is None else x, step, Noise(seeded(1)))
    terms.loss.backward(inputs=list(model.ae.parameters()))
    return terms


def assert_same_gradients(found: nn.Module, expected: nn.Module, **close: float) -> None:
    assert gradients(found).keys() == gradients(expected).keys()
    torch.testing.assert_close(gradients(found), gradients(expected), **close)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("diff_aug", [False, True])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("weight_max", [1e9, 0.01])
@pytest.mark.parametrize("pieces", [1, 4])
def test_its_gradients_are_those_of_the_plain_objective(
    monkeypatch: pytest.MonkeyPatch, quantizer: str, diff_aug: bool, weight_max: float, pieces: int, double: bool
) -> None:
    start = 40_000
    model, x = vqgan(quantizer, diff_aug=diff_aug, disc_weight_max=weight_max, disc_start_step=start), images()
    if double:  # both compute in float32 where they must; here in float64
        monkeypatch.setattr(Tensor, "float", Tensor.double)
        model, x = model.double(), x.double()
    if pieces > 1:
        model.disc.eval()  # micro-batches have batch-norm statistics of their own
    reference = copy.deepcopy(model)
    found, _, _ = backward(model, start, x, micro_batches=pieces)
    terms = plain_backward(reference, start, x)

    assert terms.disc_weight > 0
    assert found.keys() == vars(terms).keys()
    for name, value in found.items():
        expected = getattr(terms, name).detach()
        torch.testing.assert_close(value, expected, rtol=1e-6 if double else 1e-3, atol=1e-6)
        assert not value.requires_grad
    close = {"rtol": 1e-6, "atol": 1e-12} if double else {"rtol": 1e-2, "atol": 1e-4}
    assert_same_gradients(model.ae, reference.ae, **close)
    assert gradients(model.disc) == {}


def test_before_its_start_the_discriminator_only_sees_fakes() -> None:
    model = vqgan(disc_start_step=10)
    reference = copy.deepcopy(model)
    found, _, _ = backward(model, step=9)
    terms = plain_backward(reference, step=9)
    assert found["disc_weight"] == 0
    torch.testing.assert_close(found["g_loss"], terms.g_loss.detach())
    assert_same_gradients(model.ae, reference.ae)
    torch.testing.assert_close(dict(model.disc.named_buffers()), dict(reference.disc.named_buffers()))


def test_a_quantiser_may_have_nothing_to_learn_by_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = VectorQuantizer.forward

    def without_gradient(*args: Any, **options: Any) -> Quantized:
        quantized = forward(*args, **options)
        return replace(quantized, loss=quantized.loss.detach())

    monkeypatch.setattr(VectorQuantizer, "forward", without_gradient)
    model, reference = (vqgan(perceptual=None, disc_start_step=5) for _ in range(2))
    backward(model)
    plain_backward(reference)
    assert_same_gradients(model.ae, reference.ae)


def test_the_scales_multiply_gradients_and_nothing_else() -> None:
    plain, scaled = vqgan(), vqgan()
    (one, _, _), (many, _, _) = backward(plain, 1), backward(scaled, 1, scales=(torch.tensor(1024.0), 8.0))
    torch.testing.assert_close(many, one, rtol=1e-4, atol=1e-6)
    for network, factor in (("ae", 1024), ("disc", 8)):
        expected = gradients(getattr(plain, network))
        for name, gradient in gradients(getattr(scaled, network)).items():
            torch.testing.assert_close(gradient / factor, expected[name], rtol=1e-3, atol=1e-6, msg=name)


def test_mixed_precision_stays_near_float32() -> None:
    exact, rough = (backward(vqgan(), 1, amp_dtype=dtype)[0] for dtype in (None, torch.bfloat16))
    assert rough["l1"].item() == pytest.approx(exact["l1"].item(), rel=0.05)
    assert all(value.isfinite() for value in rough.values())


def test_what_it_leaves_is_of_these_images() -> None:
    model = vqgan().eval()
    terms, ids, z = backward(model, micro_batches=2)
    with torch.no_grad():
        x_hat, quantized = model.ae(images())
    torch.testing.assert_close(z, quantized.z)
    assert torch.equal(ids, quantized.ids)
    torch.testing.assert_close(terms["perceptual"], 0.5 * perceptual(images(), x_hat).mean())
    assert not z.requires_grad


@pytest.mark.parametrize("diff_aug", [False, True])
def test_the_discriminators_loss_is_as_if_it_saw_everything_anew(
    monkeypatch: pytest.MonkeyPatch, diff_aug: bool
) -> None:
    """Loss, gradients and running statistics of the published order of passes: fakes, reals, fakes again."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    model = vqgan(diff_aug=diff_aug).double()
    reference, generators, x, noise = copy.deepcopy(model), copy.deepcopy(model), images().double(), Noise(seeded(1))
    terms, _, _ = backward(model, 1, x)

    fake = reference.shown(reference.ae(x)[0].detach(), noise)
    real = reference.shown(x, noise)
    reference.disc(fake)
    expected = reference.discriminator_loss(real, fake)
    expected.backward()
    torch.testing.assert_close(terms["d_loss"], expected.detach())
    assert gradients(model.disc).keys() == dict(model.disc.named_parameters()).keys()
    assert_same_gradients(model.disc, reference.disc, rtol=1e-5, atol=1e-9)
    buffers = (dict(each.disc.named_buffers()) for each in (model, reference))
    torch.testing.assert_close(*buffers, rtol=1e-6, atol=1e-9)
    assert model.disc.main[3].num_batches_tracked == 3
    plain_backward(generators, 1, x)
    assert_same_gradients(model.ae, generators.ae, rtol=1e-6, atol=1e-12)


def test_in_evaluation_the_statistics_stay() -> None:
    model = vqgan().eval()
    buffers = [buffer.clone() for buffer in model.disc.buffers()]
    assert "d_loss" in backward(model, 1)[0]
    assert all(map(torch.equal, model.disc.buffers(), buffers))
