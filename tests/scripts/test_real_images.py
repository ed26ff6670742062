"""Photographs in a folder, and LSUN's layout, through the scripts."""

from __future__ import annotations

import io
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

SMALL = "--nf 32 --ch_mult 1 1 1 --res_blocks 1 --attn_resolutions 16 --emb_dim 16 --codebook_size 32 --ndf 8"
SHORT = (
    "{EVERYWHERE} --batch_size 4 --train_steps 4 --steps_per_log 2 --steps_per_eval 4 --steps_per_save_output 4 "
    "--sinks visdom"
)


def crops(side: int, step: int) -> list[Image.Image]:
    """Crops of the two photographs that scikit-learn brings along (640 × 427 pixels each)."""
    return [
        Image.fromarray(photograph[y : y + side, x : x + side])
        for photograph in load_sample_images().images
        for y in range(0, photograph.shape[0] - side, step)
        for x in range(0, photograph.shape[1] - side, step)
    ]


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_photographs(folder: Path) -> None:
    for i, image in enumerate(crops(64, 130)):
        place = folder / ("png", "jpeg/deep")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{i:03d}.{('png', 'JPG')[i % 2]}")


def write_lsun(folder: Path) -> None:
    images = crops(80, 100)
    for split, chosen in (("train", images[:40]), ("val", images[40:])):
        path = folder / f"church_outdoor_{split}_lmdb"
        path.mkdir(parents=True)
        with lmdb.open(str(path), map_size=1 << 26) as env, env.begin(write=True) as txn:
            for i, image in enumerate(chosen):
                txn.put(f"{i:040x}".encode(), encoded(image, ("WEBP", "JPEG")[i % 2]))


@pytest.fixture(scope="module")
def trained(new_shell) -> Path:
    """A logs folder: `vqgan`, `prior` and `samples` from photographs, `churches` (stage 1) from an LMDB."""
    shell = new_shell()
    write_photographs(shell.folder / "photographs")
    write_lsun(shell.folder / "lsun")
    (shell.folder / "datasets.yaml").write_text("churches: {paths: lsun}\n")
    (shell.folder / "datasets.yml").write_text("churches: {path: no such folder}\n")
    stage_1 = f"train_vqgan.py {SHORT} {SMALL} --disc_layers 2 --img_size 64 --perceptual none"
    custom = "--dataset custom --custom_dataset_path photographs"
    shell.abreast(
        [
            f"{stage_1} {custom} --ema --log_dir vqgan",
            f"train_sampler.py {SHORT} {custom} {{PRIOR}} --ema --log_dir prior --ae_load_dir vqgan --total_steps 8 "
            "--n_samples 4",
            "experiments/get_samples.py {EVERYWHERE} --log_dir samples --load_dir prior --n_samples 3 "
            "--save_individually",
        ],
        [f"{stage_1} --dataset churches --num_workers 1 --log_dir churches"],
    )
    return shell.logs


def test_photographs_pass_through_both_stages(trained: Path) -> None:
    assert (trained / "vqgan/saved_models/vqgan_ema_4.th").exists()
    assert (trained / "prior/saved_models/absorbing_ema_4.th").exists()
    files = sorted((trained / "samples/images").rglob("*.png"))
    assert [file.name for file in files] == [f"{i:06d}.png" for i in range(3)]
    assert all(Image.open(file).size == (64, 64) for file in files)


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
