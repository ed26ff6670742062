"""The VQGAN's three networks: encoder, generator (decoder), and the discriminator that judges its images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from models.vqgan.layers import AttnBlock, Downsample, ResBlock, Upsample, normalize


@dataclass(frozen=True)
class Sizes:
    """Of encoder and generator, whose latents are `latent_side` high and wide."""

    n_channels: int  # image channels
    img_size: int  # height = width of the images, pixels
    nf: int  # width of the highest-resolution level
    ch_mult: Sequence[int]  # width of each level, in units of nf
    res_blocks: int  # residual blocks per level
    attn_resolutions: Sequence[int]  # resolutions with attention
    emb_dim: int  # D, width of the latents

    @property
    def latent_side(self) -> int:
        return self.img_size // 2 ** (len(self.ch_mult) - 1)


class Encoder(nn.Module):
    """Convolutional encoder; halves the resolution once between two levels."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, resolution = sizes.nf, sizes.img_size
        blocks: list[nn.Module] = [nn.Conv2d(sizes.n_channels, width, kernel_size=3, padding=1)]
        for level, mult in enumerate(sizes.ch_mult):
            for _ in range(sizes.res_blocks):
                blocks.append(ResBlock(width, sizes.nf * mult))
                width = sizes.nf * mult
                if resolution in sizes.attn_resolutions:
                    blocks.append(AttnBlock(width))
            if level != len(sizes.ch_mult) - 1:
                blocks.append(Downsample(width))
                resolution //= 2
        blocks += [ResBlock(width, width), AttnBlock(width), ResBlock(width, width)]
        # As published: no activation between the last norm and the last convolution.
        blocks += [normalize(width), nn.Conv2d(width, sizes.emb_dim, kernel_size=3, padding=1)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] in [0,1] → latents z [B,D,h,w]."""
        return self.blocks(x)


class Generator(nn.Module):
    """Mirror of the encoder; its log-sigma head serves the likelihood estimate and is trained on its own."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, resolution = sizes.nf * sizes.ch_mult[-1], sizes.latent_side
        blocks: list[nn.Module] = [nn.Conv2d(sizes.emb_dim, width, kernel_size=3, padding=1)]
        blocks += [ResBlock(width, width), AttnBlock(width), ResBlock(width, width)]
        for level, mult in reversed(list(enumerate(sizes.ch_mult))):
            for _ in range(sizes.res_blocks):
                blocks.append(ResBlock(width, sizes.nf * mult))
                width = sizes.nf * mult
                if resolution in sizes.attn_resolutions:
                    blocks.append(AttnBlock(width))
            if level != 0:
                blocks.append(Upsample(width))
                resolution *= 2
        # As published: no activation between the last norm and the last convolution.
        blocks += [normalize(width), nn.Conv2d(width, sizes.n_channels, kernel_size=3, padding=1)]
        self.blocks = nn.Sequential(*blocks)
        hidden = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.logsigma = nn.Sequential(hidden, nn.ReLU(), nn.Conv2d(width, sizes.n_channels, kernel_size=1))

    @property
    def last_conv(self) -> nn.Conv2d:
        return cast(nn.Conv2d, self.blocks[-1])

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last convolution, where the adaptive weight compares gradients."""
        return self.last_conv.weight

    def features(self, z_q: Tensor) -> Tensor:
        """Quantised latents [B,D,h,w] → the normalised features [B,nf,H,W] that enter the last convolution."""
        return self.blocks[:-1](z_q)

    def forward(self, z_q: Tensor) -> Tensor:
        """Quantised latents [B,D,h,w] → images [B,C,H,W], about [0,1] but not clipped."""
        return self.last_conv(self.features(z_q))

    def distribution(self, z_q: Tensor) -> tuple[Tensor, Tensor]:
        """Quantised latents [B,D,h,w] → mean and log standard deviation of the pixels, each [B,C,H,W]."""
        features = self.features(z_q)
        return self.last_conv(features), self.logsigma(features)


class Discriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, arXiv 1611.07004): judges overlapping patches; batch-normalised, LeakyReLU 0.2."""

    def __init__(self, n_channels: int, ndf: int, disc_layers: int) -> None:
        """ndf: width of the first layer; doubles with each up to 8·ndf. disc_layers: number of stride-2 layers."""
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(n_channels, ndf, kernel_size=4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = ndf
        for depth in range(1, disc_layers + 1):
            wider, stride = ndf * min(2**depth, 8), 2 if depth < disc_layers else 1
            conv = nn.Conv2d(width, wider, kernel_size=4, stride=stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(wider), nn.LeakyReLU(0.2)]
            width = wider
        layers.append(nn.Conv2d(width, 1, kernel_size=4, stride=1, padding=1))
        self.main = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] in [0,1] → logits [B,1,h',w'], positive for real."""
        return self.main(x)
