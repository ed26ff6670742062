"""The cache of codes: whole or absent, resumable, and keyed by what made it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import autoencoder as small_autoencoder
from torch import Tensor

from hparams.settings.data import DataSettings
from jobs import a_job
from models.vqgan.autoencoder import VQAutoEncoder
from models.vqgan.quantizers import VectorQuantizer
from utils.data.datasets import ImageData, open_images
from utils.pretrained.building import QUANTIZERS
from utils.sampling.latents import code_statistics, encoded, latents_key

IMAGES = 22


def autoencoder(quantizer: Any = "nearest") -> VQAutoEncoder:
    model = small_autoencoder(quantizer, attn_resolutions=())
    torch.nn.init.normal_(model.quantize.codebook)
    return model


def toys(folder: Path, **changes: Any) -> ImageData:
    which = DataSettings("toy_churches", None, str(folder / "datasets.yaml"), changes.pop("toy_images", IMAGES))
    return open_images(which, **{"split": "train", "img_size": 16, "hold_out": False} | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return toys(tmp_path_factory.mktemp("toys"))


def pixels(data: ImageData) -> Tensor:
    return torch.from_numpy(np.stack([data[i] for i in range(len(data))])).float() / 255


def encode(model: VQAutoEncoder, data: ImageData, *, flip: bool = False) -> np.ndarray:
    with a_job() as job:
        return encoded(job, model, data, Path("latents"), flip=flip)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_codes_of_every_image_in_order_and_then_of_its_mirror_image(data: ImageData, quantizer: str) -> None:
    model = autoencoder(quantizer)
    codes, both = encode(model, data), encode(model, data, flip=True)
    assert (codes.shape, both.shape) == ((IMAGES, 64), (2 * IMAGES, 64))
    assert model.training
    with torch.no_grad():
        np.testing.assert_array_equal(codes, model.eval().encode(pixels(data)).numpy())
        np.testing.assert_array_equal(both[IMAGES:], model.encode(pixels(data).flip(-1)).numpy())
    np.testing.assert_array_equal(both[:IMAGES], codes)
    assert len(np.unique(codes)) > 2


@pytest.mark.parametrize(("codebook_size", "dtype"), [(256, np.uint8), (257, np.uint16), (2**16, np.uint16)])
def test_codes_are_as_small_as_they_can_be(data: ImageData, codebook_size: int, dtype: type[np.generic]) -> None:
    model = autoencoder(partial(VectorQuantizer, codebook_size, 8, beta=0.25))
    codes = encode(model, data)
    assert codes.dtype == dtype
    with torch.no_grad():  # the largest code fits
        model.quantize.codebook.zero_()
        model.quantize.codebook[:-1] += 1e3
    assert (encode(model, data) == codebook_size - 1).all()


def test_an_interrupted_encoding_goes_on_and_a_whole_one_is_read(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.sampling.latents.ROWS", 8)  # of a part file
    model, own, left = autoencoder(), autoencoder().encode, 30

    def encode_some(x: Tensor, **options: bool) -> Tensor:
        nonlocal left
        left -= len(x)
        if left < 0:
            raise KeyboardInterrupt
        return own(x, **options)

    monkeypatch.setattr(model, "encode", encode_some)
    with pytest.raises(KeyboardInterrupt):
        encode(model, data, flip=True)
    left = 2 * (IMAGES - 8)  # a part is done
    codes = encode(model, data, flip=True)
    np.testing.assert_array_equal(codes, torch.cat([own(pixels(data)), own(pixels(data).flip(-1))]).numpy())
    np.testing.assert_array_equal(encode(model, data, flip=True), codes)
    assert left == 0


def test_the_key_changes_with_all_that_makes_the_codes(data: ImageData, tmp_path: Path) -> None:
    model = autoencoder()
    keys = [latents_key(model, data, False), latents_key(model, data, True)]
    with torch.no_grad():  # the generator makes no codes
        model.generator.last_conv.bias.add_(1)
    assert latents_key(model.train(), data, False) == keys[0] == latents_key(autoencoder(), data, False)
    for changed in (model.encoder.blocks[0].bias, model.quantize.codebook):
        with torch.no_grad():
            changed.view(-1)[0] += 1e-3
        keys.append(latents_key(model, data, False))
    others = [toys(tmp_path, toy_images=IMAGES + 1), toys(tmp_path, split="val"), toys(tmp_path, img_size=32)]
    keys += [latents_key(model, other, False) for other in others]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("ids", "bits", "used"), [([[0, 1], [2, 3]], 2.0, 0.5), ([[5, 5]], 0.0, 1 / 8), ([[0, 0, 0, 1]], 0.811278, 2 / 8)]
)
def test_statistics_of_codes(ids: list[list[int]], bits: float, used: float) -> None:
    statistics = code_statistics(torch.tensor(ids, dtype=torch.int32), 8)
    assert statistics["log2_codebook_size"] == 3
    assert statistics["marginal_entropy_bits_per_token"] == pytest.approx(bits, abs=1e-6)
    assert statistics["codebook_used"] == pytest.approx(used)
