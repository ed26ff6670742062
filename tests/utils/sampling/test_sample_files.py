"""Sampled images on disk: every one, once, and nothing of an earlier call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from utils.sampling.sample_files import SampleFiles


def numbered(first: int, count: int) -> torch.Tensor:
    numbers = torch.arange(first, first + count, dtype=torch.float32) / 255
    return numbers.view(count, 1, 1, 1).expand(count, 3, 96, 96)


def write(folder: Path, count: int, *, batch: int = 20, individually: bool = False) -> tuple[SampleFiles, int]:
    files, grids = SampleFiles(folder, individually=individually), 0
    for first in range(0, count, batch):
        grids += len(list(files.add(numbered(first, min(batch, count - first)))))
    return files, grids + len(list(files.finish()))


def names(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*.png"))


def tiles(path: Path) -> list[int]:
    """The number of every image of a grid, left to right and down; 0 in the last row is empty space or number 0."""
    with Image.open(path) as image:
        pixels = np.asarray(image)[..., 0]
    return [int(pixels[y, x]) for y in range(50, pixels.shape[0], 98) for x in range(50, pixels.shape[1], 98)]


@pytest.mark.parametrize(("count", "grids"), [(1, 1), (64, 1), (65, 2), (150, 3)])
def test_grids_of_64_hold_every_image(tmp_path: Path, count: int, grids: int) -> None:
    _, given = write(tmp_path, count)
    assert given == grids
    assert names(tmp_path) == [f"samples_{number:03d}.png" for number in range(grids)]
    shown = [number for name in names(tmp_path) for number in tiles(tmp_path / name)]
    assert shown[:count] == list(range(count))


def test_a_batch_may_fill_several_grids(tmp_path: Path) -> None:
    _, grids = write(tmp_path, 200, batch=200)
    assert grids == 4
    assert tiles(tmp_path / "samples_002.png")[:3] == [128, 129, 130]


def test_individual_files_are_numbered(tmp_path: Path) -> None:
    files, grids = write(tmp_path, 70, individually=True)
    assert names(tmp_path) == [f"samples/{number:06d}.png" for number in range(70)]
    assert grids == 2  # still shown, not written
    with Image.open(tmp_path / "samples" / "000069.png") as image:
        assert image.size == (96, 96)
        assert image.getpixel((0, 0)) == (69, 69, 69)
    assert files.where == f"{tmp_path / 'samples'}/, 000000.png to 000069.png"


def test_nothing_of_an_earlier_call_stays(tmp_path: Path) -> None:
    write(tmp_path, 150)
    write(tmp_path, 70, individually=True)
    assert len(names(tmp_path)) == 70
    (tmp_path / "samples" / "notes.txt").write_text("mine")
    (tmp_path / "other.png").write_bytes(b"mine")
    write(tmp_path, 3)
    assert names(tmp_path) == ["other.png", "samples_000.png"]
    assert (tmp_path / "samples" / "notes.txt").exists()


def test_grey_images_become_colour_files(tmp_path: Path) -> None:
    files = SampleFiles(tmp_path, individually=True)
    assert list(files.add(torch.rand(2, 1, 8, 8))) == []
    assert names(tmp_path / ".unfinished") == ["samples/000000.png", "samples/000001.png"]
    list(files.finish())
    with Image.open(tmp_path / "samples" / "000001.png") as image:
        assert image.mode == "RGB"
        assert image.size == (8, 8)


@pytest.mark.parametrize("individually", [False, True])
def test_an_interrupted_call_leaves_no_part_of_a_set(tmp_path: Path, individually: bool) -> None:
    files = SampleFiles(tmp_path, individually=individually)
    assert len(list(files.add(numbered(0, 130)))) == 2
    assert [file.name for file in tmp_path.iterdir()] == [".unfinished"]
    write(tmp_path, 3, individually=individually)
    assert len(names(tmp_path)) == (3 if individually else 1)
    assert not (tmp_path / ".unfinished").exists()


def test_the_place_in_words(tmp_path: Path) -> None:
    assert write(tmp_path, 64)[0].where == str(tmp_path / "samples_000.png")
    assert write(tmp_path, 130)[0].where == f"{tmp_path / 'samples_000.png'} to samples_002.png"


def test_a_grid_is_written_as_soon_as_it_is_full(tmp_path: Path) -> None:
    files = SampleFiles(tmp_path, individually=False)
    assert len(list(files.add(numbered(0, 64)))) == 1
    assert list(files.finish()) == []


def test_what_others_put_beside_single_images_stays(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/notes.txt").write_text("mine")
    write(tmp_path, 2, individually=True)
    assert (tmp_path / "samples/notes.txt").read_text() == "mine"
