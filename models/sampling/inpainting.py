"""Pixels that are painted anew, and the codes that stand for them."""

import torch.nn.functional as F
from torch import Tensor


def codes_of(pixels: Tensor, latent_size: tuple[int, int]) -> Tensor:
    """Codes that stand for any of some pixels: [H,W] bool → [h,w] bool, where h and w divide H and W."""
    return F.adaptive_max_pool2d(pixels[None].float(), latent_size)[0] > 0


def pixels_of(codes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Pixels that some codes stand for: [h,w] bool → [H,W] bool."""
    return F.interpolate(codes[None, None].float(), image_size)[0, 0] > 0
