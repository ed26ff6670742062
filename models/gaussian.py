"""Pixel-wise Gaussian density of an image under the generator's mean and log standard deviation."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gaussian_nll_nats(x: Tensor, mean: Tensor, logsigma: Tensor) -> Tensor:
    """−log N(x; mean, exp(logsigma)²), summed over an image: three times [B,C,H,W] → [B] nats.

    Scaling by exp(−logsigma) before squaring keeps it finite where exp(2·log|x − mean|) overflows.
    """
    scaled = (x.float() - mean.float()) * torch.exp(-logsigma.float())
    return (0.5 * scaled.square() + logsigma.float() + 0.5 * math.log(2 * math.pi)).sum(dim=(1, 2, 3))
