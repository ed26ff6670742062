"""DiffAugment: differentiable, image by image, within its bounds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import noise, uniform
from torch import Tensor

from models.vqgan.augment import brightness, contrast, diff_augment, saturation, translate


@pytest.mark.parametrize("augment", [brightness, saturation, contrast, translate, diff_augment])
def test_gradients_are_exact_and_draws_come_from_the_generator(augment: Callable[..., Tensor]) -> None:
    x = uniform(2, 3, 8, 8, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: augment(y, noise()), x)
    x = uniform(8, 3, 16, 16)
    assert torch.equal(augment(x, noise(1)), augment(x, noise(1)))
    assert not torch.equal(augment(x, noise(1)), augment(x, noise(2)))
    assert augment(x, noise()).shape == x.shape


def test_brightness_adds_one_value_per_image_within_a_half() -> None:
    x = uniform(2000, 3, 2, 2)
    added = (brightness(x, noise()) - x).flatten(1)
    assert (added.amax(1) - added.amin(1)).max() < 1e-6
    assert -0.5 <= added.min() < -0.49
    assert 0.49 < added.max() <= 0.5


@pytest.mark.parametrize(("augment", "dims", "least", "most"), [(saturation, 1, 0, 2), (contrast, (1, 2, 3), 0.5, 1.5)])
def test_the_distance_from_grey_or_from_the_mean_is_scaled(augment: Any, dims: Any, least: float, most: float) -> None:
    x = uniform(2000, 3, 2, 2)
    y = augment(x, noise())
    torch.testing.assert_close(y.mean(dims), x.mean(dims), rtol=1e-4, atol=1e-5)
    before, after = ((images - images.mean(dims, keepdim=True)).flatten(1) for images in (x, y))
    factors = (after * before).sum(1) / before.square().sum(1)
    torch.testing.assert_close(after, factors[:, None] * before, rtol=1e-4, atol=1e-5)
    assert least - 1e-4 <= factors.min() < least + 0.01
    assert most - 0.01 < factors.max() < most + 1e-4


def test_translation_moves_zeros_in_by_up_to_an_eighth() -> None:
    x = uniform(300, 3, 16, 16) + 1  # nothing of the image itself is zero
    shifts = set()
    for before, after in zip(x, translate(x, noise()), strict=True):
        rows, columns = (after[0] != 0).any(1).nonzero(), (after[0] != 0).any(0).nonzero()
        top, bottom, left, right = (int(v) for v in (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1))
        dy, dx = top or bottom - 16, left or right - 16
        shifts.add((dy, dx))
        expected = torch.zeros_like(before)
        expected[:, top:bottom, left:right] = before[:, top - dy : bottom - dy, left - dx : right - dx]
        assert torch.equal(after, expected)
    assert shifts == {(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)}
    tiny = uniform(4, 3, 3, 3)
    assert torch.equal(translate(tiny, noise()), tiny)
