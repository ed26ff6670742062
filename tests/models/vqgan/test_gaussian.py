"""The Gaussian density of pixels."""

import math

import pytest
import torch
from scipy.stats import chisquare
from small_models import noise, normal

from models.vqgan.gaussian import dequantise, gaussian_nll_nats, level_images, level_nll_nats, reduce_bits

SHAPE = (3, 3, 4, 5)


def test_it_is_the_density_of_the_normal_distribution() -> None:
    x, mean, logsigma = (normal(*SHAPE, seed=seed) for seed in range(3))
    expected = -torch.distributions.Normal(mean.double(), logsigma.double().exp()).log_prob(x.double())
    nats = gaussian_nll_nats(x, mean, logsigma)
    torch.testing.assert_close(nats, expected.sum((1, 2, 3)).float())
    of_levels = level_nll_nats(x, mean, logsigma, bits=5)  # each 2^−5 wide
    torch.testing.assert_close(of_levels, nats + 3 * 4 * 5 * 5 * math.log(2))


def test_at_the_mean_the_gradient_is_finite() -> None:
    mean, logsigma = normal(*SHAPE).requires_grad_(), normal(*SHAPE, seed=1).requires_grad_()
    gaussian_nll_nats(mean.detach(), mean, logsigma).sum().backward()
    torch.testing.assert_close(mean.grad, torch.zeros(SHAPE))
    torch.testing.assert_close(logsigma.grad, torch.ones(SHAPE))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_inputs_neither_overflow_nor_lose_the_sum(dtype: torch.dtype) -> None:
    nats = gaussian_nll_nats(*(torch.full((1, 3, 32, 32), value, dtype=dtype) for value in (100.0, 0.0, -4.0)))
    per_pixel = 0.5 * 100**2 * math.exp(8) - 4 + 0.5 * math.log(2 * math.pi)
    assert nats.dtype == torch.float32
    assert nats.item() == pytest.approx(3 * 32 * 32 * per_pixel, rel=1e-4)


# --- images of b bits
@pytest.mark.parametrize("bits", [1, 5, 8])
def test_pixels_are_really_reduced(bits: int) -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    levels = reduce_bits(pixels, bits)
    width = 256 // 2**bits
    assert levels.unique().tolist() == list(range(2**bits))
    assert (levels.bincount() == width).all()
    images = level_images(levels, bits)
    for level in range(2**bits):
        inside = levels == level
        torch.testing.assert_close(images[inside], (pixels[inside].float().mean() / 255).expand(width))
    with pytest.raises(ValueError, match="bits"):
        reduce_bits(pixels, 9)


def test_dequantised_values_are_uniform_within_their_level() -> None:
    levels = torch.tensor([0, 7, 31]).repeat_interleave(20_000)
    y = dequantise(levels, 5, noise()) * 32
    assert torch.equal(y.floor().long(), levels)
    assert chisquare(torch.histc(y - levels, 20, 0, 1).numpy()).pvalue > 1e-4


@pytest.mark.parametrize(("bits", "sigma", "gap"), [(8, 0.1, 1e-3), (5, 0.1, 0.05), (5, 0.05, 0.5)])
def test_the_bound_on_the_levels_of_a_known_gaussian(bits: int, sigma: float, gap: float) -> None:
    """The mean over the noise is at least −log P(level), and near it where σ is many levels wide."""
    draws, mean = 20_000, 0.47
    levels = torch.arange(2**bits // 3, 2**bits // 3 * 2, 2**bits // 16)
    edges = torch.stack([levels, levels + 1]).double() / 2**bits
    law = torch.distributions.Normal(mean, torch.tensor(sigma, dtype=torch.float64))
    exact = -(law.cdf(edges[1]) - law.cdf(edges[0])).log()

    y = dequantise(levels.expand(draws, -1).reshape(-1, 1, 1, 1), bits, noise())
    nats = level_nll_nats(y, torch.full_like(y, mean), torch.full_like(y, math.log(sigma)), bits).double()
    nats = nats.view(draws, -1)
    error = 5 * nats.std(0) / draws**0.5
    assert (nats.mean(0) > exact - error).all()
    assert ((nats.mean(0) - exact).abs() < gap + error).all()
