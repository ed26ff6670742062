"""Which pixels a region or a mask tells to paint anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hparams.errors import UserError
from utils.data.images import painted_pixels


def painted_by(image: Image.Image, folder: Path, side: int = 8) -> np.ndarray:
    image.save(folder / "mask.png")
    return painted_pixels(f"{folder}/mask.png", None, side)


def test_a_region() -> None:
    expected = np.zeros((8, 8), bool)
    expected[1:4, 2:7] = True
    np.testing.assert_array_equal(painted_pixels(None, (1, 2, 3, 5), 8), expected)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "LA", "P", "I;16"])
def test_a_mask_of_any_kind_is_white_where_to_paint(tmp_path: Path, mode: str) -> None:
    expected = np.zeros((8, 8), bool)
    expected[1:4, 2:7] = True
    if mode == "I;16":
        image = Image.fromarray(expected.astype(np.uint16) * 65535)
    else:
        image = Image.fromarray(expected.astype(np.uint8) * 255).convert(mode)
    np.testing.assert_array_equal(painted_by(image, tmp_path), expected)


def test_grey_counts_as_what_is_nearer(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.array([0, 60, 127, 128, 200, 255, 127, 128], np.uint8), (8, 8))
    expected = np.array([0, 0, 0, 1, 1, 1, 0, 1], bool)
    np.testing.assert_array_equal(painted_by(Image.fromarray(ramp), tmp_path), np.broadcast_to(expected, (8, 8)))


def test_a_mask_is_resized_and_cropped_as_images_are(tmp_path: Path) -> None:
    pixels = np.zeros((16, 40), np.uint8)
    pixels[:, 28:] = 255  # the middle 16 columns of the 20 that are left: 12 to 28 of the original ones
    pixels[:8, 12:20] = 255
    expected = np.zeros((8, 8), bool)
    expected[:4, :4] = True
    np.testing.assert_array_equal(painted_by(Image.fromarray(pixels), tmp_path), expected)


@pytest.mark.parametrize("painted", [np.s_[:, :0], np.s_[:, 34:], np.s_[3:4, 20:21]], ids=["none", "cropped", "a dot"])
def test_a_mask_that_paints_nothing_is_refused(tmp_path: Path, painted: tuple[slice, slice]) -> None:
    pixels = np.zeros((16, 40), np.uint8)
    pixels[painted] = 255
    with pytest.raises(UserError, match=r"^--mask_path .*mask\.png: nothing of it is white .* 8x8 pixels"):
        painted_by(Image.fromarray(pixels), tmp_path)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("colour", [0, 255])
def test_transparency_is_refused(tmp_path: Path, mode: str, colour: int) -> None:
    """It is over white elsewhere: a mask drawn on a transparent page would paint everything."""
    image = Image.new("L", (8, 8), colour).convert(mode)
    image.putpixel((3, 3), (*(colour for _ in mode[:-1]), 254))
    with pytest.raises(UserError, match=r"^--mask_path .*mask\.png has transparent pixels"):
        painted_by(image, tmp_path)


def test_transparency_by_a_colour_is_refused_and_so_is_no_image(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 300, np.uint16)).save(tmp_path / "mask.png", transparency=300)
    with pytest.raises(UserError, match="has transparent pixels"):
        painted_pixels(f"{tmp_path}/mask.png", None, 8)
    (tmp_path / "mask.png").write_bytes(b"words")
    with pytest.raises(UserError, match=r"--mask_path .*mask\.png as an image"):
        painted_pixels(f"{tmp_path}/mask.png", None, 8)


def test_white_is_what_is_light_in_all_channels_together(tmp_path: Path) -> None:
    mask = np.zeros((8, 8, 3), np.uint8)
    mask[:, 4:] = 160
    mask[:4, :4, 0] = 255  # red
    mask[4:, :4] = 90
    assert painted_by(Image.fromarray(mask), tmp_path).tolist() == [[False] * 4 + [True] * 4] * 8
