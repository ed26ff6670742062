"""Photographs in a folder, and LSUN's layout, through stage 1."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

STAGE_1 = (
    "train_vqgan.py {EVERYWHERE} --batch_size 4 --train_steps 4 --steps_per_log 2 --steps_per_eval 4 --img_size 64 "
    "--steps_per_save_output 4 --nf 32 --ch_mult 1 1 1 --res_blocks 1 --attn_resolutions 16 --emb_dim 16 "
    "--codebook_size 32 --ndf 8 --disc_layers 2 --perceptual none"
)


def crops(side: int, step: int) -> list[Image.Image]:
    """Crops of the two photographs that scikit-learn brings along (640 × 427 pixels each)."""
    return [
        Image.fromarray(photograph[y : y + side, x : x + side])
        for photograph in load_sample_images().images
        for y in range(0, photograph.shape[0] - side, step)
        for x in range(0, photograph.shape[1] - side, step)
    ]


def write_lsun(folder: Path) -> None:
    images = crops(80, 100)
    for split, chosen in (("train", images[:40]), ("val", images[40:])):
        path = folder / f"church_outdoor_{split}_lmdb"
        path.mkdir(parents=True)
        with lmdb.open(str(path), map_size=1 << 26) as env, env.begin(write=True) as txn:
            for i, image in enumerate(chosen):
                buffer = BytesIO()
                image.save(buffer, ("WEBP", "JPEG")[i % 2])
                txn.put(f"{i:040x}".encode(), buffer.getvalue())


@pytest.fixture(scope="module")
def trained(new_shell) -> Path:
    """A logs folder: `vqgan` from photographs, `churches` from an LMDB."""
    shell = new_shell()
    for i, image in enumerate(crops(64, 130)):
        file = shell.folder / "photographs" / ("png", "jpeg/deep")[i % 2] / f"{i:03d}.{('png', 'JPG')[i % 2]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    write_lsun(shell.folder / "lsun")
    (shell.folder / "datasets.yaml").write_text("churches: {paths: lsun}\n")
    (shell.folder / "datasets.yml").write_text("churches: {path: no such folder}\n")
    shell.abreast(
        [f"{STAGE_1} --dataset custom --custom_dataset_path photographs --log_dir vqgan"],
        [f"{STAGE_1} --dataset churches --num_workers 1 --log_dir churches"],
    )
    return shell.logs


def test_the_photographs_themselves_are_shown(trained: Path) -> None:
    """The first validation images come back, pixel by pixel, in the grid of originals over reconstructions."""
    images = crops(64, 130)
    order = [*range(1, len(images), 2), *range(0, len(images), 2)]  # jpeg/ comes before png/
    held_out = [images[i] for i in order[len(images) * 95 // 100 :]]
    grid = np.asarray(Image.open(trained / "vqgan/images/originals_over_reconstructions_4.png"))
    for column, image in enumerate(held_out):
        left = 2 + column * (128 + 2)
        assert np.array_equal(grid[2 : 2 + 128 : 2, left : left + 128 : 2], np.asarray(image))
    assert grid.shape == (2 * 130 + 2, len(held_out) * 130 + 2, 3)


def test_an_lsun_lmdb_feeds_churches(trained: Path) -> None:
    log = (trained / "churches/log.txt").read_text()
    assert "40 training images" in log
    assert "psnr_db" in log
    assert (trained / "churches/saved_models/vqgan_4.th").exists()
