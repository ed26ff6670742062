"""Encoder, generator, discriminator and their layers: shapes, sizes and the two public verbs."""

from typing import Any

import pytest
import torch
from small_models import QUANTIZERS, normal, seeded, uniform
from small_models import autoencoder as small
from torch import nn

from models.sampling.inpainting import codes_of, pixels_of
from models.vqgan.layers import AttnBlock, Downsample, ResBlock
from models.vqgan.networks import Discriminator
from models.vqgan.quantizers import VectorQuantizer

NO_CODES = torch.zeros((1, 120), dtype=torch.int64)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_sizes() -> None:
    sizes = {"img_size": 256, "nf": 128, "ch_mult": (1, 1, 2, 2, 4), "res_blocks": 2, "emb_dim": 256}
    with torch.device("meta"):
        autoencoder = small(lambda: VectorQuantizer(1024, 256, beta=0.25), **sizes)
        discriminator = Discriminator(3, 64, 3)
        assert autoencoder.encoder(torch.empty(1, 3, 256, 256)).shape == (1, 256, 16, 16)
        assert autoencoder.generator(torch.empty(1, 256, 16, 16)).shape == (1, 3, 256, 256)
        assert discriminator(torch.empty(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    assert parameters(autoencoder) == 65_779_974
    assert parameters(discriminator) == 2_765_633


@torch.no_grad()
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize(
    ("changes", "side"),
    [({}, 8), ({"ch_mult": (1, 2, 2)}, 4), ({"n_channels": 1}, 8), ({"res_blocks": 2, "attn_resolutions": (8,)}, 8)],
)
def test_images_to_ids_and_back(quantizer: str, changes: dict[str, Any], side: int) -> None:
    autoencoder = small(quantizer, **changes).eval()
    x = uniform(2, *autoencoder.image_shape)
    ids = autoencoder.encode(x)
    decoded = autoencoder.decode(ids)
    reconstructed, quantized = autoencoder(x)
    assert autoencoder.latent_size == (side, side)
    assert (ids.shape, ids.dtype) == ((2, side * side), torch.int64)
    assert 0 <= ids.min() <= ids.max() < 16
    assert torch.equal(ids, quantized.ids)
    assert decoded.shape == x.shape
    torch.testing.assert_close(decoded, reconstructed.clamp(0, 1), rtol=0, atol=1e-4)  # z + (z_q − z) is rounded
    mean, logsigma = autoencoder.distribution(ids)
    torch.testing.assert_close(mean.clamp(0, 1), decoded)
    features = autoencoder.generator.features(autoencoder.quantize.lookup(ids, (side, side)))
    torch.testing.assert_close(logsigma, autoencoder.generator.logsigma(features))


@torch.no_grad()
def test_decoding_clips_takes_small_integers_and_larger_grids() -> None:
    autoencoder, ids = small(), torch.randint(16, (1, 64), generator=seeded())
    assert torch.equal(autoencoder.decode(ids), autoencoder.decode(ids.to(torch.uint8)))
    assert autoencoder.decode(NO_CODES, size=(12, 10)).shape == (1, 3, 24, 20)
    nn.init.normal_(autoencoder.generator.last_conv.bias, std=5.0)
    decoded = autoencoder.decode(ids)
    assert decoded.dtype == torch.float32
    assert 0 <= decoded.min() <= decoded.max() <= 1


def test_wrong_shapes_and_images_outside_their_range_are_refused() -> None:
    autoencoder, x = small(), uniform(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"\[B, 64\], not \[1, 120\]"):
        autoencoder.decode(NO_CODES)
    for wrong, message in (
        (uniform(2, 3, 8, 8), r"\[B, 3, 16, 16\], not \[2, 3, 8, 8\]"),
        (2 * x - 1, r"images must be in \[0,1\], not within -0\.\d+\.\.0\.\d+"),
        (255 * x, r"\[0,1\], not within .*\.\.25\d"),
        (torch.full_like(x, torch.nan), r"\[0,1\]"),
        ((255 * x).to(torch.uint8), "floating-point numbers in .* not torch.uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            autoencoder.encode(wrong)
    with torch.no_grad():
        unchecked = autoencoder.encode(2 * x - 1, check_range=False)
        assert torch.equal(unchecked, autoencoder.quantize.ids(autoencoder.encoder(2 * x - 1)))
        assert autoencoder.encode(x * (1 + 2e-4) - 1e-4).shape == (2, 64)  # rounded
        assert autoencoder.encode(x[:0]).shape == (0, 64)


def test_attention_stands_where_it_was_asked_for() -> None:
    for resolutions, count in (((), 1), ((16, 8), 3)):
        for part in (small(attn_resolutions=resolutions).encoder, small(attn_resolutions=resolutions).generator):
            assert sum(isinstance(module, AttnBlock) for module in part.modules()) == count


def test_downsampling_pads_right_and_bottom() -> None:
    layer = Downsample(1)
    nn.init.ones_(layer.conv.weight)
    nn.init.zeros_(layer.conv.bias)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    # 3×3 sums that start at even places; what reaches over the lower or right edge counts nothing.
    expected = [[x[0, 0, y : y + 3, column : column + 3].sum() for column in (0, 2)] for y in (0, 2)]
    torch.testing.assert_close(layer(x)[0, 0], torch.tensor(expected))


@pytest.mark.parametrize("widths", [(32, 32), (32, 64)])
def test_residual_blocks_project_the_skip_where_widths_differ(widths: tuple[int, int]) -> None:
    block, x = ResBlock(*widths), normal(1, widths[0], 4, 4)
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    torch.testing.assert_close(block(x), x if widths[0] == widths[1] else block.conv_out(x))


def test_attention_by_hand() -> None:
    torch.manual_seed(0)
    block, x = AttnBlock(32), torch.randn(2, 32, 3, 4)
    q, k, v = (conv(block.norm(x)).flatten(2) for conv in (block.q, block.k, block.v))
    weights = torch.einsum("bci,bcj->bij", q, k).mul(32**-0.5).softmax(-1)
    expected = x + block.proj_out(torch.einsum("bij,bcj->bci", weights, v).view(2, 32, 3, 4))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(("layers", "widths"), [(1, [8, 16]), (3, [8, 16, 32, 64]), (5, [8, 16, 32, 64, 64, 64])])
def test_discriminator_doubles_its_width_up_to_eightfold(layers: int, widths: list[int]) -> None:
    convolutions = [module for module in Discriminator(3, 8, layers).main if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convolutions] == [*widths, 1]
    assert [conv.stride[0] for conv in convolutions] == [2] * layers + [1, 1]


def test_a_code_stands_for_its_cell_of_pixels() -> None:
    pixels = uniform(12, 20) < 0.1
    codes = codes_of(pixels, (3, 5))
    assert 0 < codes.sum() < 15
    for row, column in torch.cartesian_prod(torch.arange(3), torch.arange(5)).tolist():
        cell = (slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
        assert codes[row, column] == pixels[cell].any()  # drawn for any of its pixels
        one = torch.zeros_like(codes)
        one[row, column] = True
        of_one = pixels_of(one, (12, 20))
        assert of_one[cell].all()
        assert of_one.sum() == 16
