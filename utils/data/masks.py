"""Which pixels of an image are to be painted anew. Imports no torch, so that a wrong mask is refused at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hparams.errors import UserError
from hparams.settings.sampling import InpaintingSettings
from utils.data.images import decode_rgb, resize_and_crop


def painted_pixels(inpainting: InpaintingSettings, side: int) -> np.ndarray:
    """The pixels of --region, or those that are white in the image --mask_path: bool [side,side].

    Raises:
        UserError: --mask_path is no image, is transparent somewhere, or has no white.
    """
    if inpainting.mask_path:
        told = f"--mask_path {inpainting.mask_path}"
        image = decode_rgb(Path(inpainting.mask_path), told, opaque=True)
        white: np.ndarray = resize_and_crop(image, side, told).mean(0) >= 128
        if not white.any():
            raise UserError(
                f"{told}: nothing of it is white when it is resized and cropped to {side}x{side} pixels, as the data "
                "are: use one that is white where to paint anew"
            )
        return white
    assert inpainting.region is not None  # resolved settings
    top, left, height, width = inpainting.region
    pixels = np.zeros((side, side), bool)
    pixels[top : top + height, left : left + width] = True
    return pixels
