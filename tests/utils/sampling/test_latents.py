"""The cache of codes: whole or absent, resumable, and keyed by what made it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import autoencoder as small_autoencoder
from torch import Tensor

from models.vqgan.autoencoder import VQAutoEncoder
from models.vqgan.quantizers import GumbelQuantizer, VectorQuantizer
from utils.data.datasets import ImageData, open_images
from utils.pretrained.building import QUANTIZERS
from utils.sampling.latents import cached_latents, code_statistics, latents_key

IMAGES = 22
BATCH = 4


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


def encode(folder: Path, model: VQAutoEncoder, data: ImageData, *, flip: bool = False) -> np.ndarray:
    said: list[str] = []
    return cached_latents(folder, model, data, flip=flip, batch_size=BATCH, num_workers=0, say=said.append)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_cache_holds_the_codes_of_every_image_in_order(tmp_path: Path, data: ImageData, quantizer: str) -> None:
    model = autoencoder(quantizer=quantizer).train()
    codes = encode(tmp_path, model, data)
    assert codes.shape == (IMAGES, 64)
    assert isinstance(codes, np.memmap)
    assert not codes.flags.writeable
    assert model.training
    with torch.no_grad():
        np.testing.assert_array_equal(codes, model.eval().encode(pixels(data)).numpy())
    assert len(np.unique(codes)) > 2


def test_flipped_images_follow(tmp_path: Path, data: ImageData) -> None:
    model = autoencoder()
    codes = encode(tmp_path, model, data, flip=True)
    assert codes.shape == (2 * IMAGES, 64)
    np.testing.assert_array_equal(codes[:IMAGES], encode(tmp_path, model, data))
    with torch.no_grad():
        np.testing.assert_array_equal(codes[IMAGES:], model.encode(pixels(data).flip(-1)).numpy())


@pytest.mark.parametrize(("codebook_size", "dtype"), [(256, np.uint8), (257, np.uint16), (2**16, np.uint16)])
def test_codes_are_as_small_as_they_can_be(
    tmp_path: Path, data: ImageData, codebook_size: int, dtype: type[np.generic]
) -> None:
    model = autoencoder(codebook_size)
    codes = encode(tmp_path, model, data)
    assert codes.dtype == dtype
    with torch.no_grad():  # the largest code fits
        model.quantize.codebook.zero_()
        model.quantize.codebook[:-1] += 1e3
    assert (encode(tmp_path, model, data) == codebook_size - 1).all()


def test_a_finished_cache_is_read_and_not_made_again(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = autoencoder()
    first = np.array(encode(tmp_path, model, data))
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".npy"]
    monkeypatch.setattr(model, "encode", None)
    np.testing.assert_array_equal(encode(tmp_path, model, data), first)


class Encoder:
    """Counts the images that it encodes, and fails at the given call."""

    def __init__(self, model: VQAutoEncoder, fail_at: int | None = None) -> None:
        self._encode = model.encode
        self._fail_at = fail_at
        self.calls = self.images = 0

    def __call__(self, images: Tensor, **options: bool) -> Tensor:
        self.calls += 1
        if self.calls == self._fail_at:
            raise KeyboardInterrupt
        self.images += len(images)
        return self._encode(images, **options)


@pytest.mark.parametrize("flip", [False, True])
def test_an_interrupted_encoding_goes_on(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch, flip: bool
) -> None:
    expected = np.array(encode(tmp_path / "whole", autoencoder(), data, flip=flip))
    model, folder = autoencoder(), tmp_path / "interrupted"
    times = 2 if flip else 1
    monkeypatch.setattr(model, "encode", Encoder(autoencoder(), fail_at=4 * times))
    with pytest.raises(KeyboardInterrupt):
        encode(folder, model, data, flip=flip)
    assert not list(folder.glob("*.npy"))

    second = Encoder(autoencoder())
    monkeypatch.setattr(model, "encode", second)
    np.testing.assert_array_equal(encode(folder, model, data, flip=flip), expected)
    assert second.images == times * (IMAGES - 3 * BATCH)  # three batches were safe on disk
    assert sorted(file.suffix for file in folder.iterdir()) == [".json", ".npy"]


def test_an_encoding_that_is_asked_to_stop_keeps_what_it_has(tmp_path: Path, data: ImageData) -> None:
    model, calls = autoencoder(), iter(range(3))

    def stop() -> None:
        if next(calls) == 2:
            raise SystemExit(143)

    arguments = {"flip": False, "batch_size": BATCH, "num_workers": 0, "say": print}
    with pytest.raises(SystemExit):
        cached_latents(tmp_path, model, data, **arguments, check=stop)
    again = Encoder(autoencoder())
    model.encode = again
    codes = cached_latents(tmp_path, model, data, **arguments)
    assert again.images == IMAGES - 3 * BATCH
    with torch.no_grad():
        np.testing.assert_array_equal(codes, autoencoder().encode(pixels(data)).numpy())


@pytest.mark.parametrize("damage", ["partial", "progress", "other shape"])
def test_what_cannot_be_continued_is_begun_anew(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    model = autoencoder()
    monkeypatch.setattr(model, "encode", Encoder(autoencoder(), fail_at=4))
    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path, model, data)
    (partial,), (progress,) = tmp_path.glob("*.partial"), tmp_path.glob("*.progress.json")
    if damage == "partial":
        partial.write_bytes(partial.read_bytes()[:50])
    elif damage == "progress":
        progress.write_text('{"do')
    else:
        np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(3, 64))
    again = Encoder(autoencoder())
    monkeypatch.setattr(model, "encode", again)
    codes = encode(tmp_path, model, data)
    assert again.images == IMAGES
    with torch.no_grad():
        np.testing.assert_array_equal(codes, autoencoder().encode(pixels(data)).numpy())


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


def test_of_two_runs_that_start_at_once_one_encodes(tmp_path: Path, data: ImageData) -> None:
    """Each thread opens the lock by itself, as a process would."""
    said: list[str] = []
    model = autoencoder()

    def start(_: int) -> np.ndarray:
        return cached_latents(tmp_path, model, data, flip=False, batch_size=1, num_workers=0, say=said.append)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(start, range(2))
    np.testing.assert_array_equal(first, second)
    assert len([line for line in said if line.startswith("encoding 22 images")]) == 1
