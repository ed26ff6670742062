"""The cache of codes: whole or absent, resumable, and keyed by what made it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import autoencoder as small_autoencoder
from torch import Tensor

from jobs import a_job
from models.vqgan.autoencoder import VQAutoEncoder
from models.vqgan.quantizers import GumbelQuantizer, VectorQuantizer
from utils.data.datasets import ImageData, open_images
from utils.pretrained.building import QUANTIZERS
from utils.sampling.latents import code_statistics, encoded, latents_key

IMAGES = 22


def autoencoder(codebook_size: int = 16, quantizer: str = "nearest") -> VQAutoEncoder:
    torch.manual_seed(0)
    kinds: dict[str, Any] = {
        "nearest": lambda: VectorQuantizer(codebook_size, 4, beta=0.25),
        "gumbel": lambda: GumbelQuantizer(codebook_size, 4, kl_weight=0.0, straight_through=False),
    }
    model = small_autoencoder(attn_resolutions=(), emb_dim=4, quantizer=kinds[quantizer])
    torch.nn.init.normal_(model.quantize.codebook)
    return model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return toys(tmp_path_factory.mktemp("toys"))


def toys(folder: Path, **changes: Any) -> ImageData:
    arguments = {"split": "train", "img_size": 16, "toy_images": IMAGES, "hold_out": False}
    return open_images("toy_churches", datasets_file=folder / "datasets.yaml", **arguments | changes)


def pixels(data: ImageData) -> Tensor:
    return torch.from_numpy(np.stack([data[i] for i in range(len(data))])).float() / 255


def encode(model: VQAutoEncoder, data: ImageData, *, flip: bool = False) -> np.ndarray:
    with a_job() as job:
        return encoded(job, model, data, Path("latents"), flip=flip)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_cache_holds_the_codes_of_every_image_in_order(data: ImageData, quantizer: str) -> None:
    model = autoencoder(quantizer=quantizer).train()
    codes = encode(model, data)
    assert codes.shape == (IMAGES, 64)
    assert model.training
    with torch.no_grad():
        np.testing.assert_array_equal(codes, model.eval().encode(pixels(data)).numpy())
    assert len(np.unique(codes)) > 2


def test_flipped_images_follow(data: ImageData) -> None:
    model = autoencoder()
    codes = encode(model, data, flip=True)
    assert codes.shape == (2 * IMAGES, 64)
    np.testing.assert_array_equal(codes[:IMAGES], encode(model, data))
    with torch.no_grad():
        np.testing.assert_array_equal(codes[IMAGES:], model.encode(pixels(data).flip(-1)).numpy())


@pytest.mark.parametrize(("codebook_size", "dtype"), [(256, np.uint8), (257, np.uint16), (2**16, np.uint16)])
def test_codes_are_as_small_as_they_can_be(data: ImageData, codebook_size: int, dtype: type[np.generic]) -> None:
    model = autoencoder(codebook_size)
    codes = encode(model, data)
    assert codes.dtype == dtype
    with torch.no_grad():  # the largest code fits
        model.quantize.codebook.zero_()
        model.quantize.codebook[:-1] += 1e3
    assert (encode(model, data) == codebook_size - 1).all()


@pytest.mark.parametrize("flip", [False, True])
def test_an_interrupted_encoding_goes_on_and_a_whole_one_is_read(
    data: ImageData, monkeypatch: pytest.MonkeyPatch, flip: bool
) -> None:
    monkeypatch.setattr("utils.sampling.latents.ROWS", 8)  # of a part file
    model, own, images = autoencoder(), autoencoder().encode, 0

    def encode_some(x: Tensor, **options: bool) -> Tensor:
        nonlocal images
        images += len(x)
        if images > 40:
            raise KeyboardInterrupt
        return own(x, **options)

    monkeypatch.setattr(model, "encode", encode_some)
    codes = None
    while codes is None:
        before, images = images, 0
        with suppress(KeyboardInterrupt):
            codes = encode(model, data, flip=flip)
    assert (before > 0) == flip  # 44 images with their mirror images, and 40 were done
    expected = [own(pixels(data)), own(pixels(data).flip(-1))][: 1 + flip]
    np.testing.assert_array_equal(codes, torch.cat(expected).numpy())
    images = 100
    np.testing.assert_array_equal(encode(model, data, flip=flip), codes)


def test_the_key_changes_with_all_that_makes_the_codes(data: ImageData, tmp_path: Path) -> None:
    model = autoencoder()
    keys = [latents_key(model, data, False), latents_key(model, data, True)]
    for changed in (model.encoder.blocks[0].bias, model.quantize.codebook):
        with torch.no_grad():
            changed.view(-1)[0] += 1e-3
        keys.append(latents_key(model, data, False))
    others = [toys(tmp_path, toy_images=IMAGES + 1), toys(tmp_path, split="val"), toys(tmp_path, img_size=32)]
    keys += [latents_key(model, other, False) for other in others]
    assert len(set(keys)) == len(keys)


def test_the_key_is_the_same_wherever_nothing_changed(data: ImageData) -> None:
    model = autoencoder()
    key = latents_key(model, data, False)
    with torch.no_grad():  # the generator makes no codes
        model.generator.last_conv.bias.add_(1)
    assert latents_key(model.train(), data, False) == key == latents_key(autoencoder(), data, False)


@pytest.mark.parametrize(
    ("ids", "bits", "used"), [([[0, 1], [2, 3]], 2.0, 0.5), ([[5, 5]], 0.0, 1 / 8), ([[0, 0, 0, 1]], 0.811278, 2 / 8)]
)
def test_statistics_of_codes(ids: list[list[int]], bits: float, used: float) -> None:
    statistics = code_statistics(torch.tensor(ids, dtype=torch.int32), 8)
    assert statistics["log2_codebook_size"] == 3
    assert statistics["marginal_entropy_bits_per_token"] == pytest.approx(bits, abs=1e-6)
    assert statistics["codebook_used"] == pytest.approx(used)
