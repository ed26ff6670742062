"""A part of given images painted anew, on the toy runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hparams.settings.data import DataSettings
from shown import shown
from utils.data.datasets import open_images
from utils.pretrained.loading import load_autoencoder

INPAINT = "experiments/inpaint.py {RUN} --load_dir absorbing --n_images 3 --n_samples 2"


@pytest.fixture(scope="module")
def codes(toy: Any) -> np.ndarray:
    """What was drawn by --region, once more from the same folder, and alike by --mask_path: [3,2,8,8]."""
    mask = np.zeros((32, 32), np.uint8)
    mask[10:16, 2:30] = 255  # twice as large as the images; the codes are those of 2 × 2 pixels
    Image.fromarray(mask).save(toy.folder / "mask.png")
    region = f"{INPAINT} --log_dir by_region --region 5 1 3 14"
    (by_region,), _ = toy.abreast([region], [f"{INPAINT} --log_dir by_mask --mask_path mask.png"])
    assert "16 of 64 codes" in by_region
    assert re.search("^6 images in .*logs/by_region/images/.*: 2 for each image", by_region, re.MULTILINE)
    assert "inpainted.png: image, what is given of it, completions" in by_region
    assert "sampling  6/6 images" in by_region
    assert not re.search("^sampling  ", toy.ok(region), re.MULTILINE)  # the codes were there
    by_region, by_mask = (list((toy.logs / run / "samples").glob("*/*.npy")) for run in ("by_region", "by_mask"))
    (codes,), (same,) = map(np.load, by_region), map(np.load, by_mask)
    assert np.array_equal(codes, same)
    return codes.reshape(3, 2, 8, 8)


def test_what_is_outside_the_region_keeps_its_codes(toy: Any, codes: np.ndarray) -> None:
    where = toy.folder / "datasets.yaml"
    which = DataSettings("toy_churches", None, str(where), 96)
    data = open_images(which, split="val", img_size=16, hold_out=True)
    images = torch.from_numpy(np.stack([data[i] for i in range(3)])) / 255
    original = load_autoencoder("vqgan", root=toy.logs, device="cpu").encode(images).view(3, 1, 8, 8).numpy()
    changed = codes != original
    assert not changed[:, :, [0, 1, 4, 5, 6, 7]].any()
    assert changed[:, :, 2:4].any()
    assert (codes[:, 0] != codes[:, 1]).any(axis=(1, 2)).all()  # no two completions alike
    assert (codes < 32).all()


@pytest.mark.usefixtures("codes")
def test_pictures(toy: Any) -> None:
    images = toy.logs / "by_region/images"
    assert [file.name for file in sorted((images / "samples").glob("*"))] == [f"{i:06d}.png" for i in range(6)]
    picture = np.asarray(Image.open(images / "inpainted.png"))
    assert picture.shape == (3 * 98 + 2, 4 * 98 + 2, 3)  # each image, what is given of it, two completions
    first = np.asarray(Image.open(images / "samples/000000.png")).repeat(6, 0).repeat(6, 1)
    assert np.array_equal(picture[2:98, 198:294], first)
    assert list(shown(toy.logs / "by_region").panes) == ["inpainted"]


def test_a_mask_without_white_is_refused(toy: Any, tmp_path: Path) -> None:
    """Before anything is loaded, by --dry_run too."""
    Image.new("L", (16, 16)).save(tmp_path / "black.png")
    line = toy.refused(f"{INPAINT} --log_dir black --mask_path {tmp_path}/black.png")
    assert "black.png: nothing of it is white" in line
    assert toy.refused(f"{INPAINT} --log_dir black --mask_path {tmp_path}/black.png --dry_run") == line
    assert not (toy.logs / "black").exists()
