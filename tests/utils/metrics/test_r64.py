"""R64's weights never change: results made with it stay comparable."""

from __future__ import annotations

import hashlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.metrics.r64 import R64


@pytest.fixture(scope="module")
def r64() -> R64:
    return R64()


def features(r64: R64, images: Tensor) -> Tensor:
    with torch.no_grad():
        return r64(images)[0]


def test_the_weights_are_these(r64: R64) -> None:
    digest = hashlib.sha256()
    for name, value in r64.model.state_dict().items():
        digest.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
        digest.update(value.numpy().astype("<f4").tobytes())
    assert digest.hexdigest() == "fc72eb60833e14e2b2ecfa188762202fe78dfab613285742cfe0ae5c3b6c854d"


def test_weights_fill_their_range(r64: R64) -> None:
    """Uniform within ±sqrt(6 / fan-in), which has a standard deviation of sqrt(2 / fan-in); biases are zero."""
    for name, value in r64.model.named_parameters():
        if value.ndim == 1:
            assert not value.any(), name
            continue
        fan_in = value[0].numel()
        assert value.abs().max() <= (6 / fan_in) ** 0.5
        assert value.std() == pytest.approx((2 / fan_in) ** 0.5, rel=0.03), name
        assert value.mean().abs() < 5 * (2 / fan_in / value.numel()) ** 0.5, name


def test_the_layers_are_vgg16s(r64: R64) -> None:
    """Layer by layer, with the forward pass written out."""
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = images / 127.5 - 1
    convolutions = iter(m for m in r64.model.features if isinstance(m, torch.nn.Conv2d))
    for count in (2, 2, 3, 3, 3):
        for _ in range(count):
            x = F.relu(F.conv2d(x, next(convolutions).weight, padding=1))
        x = F.max_pool2d(x, 2)
    x = F.adaptive_avg_pool2d(x, 7).flatten(1)
    first, second, last = (m for m in r64.model.classifier if isinstance(m, torch.nn.Linear))
    assert last.weight.shape == (64, 4096)
    expected = F.relu(F.relu(x @ first.weight.T) @ second.weight.T) @ last.weight.T
    got = features(r64, images)
    assert got.shape == (2, 64)
    assert got.dtype == torch.float32
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_any_size_is_resized_without_aliasing(r64: R64) -> None:
    """Each pixel four times, or the same picture at a quarter of the side, looks the same."""
    small = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    checkers = torch.zeros((1, 3, 256, 256), dtype=torch.uint8)
    checkers[..., ::2, ::2] = checkers[..., 1::2, 1::2] = 255
    grey = torch.full((1, 3, 64, 64), 127, dtype=torch.uint8)
    assert (features(r64, checkers) - features(r64, grey)).norm() < 0.05 * features(r64, small).norm()


def test_the_global_stream_is_left_alone() -> None:
    before = torch.get_rng_state()
    R64()
    assert torch.equal(torch.get_rng_state(), before)
