"""The VQGAN's generator (decoder): quantised latents to images, and to a per-pixel standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from models.vqgan.layers import AttnBlock, ResBlock, Upsample, normalize, run_blocks


class Generator(nn.Module):
    """Mirror of the encoder; its log-sigma head serves the likelihood estimate and is trained on its own."""

    def __init__(
        self,
        n_channels: int,  # image channels
        nf: int,  # width of the highest-resolution level
        emb_dim: int,  # width of the latents
        ch_mult: Sequence[int],  # width of each level, in units of nf, highest resolution first
        res_blocks: int,  # residual blocks per level
        img_size: int,  # height = width of the images, pixels
        attn_resolutions: Sequence[int],  # resolutions at which attention follows each residual block
    ) -> None:
        super().__init__()
        width, resolution = nf * ch_mult[-1], img_size // 2 ** (len(ch_mult) - 1)
        blocks: list[nn.Module] = [nn.Conv2d(emb_dim, width, kernel_size=3, padding=1)]
        blocks += [ResBlock(width, width), AttnBlock(width), ResBlock(width, width)]
        for level in reversed(range(len(ch_mult))):
            for _ in range(res_blocks):
                blocks.append(ResBlock(width, nf * ch_mult[level]))
                width = nf * ch_mult[level]
                if resolution in attn_resolutions:
                    blocks.append(AttnBlock(width))
            if level != 0:
                blocks.append(Upsample(width))
                resolution *= 2
        # As published: no activation between the last norm and the last convolution.
        blocks += [normalize(width), nn.Conv2d(width, n_channels, kernel_size=3, padding=1)]
        self.blocks = nn.ModuleList(blocks)
        self.logsigma = nn.Sequential(
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, n_channels, kernel_size=1),
        )

    @property
    def last_conv(self) -> nn.Conv2d:
        """The convolution that makes the image."""
        return cast(nn.Conv2d, self.blocks[-1])

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last convolution, where the adaptive weight compares gradients."""
        return self.last_conv.weight

    def features(self, z_q: Tensor) -> Tensor:
        """Quantised latents [B,D,h,w] → the normalised features [B,nf,H,W] that enter the last convolution."""
        return run_blocks(self.blocks[:-1], z_q)

    def forward(self, z_q: Tensor) -> Tensor:
        """Quantised latents [B,D,h,w] → images [B,C,H,W], about [0,1] but not clipped."""
        return self.last_conv(self.features(z_q))

    def distribution(self, z_q: Tensor) -> tuple[Tensor, Tensor]:
        """Quantised latents [B,D,h,w] → mean and log standard deviation of the pixels, each [B,C,H,W]."""
        features = self.features(z_q)
        return self.last_conv(features), self.logsigma(features)
