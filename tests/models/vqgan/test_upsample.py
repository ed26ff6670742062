"""Doubling height and width: nearest neighbour, then a 3×3 convolution, by whichever way."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from models.vqgan.layers import Upsample


def test_it_convolves_the_enlarged_map() -> None:
    """Values, and the gradients of all that has some, in float64."""
    torch.manual_seed(0)
    up = Upsample(6).double()
    inputs = [torch.randn((2, 6, 5, 7), dtype=torch.float64, requires_grad=True), up.conv.weight, up.conv.bias]
    weights = torch.randn((2, 6, 10, 14), dtype=torch.float64)
    enlarged = F.interpolate(inputs[0], scale_factor=2.0, mode="nearest")
    expected = F.conv2d(enlarged, up.conv.weight, up.conv.bias, padding=1)
    found = up(inputs[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    gradients = (torch.autograd.grad((out * weights).sum(), inputs) for out in (found, expected))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)
