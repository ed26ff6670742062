"""PSNR and SSIM against their definitions, written out."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from small_models import uniform
from torch import Tensor

from models.vqgan.similarity import SSIM_WINDOW, psnr, ssim


def images(n: int, seed: int = 0) -> Tensor:
    return uniform(n, 3, 24, 24, seed=seed, dtype=torch.float64)


def test_psnr() -> None:
    x = images(3)
    y = x.clone()
    y[0] += 0.1
    y[1, 0, 0, 0] += 1
    assert psnr(x, y).tolist() == pytest.approx([20, 10 * math.log10(3 * 24 * 24), 100])


def ssim_by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    """Of one channel; the window's radius is 5."""

    def blur(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, 1.5, radius=SSIM_WINDOW // 2)[5:-5, 5:-5]

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    values = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4))
    return float(values.mean())


def test_ssim() -> None:
    x = images(2)
    y = (x + 0.2 * images(2, 1)).clamp(0, 1)
    expected = [np.mean([ssim_by_scipy(x[i, c].numpy(), y[i, c].numpy()) for c in range(3)]) for i in range(2)]
    assert ssim(x, y).tolist() == pytest.approx(expected, rel=1e-6)
    assert ssim(x, x).tolist() == pytest.approx([1, 1])
    assert ssim(x.float(), y.float()).tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("grey", [255, 250, 1])
def test_ssim_of_flat_images(grey: int) -> None:
    """Without any variance only the means count."""
    a, b = grey / 255, (grey - 1) / 255
    x, y = torch.full((2, 3, 64, 64), a), torch.full((2, 3, 64, 64), b)
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    assert ssim(x, y).tolist() == pytest.approx([expected] * 2, abs=1e-6)
    assert ssim(x, y).dtype == torch.float32
    assert ssim(x, x).max() <= 1
