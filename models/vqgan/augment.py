"""DiffAugment (Zhao et al. 2020, arXiv 2006.10738): differentiable augmentation in front of the discriminator."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.parts import Noise


def diff_augment(x: Tensor, noise: Noise) -> Tensor:
    """Policy `color,translation` on images [B,C,H,W]: each image gets its own draw; differentiable in x."""
    return translate(contrast(saturation(brightness(x, noise), noise), noise), noise)


def brightness(x: Tensor, noise: Noise) -> Tensor:
    """Add one value from [−½, ½) to all of an image."""
    return x + (_per_image(x, noise) - 0.5)


def saturation(x: Tensor, noise: Noise) -> Tensor:
    """Scale each pixel's distance from its grey value by a factor from [0, 2)."""
    grey = x.mean(dim=1, keepdim=True)
    return (x - grey) * (_per_image(x, noise) * 2) + grey


def contrast(x: Tensor, noise: Noise) -> Tensor:
    """Scale each pixel's distance from the image's mean by a factor from [½, 1½)."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * (_per_image(x, noise) + 0.5) + mean


def translate(x: Tensor, noise: Noise) -> Tensor:
    """Shift each image by up to an eighth of its size in both directions; zeros move in."""
    b, _, h, w = x.shape
    reach_y, reach_x = int(h / 8 + 0.5), int(w / 8 + 0.5)
    dy, dx = (noise.integers(-reach, reach + 1, (b, 1), like=x) for reach in (reach_y, reach_x))
    padded = F.pad(x, (reach_x, reach_x, reach_y, reach_y))
    rows = torch.arange(h, device=x.device) + reach_y + dy  # [B,H]
    columns = torch.arange(w, device=x.device) + reach_x + dx  # [B,W]
    images = torch.arange(b, device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _per_image(x: Tensor, noise: Noise) -> Tensor:
    """One value from [0, 1) per image, [B,1,1,1]."""
    return noise.uniform((x.shape[0], 1, 1, 1), like=x)
