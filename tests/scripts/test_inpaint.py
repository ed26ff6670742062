"""A part of given images painted anew, on the toy runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import inpaint
from hparams.cli import parse
from hparams.settings.experiments import InpaintingExperiment
from shown import shown
from utils.data.datasets import open_images
from utils.pretrained.loading import load_autoencoder
from utils.runs.job import open_job

INPAINT = "experiments/inpaint.py {RUN} --load_dir absorbing --n_images 3 --n_samples 2"


@pytest.fixture(scope="module")
def printed(toy: Any) -> list[str]:
    """What calls print that tell the same part of the image by --region, once more, and by --mask_path."""
    mask = np.zeros((32, 32), np.uint8)
    mask[10:16, 2:30] = 255  # twice as large as the images; the codes are those of 2 × 2 pixels
    Image.fromarray(mask).save(toy.folder / "mask.png")
    (by_region,), (by_mask,) = toy.abreast(
        [f"{INPAINT} --log_dir by_region --region 5 1 3 14"],
        [f"{INPAINT} --log_dir by_mask --mask_path mask.png"],
    )
    codes = by_run(toy, "by_region")
    again = toy.ok(f"{INPAINT} --log_dir by_region --region 5 1 3 14")
    assert by_run(toy, "by_region").keys() == codes.keys()
    return [by_region, by_mask, again]


def by_run(toy: Any, run: str) -> dict[str, np.ndarray]:
    return {file.parent.name: np.load(file) for file in (toy.logs / run / "samples").glob("*/*.npy")}


def codes_drawn(toy: Any, run: str) -> np.ndarray:
    (codes,) = by_run(toy, run).values()
    return codes.reshape(3, 2, 8, 8)


def test_what_is_outside_the_region_keeps_its_codes(toy: Any, printed: list[str]) -> None:
    where = toy.folder / "datasets.yaml"
    data = open_images("toy_churches", split="val", img_size=16, toy_images=96, datasets_file=where, hold_out=True)
    images = torch.from_numpy(np.stack([data[i] for i in range(3)])) / 255
    original = load_autoencoder("vqgan", root=toy.logs, device="cpu").encode(images).view(3, 1, 8, 8).numpy()
    drawn = codes_drawn(toy, "by_region")
    changed = drawn != original
    assert not changed[:, :, [0, 1, 4, 5, 6, 7]].any()
    assert changed[:, :, 2:4].any()
    assert (drawn[:, 0] != drawn[:, 1]).any(axis=(1, 2)).all()  # no two completions alike
    assert (drawn < 32).all()


def test_a_mask_says_the_same_as_a_region(toy: Any, printed: list[str]) -> None:
    assert np.array_equal(codes_drawn(toy, "by_mask"), codes_drawn(toy, "by_region"))


def test_pictures(toy: Any, printed: list[str]) -> None:
    images = toy.logs / "by_region/images"
    assert [file.name for file in sorted((images / "samples").glob("*"))] == [f"{i:06d}.png" for i in range(6)]
    picture = np.asarray(Image.open(images / "inpainted.png"))
    assert picture.shape == (3 * 98 + 2, 4 * 98 + 2, 3)  # each image, what is given of it, two completions
    whole, given = picture[2:98, 2:98], picture[2:98, 100:196]
    assert (given[24:48] == 128).all()
    assert np.array_equal(np.delete(given, range(24, 48), 0), np.delete(whole, range(24, 48), 0))
    first = np.asarray(Image.open(images / "samples/000000.png")).repeat(6, 0).repeat(6, 1)
    assert np.array_equal(picture[2:98, 198:294], first)
    assert list(shown(toy.logs / "by_region").panes) == ["inpainted"]


def test_what_is_said(printed: list[str]) -> None:
    by_region, _, again = printed
    assert "16 of 64 codes" in by_region
    assert re.search("^6 images in .*logs/by_region/images/.*: 2 for each image", by_region, re.MULTILINE)
    assert "inpainted.png: image, what is given of it, completions" in by_region
    assert "sampling  6/6 images" in by_region
    assert not re.search("^sampling  ", again, re.MULTILINE)  # the codes were there


def test_kept_codes_serve_no_other_region(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy.folder)
    words = "--dataset toy_churches --toy_images 96 --device cpu --num_workers 0 --sinks visdom --visdom_port 9 --quiet"
    words += " --load_dir absorbing --n_images 1 --log_dir regions --region"
    for region in ("0 0 4 4", "8 8 4 4", "0 0 4 4"):
        settings = parse(InpaintingExperiment, f"{words} {region}".split(), description="", example="")
        with open_job(settings) as job:
            inpaint.paint(job, settings)
    assert len(by_run(toy, "regions")) == 2


def test_a_mask_without_white_is_refused(toy: Any, tmp_path: Path) -> None:
    """Before anything is loaded, by --dry_run too."""
    Image.new("L", (16, 16)).save(tmp_path / "black.png")
    line = toy.refused(f"{INPAINT} --log_dir black --mask_path {tmp_path}/black.png")
    assert "black.png: nothing of it is white" in line
    assert toy.refused(f"{INPAINT} --log_dir black --mask_path {tmp_path}/black.png --dry_run") == line
    assert not (toy.logs / "black").exists()
