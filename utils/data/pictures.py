"""Grids of images, and PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from utils.machine.files import whole_file

SMALLEST_SIDE = 96  # in grids: smaller images are enlarged by a whole factor, so that a person can see them


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0,1], any float type and shape → uint8, rounded; uint8 ones stay as they are."""
    return images if images.dtype == torch.uint8 else (images.detach().float().clamp(0, 1) * 255).round().byte()


def image_grid(images: Tensor, columns: int) -> np.ndarray:
    """Images [n,C,H,W], uint8 or in [0,1] → one picture uint8 [3,H',W'], row by row, small ones enlarged."""
    pixels = to_uint8(images).cpu()
    factor = max(1, -(-SMALLEST_SIDE // min(pixels.shape[-2:])))
    pixels = pixels.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    return make_grid(pixels, nrow=columns, padding=2, pad_value=255).numpy()


def comparison_rows(originals: Tensor, reconstructions: Tensor, most: int = 8) -> tuple[Tensor, int]:
    """Images for a grid, and its number of columns (at most `most`): each row of originals over its reconstructions.

    Both [n,C,H,W], uint8 or in [0,1]. What fills no row is left out. Returns uint8 [2m,C,H,W], m ≤ n.
    """
    columns = min(most, len(originals))
    whole = len(originals) // columns * columns
    pairs = [to_uint8(images)[:whole].cpu().split(columns) for images in (originals, reconstructions)]
    return torch.cat([part for row in zip(*pairs, strict=True) for part in row]), columns


def pil_image(picture: np.ndarray) -> Image.Image:
    """Of uint8 [3,H,W]."""
    return Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write uint8 [3,H,W], whole or not at all."""
    with whole_file(path) as out:
        pil_image(picture).save(out, format="PNG")
