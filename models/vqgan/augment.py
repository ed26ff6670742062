"""DiffAugment (Zhao et al. 2020, arXiv 2006.10738): differentiable augmentation in front of the discriminator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.parts import WHOLE, BatchPart


def diff_augment(x: Tensor, generator: torch.Generator | None = None, part: BatchPart = WHOLE) -> Tensor:
    """Policy `color,translation` on images [B,C,H,W]: each image gets its own draw; differentiable in x.

    part: which part of the batch x is, here and below.
    """
    coloured = contrast(saturation(brightness(x, generator, part), generator, part), generator, part)
    return translate(coloured, generator, part)


def brightness(x: Tensor, generator: torch.Generator | None = None, part: BatchPart = WHOLE) -> Tensor:
    """Add one value from [−½, ½) to all of an image."""
    return x + (_uniform(x, generator, part) - 0.5)


def saturation(x: Tensor, generator: torch.Generator | None = None, part: BatchPart = WHOLE) -> Tensor:
    """Scale each pixel's distance from its grey value by a factor from [0, 2)."""
    grey = x.mean(dim=1, keepdim=True)
    return (x - grey) * (_uniform(x, generator, part) * 2) + grey


def contrast(x: Tensor, generator: torch.Generator | None = None, part: BatchPart = WHOLE) -> Tensor:
    """Scale each pixel's distance from the image's mean by a factor from [½, 1½)."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * (_uniform(x, generator, part) + 0.5) + mean


def translate(
    x: Tensor, generator: torch.Generator | None = None, part: BatchPart = WHOLE, ratio: float = 0.125
) -> Tensor:
    """Shift each image by up to `ratio` of its size in both directions; zeros move in."""
    b, _, h, w = x.shape
    reach_y, reach_x = int(h * ratio + 0.5), int(w * ratio + 0.5)

    def shifts(reach: int) -> Tensor:
        return part.draw(
            (b, 1), lambda shape: torch.randint(-reach, reach + 1, shape, generator=generator, device=x.device)
        )

    dy, dx = shifts(reach_y), shifts(reach_x)
    padded = F.pad(x, (reach_x, reach_x, reach_y, reach_y))
    rows = torch.arange(h, device=x.device) + reach_y + dy  # [B,H]
    columns = torch.arange(w, device=x.device) + reach_x + dx  # [B,W]
    images = torch.arange(b, device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _uniform(x: Tensor, generator: torch.Generator | None, part: BatchPart) -> Tensor:
    """One value from [0, 1) per image, shaped [B,1,1,1]."""
    return part.draw(
        (x.shape[0], 1, 1, 1), lambda shape: torch.rand(shape, generator=generator, device=x.device, dtype=x.dtype)
    )
