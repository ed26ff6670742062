"""PatchGAN discriminator (Isola et al. 2017, arXiv 1611.07004)."""

from __future__ import annotations

from torch import Tensor, nn


class Discriminator(nn.Module):
    """Judges overlapping patches of an image; batch-normalised, LeakyReLU 0.2."""

    def __init__(
        self,
        n_channels: int,  # image channels
        ndf: int,  # width of the first layer; doubles with each layer up to 8·ndf
        disc_layers: int,  # number of stride-2 layers
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(n_channels, ndf, kernel_size=4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = ndf
        for depth in range(1, disc_layers + 1):
            wider = ndf * min(2**depth, 8)
            layers += [
                nn.Conv2d(width, wider, kernel_size=4, stride=2 if depth < disc_layers else 1, padding=1, bias=False),
                nn.BatchNorm2d(wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        layers.append(nn.Conv2d(width, 1, kernel_size=4, stride=1, padding=1))
        self.main = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] in [0,1] → logits [B,1,h',w'], positive for real."""
        return self.main(x)
