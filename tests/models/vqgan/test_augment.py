"""DiffAugment: differentiable, image by image, within its bounds."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.parts import Noise
from models.vqgan.augment import brightness, contrast, diff_augment, saturation, translate

PARTS = [brightness, saturation, contrast, translate, diff_augment]


def images(n: int = 4, size: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand((n, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=dtype)


def seeded(seed: int = 0) -> Noise:
    return Noise(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("augment", PARTS)
def test_gradients_are_exact(augment: Callable[..., Tensor]) -> None:
    x = images(2, 8, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: augment(y, seeded()), x)


@pytest.mark.parametrize("augment", PARTS)
def test_draws_come_from_the_generator(augment: Callable[..., Tensor]) -> None:
    x = images(8)
    assert torch.equal(augment(x, seeded(1)), augment(x, seeded(1)))
    assert not torch.equal(augment(x, seeded(1)), augment(x, seeded(2)))
    assert augment(x, seeded()).shape == x.shape


def test_brightness_adds_one_value_per_image_within_a_half() -> None:
    x = images(2000, 2)
    added = (brightness(x, seeded()) - x).flatten(1)
    assert (added.amax(1) - added.amin(1)).max() < 1e-6
    assert -0.5 <= added.min() < -0.49
    assert 0.49 < added.max() <= 0.5


def test_saturation_scales_the_distance_from_grey() -> None:
    x = images(2000, 2)
    y = saturation(x, seeded())
    torch.testing.assert_close(y.mean(1), x.mean(1))
    factors = ((y - y.mean(1, keepdim=True)).flatten(1).norm(dim=1)) / (x - x.mean(1, keepdim=True)).flatten(1).norm(
        dim=1
    )
    assert 0 <= factors.min() < 0.01
    assert 1.99 < factors.max() < 2


def test_contrast_scales_the_distance_from_the_mean() -> None:
    x = images(2000, 2)
    y = contrast(x, seeded())
    torch.testing.assert_close(y.mean((1, 2, 3)), x.mean((1, 2, 3)), rtol=1e-4, atol=1e-5)
    factors = y.flatten(1).std(1) / x.flatten(1).std(1)
    assert 0.5 <= factors.min() < 0.51
    assert 1.49 < factors.max() < 1.5001


def test_translation_moves_zeros_in_by_up_to_an_eighth() -> None:
    x = images(300) + 1  # nothing of the image itself is zero
    y = translate(x, seeded())
    shifts = set()
    for before, after in zip(x, y, strict=True):
        rows, columns = (after[0] != 0).any(1).nonzero(), (after[0] != 0).any(0).nonzero()
        top, bottom, left, right = (int(v) for v in (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1))
        dy = top if top else bottom - 16
        dx = left if left else right - 16
        shifts.add((dy, dx))
        expected = torch.zeros_like(before)
        expected[:, top:bottom, left:right] = before[:, top - dy : bottom - dy, left - dx : right - dx]
        assert torch.equal(after, expected)
    assert shifts == {(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)}


def test_tiny_images_are_not_translated() -> None:
    x = images(4, 3)
    assert torch.equal(translate(x, seeded()), x)
