"""Images of b bits under the generator's pixel-wise Gaussian: density, dequantisation, and the bound that they give."""

import math

import torch
from torch import Tensor

from models.parts import Noise


def gaussian_nll_nats(x: Tensor, mean: Tensor, logsigma: Tensor) -> Tensor:
    """−log N(x; mean, exp(logsigma)²), summed over an image: three times [B,C,H,W] → [B] nats.

    Scaling by exp(−logsigma) before squaring keeps it finite where exp(2·log|x − mean|) overflows.
    """
    scaled = (x.float() - mean.float()) * torch.exp(-logsigma.float())
    return (0.5 * scaled.square() + logsigma.float() + 0.5 * math.log(2 * math.pi)).sum(dim=(1, 2, 3))


def reduce_bits(pixels: Tensor, bits: int) -> Tensor:
    """The leading `bits` (1 to 8) of pixels, any shape of uint8 → int64 levels in 0..2^bits − 1."""
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be from 1 to 8, not {bits}")
    return pixels.long() >> (8 - bits)


def level_images(levels: Tensor, bits: int) -> Tensor:
    """Levels as an image, float32 in [0,1]: each stands for the mean of its 8-bit values; at 8 bits, level / 255."""
    width = 2 ** (8 - bits)
    return (levels.float() * width + (width - 1) / 2) / 255


def dequantise(levels: Tensor, bits: int, noise: Noise) -> Tensor:
    """(levels + u) / 2^bits with u uniform on [0,1), float32 in [0,1]."""
    return (levels + noise.uniform(levels.shape, like=levels)) / 2**bits


def level_nll_nats(x: Tensor, mean: Tensor, logsigma: Tensor, bits: int) -> Tensor:
    """Density of dequantised images as a code length of their levels: three times [B,C,H,W] → [B] nats.

    A level is 2^−bits wide. The mean over the dequantising noise is an upper bound on −log P(levels), by Jensen's
    inequality (Theis et al. 2016, arXiv 1511.01844, section 3.1).
    """
    return gaussian_nll_nats(x, mean, logsigma) + x[0].numel() * bits * math.log(2)
