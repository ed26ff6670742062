"""Grids and PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data.pictures import SMALLEST_SIDE, comparison_rows, image_grid, save_png, to_uint8


def numbered(n: int, size: int = 96, first: int = 0) -> torch.Tensor:
    """Images whose pixels all hold the image's number."""
    return torch.arange(first, first + n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, size, size).clone()


def test_floats_are_rounded_and_clipped() -> None:
    assert to_uint8(torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 2.0])).tolist() == [0, 0, 0, 1, 255, 255]
    every = torch.arange(256, dtype=torch.uint8)
    assert all(torch.equal(to_uint8(every.to(dtype) / 255), every) for dtype in (torch.float32, torch.float64))


def test_a_grid_goes_row_by_row_in_three_channels() -> None:
    grid = image_grid(numbered(5)[:, :1], columns=3)
    assert (grid.dtype, grid.shape) == (np.uint8, (3, 2 * 98 + 2, 3 * 98 + 2))
    for number in range(5):
        row, column = divmod(number, 3)
        tile = grid[:, 2 + row * 98 : 98 + row * 98, 2 + column * 98 : 98 + column * 98]
        assert (tile == number).all()
    assert (grid[:, :2] == 255).all()


@pytest.mark.parametrize(("size", "factor"), [(8, 12), (32, 3), (64, 2), (96, 1), (256, 1)])
def test_small_images_are_enlarged_by_whole_factors(size: int, factor: int) -> None:
    image = torch.randint(256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tile = image_grid(image, columns=1)
    inner = tile if tile.shape[1] == size * factor else tile[:, 2:-2, 2:-2]
    assert size * factor >= SMALLEST_SIDE
    np.testing.assert_array_equal(inner, image[0].numpy().repeat(factor, 1).repeat(factor, 2))


def test_originals_stand_over_their_reconstructions() -> None:
    rows, columns = comparison_rows(numbered(5, 2), numbered(5, 2, first=100).float() / 255, most=2)
    assert rows[:, 0, 0, 0].tolist() == [0, 1, 100, 101, 2, 3, 102, 103]
    assert (rows.dtype, columns) == (torch.uint8, 2)
    rows, columns = comparison_rows(numbered(3, 2), numbered(3, 2, first=100))  # a column each
    assert (rows[:, 0, 0, 0].tolist(), columns) == ([0, 1, 2, 100, 101, 102], 3)


def test_png_files_keep_every_pixel(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(256, size=(3, 5, 7), dtype=np.uint8)
    save_png(tmp_path / "images" / "a.png", picture)
    with Image.open(tmp_path / "images" / "a.png") as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), picture)
    assert [file.name for file in (tmp_path / "images").iterdir()] == ["a.png"]
