"""Both quantisers and the functions they share."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from small_models import noise, normal, seeded
from torch import Tensor

from models.vqgan.quantizers import (
    GumbelQuantizer,
    VectorQuantizer,
    gumbel_temperature,
    id_counts,
    nearest_ids,
    perplexity,
)


def gumbel(*, straight_through: bool = False) -> GumbelQuantizer:
    torch.manual_seed(0)
    return GumbelQuantizer(12, 5, kl_weight=0.5, straight_through=straight_through)


# --- nearest
def test_nearest_ids_equal_brute_force_also_under_autocast() -> None:
    z, codebook = normal(500, 16), normal(64, 16, seed=1)
    expected = (z.double()[:, None] - codebook.double()[None]).square().sum(-1).argmin(1)
    assert torch.equal(nearest_ids(z, codebook), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_ids(z, codebook), expected)
        rough = (codebook.square().sum(1) - 2 * z @ codebook.t()).argmin(1)
    assert not torch.equal(rough, expected)  # bfloat16 would have shown


def test_codebook_starts_small_and_uniform() -> None:
    torch.manual_seed(0)
    codebook = VectorQuantizer(1000, 50, beta=0.25).codebook
    assert codebook.abs().max() <= 1 / 1000
    assert codebook.std().item() == pytest.approx(2 / 1000 / math.sqrt(12), rel=0.02)


def test_shapes_raster_order_and_the_straight_through_gradient() -> None:
    nearest, z, downstream = VectorQuantizer(20, 6, beta=0.25), normal(2, 6, 3, 4), normal(2, 6, 3, 4, seed=5)
    nearest.codebook.detach().copy_(normal(20, 6, seed=3))
    quantized = nearest(z.requires_grad_())
    assert quantized.z_q.shape == z.shape
    assert quantized.ids.shape == (2, 12)
    for b, y, x in ((0, 0, 1), (1, 2, 3), (0, 1, 0)):
        code = quantized.ids[b, y * 4 + x]
        assert code == nearest_ids(z[b : b + 1, :, y, x], nearest.codebook)
        torch.testing.assert_close(quantized.z_q[b, :, y, x], nearest.codebook[code])
    (quantized.z_q * downstream).sum().backward()
    torch.testing.assert_close(z.grad, downstream)
    assert nearest.codebook.grad is None


@pytest.mark.parametrize(("beta_term", "of_z", "of_code"), [("codebook", 1, 0.25), ("commitment", 0.25, 1)])
def test_beta_weighs_the_term_that_is_named(beta_term: str, of_z: float, of_code: float) -> None:
    """Same value, other gradients: as published codes move slowly, corrected they move fully and latents slowly."""
    quantizer, z = VectorQuantizer(20, 6, beta=0.25, beta_term=beta_term), normal(2, 6, 3, 4).requires_grad_()
    quantized = quantizer(z)
    error = z.detach() - quantizer.lookup(quantized.ids, (3, 4)).detach()
    assert quantized.loss.item() == pytest.approx(1.25 * error.square().mean().item())
    quantized.loss.backward()
    torch.testing.assert_close(z.grad, of_z * 2 * error / error.numel())
    gradient, code = quantizer.codebook.grad, int(quantized.ids[0, 0])
    chosen = (quantized.ids == code).view(2, 1, 3, 4)
    torch.testing.assert_close(gradient[code], -of_code * 2 * (error * chosen).sum((0, 2, 3)) / error.numel())
    unused = id_counts(quantized.ids, 20) == 0
    assert unused.any()
    assert (gradient[unused] == 0).all()
    with pytest.raises(ValueError, match="beta_term"):
        VectorQuantizer(20, 6, beta=0.25, beta_term="both")


# --- gumbel
@pytest.mark.parametrize("straight_through", [False, True])
def test_gumbel_evaluation_is_the_argmax_without_noise_or_rounding(straight_through: bool) -> None:
    quantizer, z = gumbel(straight_through=straight_through).eval(), normal(2, 5, 3, 4)
    expected = quantizer.logits(z).argmax(1).flatten(1)
    assert torch.equal(quantizer.ids(z), expected)
    found = [quantizer(z, step=80_000, noise=noise(1)), quantizer(z, noise=noise(2))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found.append(quantizer(z))
    for quantized in found:
        assert torch.equal(quantized.ids, expected)
        torch.testing.assert_close(quantized.z_q, quantizer.lookup(expected, (3, 4)))


def test_gumbel_noise_of_training_depends_on_the_generator_alone() -> None:
    quantizer, z = gumbel().train(), normal(2, 5, 3, 4)
    assert torch.equal(quantizer.ids(z), quantizer.logits(z).argmax(1).flatten(1))  # never noisy
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = quantizer(z, step=48_000, noise=noise(1)).z_q
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(123)
    assert torch.equal(first, quantizer(z, step=48_000, noise=noise(1)).z_q)
    assert not torch.equal(first, quantizer(z, step=48_000, noise=noise(2)).z_q)


def test_gumbel_training_draws_codes_from_the_softmax() -> None:
    quantizer = gumbel().train()
    z = normal(1, 5, 1, 1).mul(2).expand(1, 5, 100, 100)
    expected = quantizer.logits(z)[0, :, 0, 0].softmax(0)
    error = (id_counts(quantizer(z, noise=noise()).ids, 12) / 10_000 - expected).abs()
    assert (error < 5 * (expected * (1 - expected) / 10_000).sqrt()).all()


def test_gumbel_training_is_soft_and_straight_through_is_hard_with_the_soft_gradient() -> None:
    quantized, gradients = [], []
    for straight_through in (False, True):
        z, quantizer = normal(2, 5, 3, 4).requires_grad_(), gumbel(straight_through=straight_through).train()
        quantized.append(quantizer(z, noise=noise(1)))
        quantized[-1].z_q.mul(normal(2, 5, 3, 4, seed=9)).sum().backward()
        gradients.append(z.grad)
    soft, hard = quantized
    assert torch.equal(soft.ids, hard.ids)
    torch.testing.assert_close(hard.z_q, quantizer.lookup(hard.ids, (3, 4)))
    assert (soft.z_q - hard.z_q).abs().max() > 0.1
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)


def test_gumbel_temperature_falls_linearly_to_a_sixteenth_and_sharpens_the_mixture() -> None:
    assert [gumbel_temperature(step) for step in (0, 80_000, 150_000, 10**7)] == [1, 0.5, 1 / 16, 1 / 16]
    quantizer, z = gumbel().train(), normal(2, 5, 3, 4)
    warm, cold = (quantizer(z, step=step, noise=noise(1)) for step in (0, 150_000))
    hard = quantizer.lookup(cold.ids, (3, 4))
    assert torch.equal(warm.ids, cold.ids)
    assert (cold.z_q - hard).abs().median() < 1e-2 < (warm.z_q - hard).abs().median()


def test_gumbel_loss_is_the_divergence_from_uniform() -> None:
    quantizer, z = gumbel().eval(), normal(2, 5, 3, 4)
    log_q = F.log_softmax(quantizer.logits(z), dim=1).permute(0, 2, 3, 1)
    uniform = torch.full_like(log_q, 1 / 12).log()
    expected = 0.5 * F.kl_div(uniform, log_q, reduction="none", log_target=True).sum(-1).mean()
    torch.testing.assert_close(quantizer(z).loss, expected)


# --- statistics of codes, and codes that are restarted
def test_counts_cover_the_whole_codebook_and_give_the_perplexity() -> None:
    assert id_counts(torch.tensor([[1, 1], [4, 1]]), 6).tolist() == [0, 3, 0, 0, 1, 0]
    found = [perplexity(torch.tensor(counts)).item() for counts in ([5, 5, 5, 5], [9, 0, 0], [1, 1, 2])]
    assert found == pytest.approx([4, 1, math.exp(1.5 * math.log(2))])


def restarted(count: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[float]:
    """Where the first `count` of 40 codes go; z has 8 places, each with its number in all channels."""
    quantizer = VectorQuantizer(40, 3, beta=0.25)
    quantizer.codebook.detach().fill_(-1)
    z = torch.arange(8.0, dtype=dtype).view(2, 1, 2, 2).expand(2, 3, 2, 2)
    quantizer.restart(torch.arange(40) < count, z, seeded(seed))
    assert quantizer.codebook.is_leaf
    assert quantizer.codebook.dtype == torch.float32
    assert (quantizer.codebook[count:] == -1).all()  # the others stay
    moved: Tensor = quantizer.codebook[:count]
    assert (moved == moved[:, :1]).all()
    return moved[:, 0].tolist()


@pytest.mark.parametrize(("count", "times"), [(0, set()), (5, {1}), (8, {1}), (21, {2, 3}), (40, {5})])
def test_restarted_codes_are_at_places_of_the_encoder_as_evenly_often_as_possible(count: int, times: set[int]) -> None:
    codes = restarted(count)
    counts = Counter(codes)
    assert counts.keys() <= set(range(8))
    assert set(counts.values()) == times
    assert sum(counts.values()) == count
    assert codes == restarted(count, torch.bfloat16)  # whatever the encoder computes in
    assert count == 0 or codes != restarted(count, seed=2)
