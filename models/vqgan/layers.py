"""Convolutional building blocks of the VQGAN's encoder and generator (Esser et al. 2021, arXiv 2012.09841)."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.kernels import attention, upsampled_conv


def normalize(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups; `channels` must be a multiple of 32."""
    return nn.GroupNorm(num_groups=32, num_channels=channels, eps=1e-6, affine=True)


class Downsample(nn.Module):
    """[B,C,H,W] → [B,C,H/2,W/2]: pad right and bottom by one, then a 3×3 convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """[B,C,H,W] → [B,C,2H,2W]: nearest neighbour, then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return upsampled_conv(x, self.conv)


class ResBlock(nn.Module):
    """[B,C_in,H,W] → [B,C_out,H,W], pre-activation and residual; a 1×1 convolution in the skip where widths differ."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = normalize(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm2 = normalize(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        # Published checkpoints hold this convolution in every block, also where it is never applied.
        self.conv_out = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        self.project_skip = in_channels != out_channels

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.conv_out(x) if self.project_skip else x)


class AttnBlock(nn.Module):
    """Residual self-attention over all places of a feature map [B,C,H,W]: one head, scale C^-½."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = normalize(channels)
        self.q = nn.Conv2d(channels, channels, kernel_size=1)
        self.k = nn.Conv2d(channels, channels, kernel_size=1)
        self.v = nn.Conv2d(channels, channels, kernel_size=1)
        self.proj_out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        normed = self.norm(x)
        q, k, v = (conv(normed).flatten(2).transpose(1, 2).unsqueeze(1) for conv in (self.q, self.k, self.v))
        attended = attention(q, k, v)  # [B,1,HW,C]
        return x + self.proj_out(attended.squeeze(1).transpose(1, 2).reshape(b, c, h, w))
