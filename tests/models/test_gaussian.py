"""The Gaussian density of pixels."""

from __future__ import annotations

import math

import pytest
import torch

from models.gaussian import gaussian_nll_nats


def normal(seed: int) -> torch.Tensor:
    return torch.randn((3, 3, 4, 5), generator=torch.Generator().manual_seed(seed))


def test_it_is_the_density_of_the_normal_distribution() -> None:
    x, mean, logsigma = normal(0), normal(1), normal(2)
    expected = -torch.distributions.Normal(mean.double(), logsigma.double().exp()).log_prob(x.double())
    torch.testing.assert_close(gaussian_nll_nats(x, mean, logsigma), expected.sum((1, 2, 3)).float())


def test_at_the_mean_the_gradient_is_finite() -> None:
    mean, logsigma = normal(0).requires_grad_(), normal(1).requires_grad_()
    gaussian_nll_nats(mean.detach(), mean, logsigma).sum().backward()
    assert mean.grad is not None
    assert logsigma.grad is not None
    assert (mean.grad == 0).all()
    torch.testing.assert_close(logsigma.grad, torch.ones_like(logsigma))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_inputs_neither_overflow_nor_lose_the_sum(dtype: torch.dtype) -> None:
    x, mean, logsigma = torch.full((1, 3, 32, 32), 100.0), torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), -4.0)
    nats = gaussian_nll_nats(x.to(dtype), mean.to(dtype), logsigma.to(dtype))
    per_pixel = 0.5 * 100**2 * math.exp(8) - 4 + 0.5 * math.log(2 * math.pi)
    assert nats.dtype == torch.float32
    assert nats.item() == pytest.approx(3 * 32 * 32 * per_pixel, rel=1e-4)
