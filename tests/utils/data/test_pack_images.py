"""Packed images are those of the folder: pixels, order, splits."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hparams.errors import UserError
from hparams.settings.data import DataSettings
from utils.data import pack_images
from utils.data.batches import stand_in
from utils.data.datasets import ImageData, Split, open_images


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(23):
        file = tmp_path / f"photographs/{number % 3}/{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)).save(file)
    return tmp_path / "photographs"


def open_custom(folder: Path, split: Split, hold_out: bool = True) -> ImageData:
    return open_images(DataSettings("custom", str(folder)), split=split, img_size=24, hold_out=hold_out)


def pack(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["pack_images", "--dataset", "custom", "--num_workers", "0", *flags])
    pack_images.main()


def test_training_sees_the_same_images(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "packed"
    flags = ["--custom_dataset_path", str(photographs), "--img_size", "24", "--out", str(packed)]
    pack(monkeypatch, *flags, "--dry_run")
    assert capsys.readouterr().out == f"23 images would be packed in {packed}\n"
    assert list(tmp_path.iterdir()) == [photographs]
    pack(monkeypatch, *flags)
    splits: tuple[tuple[Split, bool], ...] = (("train", True), ("val", True), ("all", True), ("train", False))
    for split, hold_out in splits:
        original, copy = (open_custom(folder, split, hold_out) for folder in (photographs, packed))
        assert len(original) == len(copy)
        assert all(np.array_equal(original[i], copy[i]) for i in range(len(original)))
    train, val, every = (open_custom(packed, split) for split, _ in splits[:3])
    assert train.fingerprint != val.fingerprint
    assert np.array_equal(val[0], every[len(train)])
    with pytest.raises(UserError, match=r"--out .* exists"):
        pack(monkeypatch, *flags)
    with pytest.raises(UserError, match=r"^--out is required: "):
        pack(monkeypatch, *flags[:-2])


def test_images_that_cannot_be_read_have_a_stand_in_and_are_listed(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = photographs / "1/7.jpg"
    broken.write_bytes(broken.read_bytes()[:90])
    flags = ["--custom_dataset_path", str(photographs), "--img_size", "24", "--out", str(tmp_path / "packed")]
    with pytest.raises(UserError, match=r"1 of 23 images cannot be read, more than --max_bad_images 0\.01 .*7\.jpg"):
        pack(monkeypatch, *flags)
    assert not (tmp_path / "packed").exists()
    with pytest.raises(UserError, match="--max_bad_images: '1' is not a number of at least 0 and below 1"):
        pack(monkeypatch, *flags, "--max_bad_images", "1")

    pack(monkeypatch, *flags, "--max_bad_images", "0.05")
    original, copy = (open_custom(folder, "all") for folder in (photographs, tmp_path / "packed"))
    (number,) = (i for i in range(23) if original.source(i) == str(broken))
    for i in range(23):
        assert np.array_equal(copy[i], original[stand_in(number, 1, 23) if i == number else i])
    (line,) = (tmp_path / "packed.bad_images.txt").read_text().splitlines()
    assert line.startswith(f"{broken}\t")
