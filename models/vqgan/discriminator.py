"""PatchGAN discriminator (Isola et al. 2017, arXiv 1611.07004)."""

from __future__ import annotations

from torch import Tensor, nn

MOMENTUM = 0.1  # share of a batch in the batch norms' running statistics


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
                nn.BatchNorm2d(wider, momentum=MOMENTUM),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        layers.append(nn.Conv2d(width, 1, kernel_size=4, stride=1, padding=1))
        self.main = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] in [0,1] → logits [B,1,h',w'], positive for real."""
        return self.main(x)

    def statistics(self) -> list[Tensor]:
        """A copy of the batch norms' running means and variances."""
        return [value.clone() for value in self._statistics()]

    def see_again(self, before: list[Tensor], after: list[Tensor]) -> None:
        """Move the running statistics as if the batch that took them from `before` to `after` came once more."""
        for value, was, then in zip(self._statistics(), before, after, strict=True):
            # Not by an operation that autograd sees: no graph of training mode reads running statistics.
            value.data.mul_(1 - MOMENTUM).add_(then - (1 - MOMENTUM) * was)
        for name, value in self.named_buffers():
            if name.endswith("num_batches_tracked"):
                value += 1

    def _statistics(self) -> list[Tensor]:
        return [value for name, value in self.named_buffers() if name.endswith(("running_mean", "running_var"))]
