"""How close two images are, pixel by pixel: PSNR and SSIM."""

import torch
from torch import Tensor

SSIM_WINDOW = 11  # pixels
_SIGMA = 1.5


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images [B,C,H,W] in [0,1], in dB: [B]. Equal images count as 100 dB."""
    return -10 * (x - y).square().mean((1, 2, 3)).clamp(min=1e-10).log10()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of images [B,C,H,W] in [0,1], both sides at least `SSIM_WINDOW`: [B], at most 1.

    Wang et al. 2004: a Gaussian window of 11 pixels and σ = 1.5, K = 0.01 and 0.03; windows lie within the image, and
    channels are averaged. Computed in float64, and returned in the type of x.
    """
    dtype = x.dtype
    # Variances are small differences of squares: in float32 they lose up to 3e-4 of the result on flat, bright images.
    x, y = x.double(), y.double()
    down, across = (_windows(side, x.device) for side in x.shape[2:])

    def blur(images: Tensor) -> Tensor:
        return down @ images @ across.T

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    similarity = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * structure
    return similarity.mean((1, 2, 3)).to(dtype)


def _windows(side: int, device: torch.device) -> Tensor:
    """The window's weights at each of its places along a side: [side − `SSIM_WINDOW` + 1, side] float64."""
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64, device=device) - SSIM_WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    places = side - SSIM_WINDOW + 1
    rows = torch.zeros((places, side), dtype=torch.float64, device=device)
    columns = torch.arange(places, device=device)[:, None] + torch.arange(SSIM_WINDOW, device=device)
    return rows.scatter_(1, columns, (weights / weights.sum()).expand(places, -1))
