"""The vector-quantised autoencoder: images to ids and back (paper, section 3.1)."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from models.parts import NOISE, Noise
from models.vqgan.layers import ResBlock
from models.vqgan.networks import Encoder, Generator, Sizes
from models.vqgan.quantizers import Quantized, Quantizer

_ROUNDING = 1e-3  # by which images may leave [0,1]


class VQAutoEncoder(nn.Module):
    """Encoder, quantiser and generator. Its two public verbs are `encode` and `decode`."""

    def __init__(self, sizes: Sizes, quantizer: Callable[[], Quantizer]) -> None:
        """quantizer: makes it, after the encoder has drawn its weights."""
        super().__init__()
        self.encoder = Encoder(sizes)
        self.quantize = quantizer()
        self.generator = Generator(sizes)
        self.image_shape = (sizes.n_channels, sizes.img_size, sizes.img_size)
        self.latent_size = (sizes.latent_side, sizes.latent_side)

    def forward(self, x: Tensor, *, step: int = 0, noise: Noise = NOISE) -> tuple[Tensor, Quantized]:
        """Images x [B,C,H,W] in [0,1] → reconstructions [B,C,H,W] and what the quantiser made of them; see there."""
        quantized = self.quantize(self.encoder(x), step=step, noise=noise)
        return self.generator(quantized.z_q), quantized

    def idle_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that training never uses: published files hold a projection of every skip, and the σ head."""
        for module in self.modules():
            if isinstance(module, ResBlock) and not module.project_skip:
                yield from module.conv_out.parameters()
        yield from self.generator.logsigma.parameters()

    def encode(self, images: Tensor, *, check_range: bool = True) -> Tensor:
        """Images [B,C,H,W] in [0,1] → ids [B,N] int64 in 0..K-1, N = h·w in raster order.

        check_range: look at the values, for which the host waits; False for images that were made of uint8.

        Raises:
            ValueError: images of another shape, that are no floats, or not in [0,1].
        """
        if images.shape[1:] != self.image_shape:
            shape = ", ".join(map(str, self.image_shape))
            raise ValueError(f"images must have shape [B, {shape}], not {list(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"images must be floating-point numbers in [0,1], not {images.dtype}")
        if check_range and images.numel():
            low, high = (bound.item() for bound in images.aminmax())
            if not -_ROUNDING <= low <= high <= 1 + _ROUNDING:  # nor with NaN
                raise ValueError(f"images must be in [0,1], not within {low:.4g}..{high:.4g}: scale or clamp them")
        return self.quantize.ids(self.encoder(images))

    def decode(self, ids: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """ids [B,N] int → images [B,C,H,W] float32 in [0,1]; `size` (h, w) where it differs from the training size."""
        size = self.latent_size if size is None else tuple(size)
        if ids.ndim != 2 or ids.shape[1] != size[0] * size[1]:
            raise ValueError(f"ids must have shape [B, {size[0] * size[1]}], not {list(ids.shape)}")
        return self.generator(self.quantize.lookup(ids.long(), size)).float().clamp(0, 1)

    def distribution(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids [B,N] int → mean and log standard deviation of the pixels, each [B,C,H,W]; the mean is not clipped."""
        return self.generator.distribution(self.quantize.lookup(ids.long(), self.latent_size))
