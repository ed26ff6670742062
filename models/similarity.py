"""How close two images are, pixel by pixel: PSNR and SSIM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SSIM_WINDOW = 11  # pixels
_SIGMA = 1.5


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images [B,C,H,W] in [0,1], in dB: [B]. Equal images count as 100 dB."""
    return -10 * (x - y).square().mean((1, 2, 3)).clamp(min=1e-10).log10()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of images [B,C,H,W] in [0,1], both sides at least `SSIM_WINDOW`: [B], at most 1.

    Wang et al. 2004: a Gaussian window of 11 pixels and σ = 1.5, K = 0.01 and 0.03; windows lie within the image, and
    channels are averaged.
    """
    channels = x.shape[1]
    offsets = torch.arange(SSIM_WINDOW, device=x.device) - SSIM_WINDOW // 2
    line = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    line = (line / line.sum()).to(x.dtype)
    column, row = (line.view(shape).expand(channels, *shape[1:]) for shape in ((1, 1, -1, 1), (1, 1, 1, -1)))

    def blur(images: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(images, column, groups=channels), row, groups=channels)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return ((2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * structure).mean((1, 2, 3))
