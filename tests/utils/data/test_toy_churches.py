"""The procedural scenes: pure, the same at every size, varied, and written in LSUN's layout."""

from __future__ import annotations

import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.data.lmdb_images import LMDBImages
from utils.data.toy_churches import draw_church, write_toy_churches


def pixels(seed: int, index: int, size: int) -> np.ndarray:
    return np.asarray(draw_church(seed, index, size)).astype(np.float64)


def test_a_scene_is_a_function_of_seed_and_index() -> None:
    drawing = "from utils.data.toy_churches import draw_church; scene = draw_church(5, 9, 32).tobytes()"
    script = f"import sys; {drawing}; sys.stdout.buffer.write(scene)"
    elsewhere = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    scenes = {draw_church(seed, index, 32).tobytes() for seed in (0, 1, 10) for index in range(100)}
    assert len(scenes) == 300
    assert draw_church(5, 9, 32).tobytes() == elsewhere.stdout


@pytest.mark.parametrize("index", range(8))
def test_the_same_scene_at_every_size(index: int) -> None:
    large = draw_church(3, index, 256).resize((32, 32), Image.Resampling.BOX)
    difference = np.asarray(large).astype(np.float64) - pixels(3, index, 32)
    assert np.sqrt((difference**2).mean()) < 8


def test_scenes_are_varied_and_their_edges_smooth() -> None:
    scenes = np.stack([pixels(0, i, 16) for i in range(200)])
    assert scenes.std(0).mean((0, 1)).min() > 35
    brightness = scenes.mean((1, 2, 3))
    assert brightness.min() < 70
    assert brightness.max() > 170
    # Averaging down leaves more shades than a scene has flat colours.
    assert len(np.unique(pixels(0, 0, 32).reshape(-1, 3), axis=0)) > 80


def test_written_as_lsun_lays_it_out_and_left_alone_later(tmp_path: Path) -> None:
    write_toy_churches(tmp_path, size=24, train_images=30, val_images=8, seed=4)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_toy_churches(tmp_path, size=24, train_images=30, val_images=8, seed=4)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    train, val = (LMDBImages(tmp_path / f"toy_churches_{split}_lmdb") for split in ("train", "val"))
    assert (len(train), len(val)) == (30, 8)
    read = [(images.key(i).decode(), images.read(i)) for images in (train, val) for i in range(len(images))]
    assert len({key for key, _ in read if re.fullmatch("[0-9a-f]{40}", key)}) == 38
    stored = [Image.open(BytesIO(value)) for _, value in read]
    assert {image.format for image in stored} == {"WEBP"}
    expected = [{draw_church(4, i, 24).tobytes() for i in part} for part in (range(30), range(30, 38))]
    scenes = [image.convert("RGB").tobytes() for image in stored]
    assert [set(scenes[:30]), set(scenes[30:])] == expected
