"""The VQGAN's encoder: images to continuous latents."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.vqgan.layers import AttnBlock, Downsample, ResBlock, normalize, run_blocks


class Encoder(nn.Module):
    """Convolutional encoder; halves the resolution once between two levels."""

    def __init__(
        self,
        n_channels: int,  # image channels
        nf: int,  # width of the first level
        emb_dim: int,  # width of the latents
        ch_mult: Sequence[int],  # width of each level, in units of nf
        res_blocks: int,  # residual blocks per level
        img_size: int,  # height = width of the images, pixels
        attn_resolutions: Sequence[int],  # resolutions at which attention follows each residual block
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(n_channels, nf, kernel_size=3, padding=1)]
        width, resolution = nf, img_size
        for level, mult in enumerate(ch_mult):
            for _ in range(res_blocks):
                blocks.append(ResBlock(width, nf * mult))
                width = nf * mult
                if resolution in attn_resolutions:
                    blocks.append(AttnBlock(width))
            if level != len(ch_mult) - 1:
                blocks.append(Downsample(width))
                resolution //= 2
        blocks += [ResBlock(width, width), AttnBlock(width), ResBlock(width, width)]
        # As published: no activation between the last norm and the last convolution.
        blocks += [normalize(width), nn.Conv2d(width, emb_dim, kernel_size=3, padding=1)]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] in [0,1] → latents z [B,D,h,w]."""
        return run_blocks(self.blocks, x)
