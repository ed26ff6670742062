"""Pixels and the codes that stand for them."""

import pytest
import torch

from models.vqgan.autoencoder import codes_of, pixels_of


def test_a_code_is_drawn_for_any_of_its_pixels() -> None:
    """Against the cells, one by one."""
    pixels = torch.rand((12, 20), generator=torch.Generator().manual_seed(0)) < 0.1
    codes = codes_of(pixels, (3, 5))
    assert 0 < codes.sum() < 15
    for row in range(3):
        for column in range(5):
            assert codes[row, column] == pixels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].any()


@pytest.mark.parametrize("place", [(0, 0), (2, 4), (1, 2)])
def test_the_pixels_of_a_code_are_its_cell(place: tuple[int, int]) -> None:
    codes = torch.zeros((3, 5), dtype=torch.bool)
    codes[place] = True
    pixels = pixels_of(codes, (12, 20))
    assert pixels.sum() == 16
    assert torch.equal(codes_of(pixels, (3, 5)), codes)
