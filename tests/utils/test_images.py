"""Every kind of image comes out as upright RGB; resizing equals torchvision's."""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from hparams.errors import UserError
from utils.images import decode_rgb, resize_and_crop

ORANGE = (240, 130, 40)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mean_colour(data: bytes) -> np.ndarray:
    image = decode_rgb(data)
    assert image.mode == "RGB"
    return np.asarray(image).reshape(-1, 3).mean(0)


def png_of(colour_type: int, depth: int, row: bytes, width: int, height: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of equal rows, of kinds that Pillow reads but does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * height))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*e) for e in extra) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_rgb_of_each_format(kind: str, options: dict[str, object]) -> None:
    data = encode(Image.new("RGB", (16, 16), ORANGE), kind, **options)
    np.testing.assert_allclose(mean_colour(data), ORANGE, atol=3)


def test_real_photographs(images_dir: Path) -> None:
    files = sorted((images_dir / "photos").glob("*.jpg"))[::20]
    assert len(files) > 10
    for file in files:
        image = decode_rgb(file)
        assert (image.mode, min(image.size)) == ("RGB", 144)
        assert resize_and_crop(image, 64).std() > 5


def test_real_emoji_lie_over_white(images_dir: Path) -> None:
    files = sorted((images_dir / "emoji").rglob("*.png"))[::50]
    assert len(files) > 10
    for file in files:
        with Image.open(file) as image:
            layered = np.asarray(image.convert("RGBA"))
        pixels, alpha = np.asarray(decode_rgb(file)), layered[..., 3]
        assert (pixels[alpha == 0] == 255).all()
        np.testing.assert_array_equal(pixels[alpha == 255], layered[alpha == 255, :3])


@pytest.mark.parametrize(("mode", "value", "expected"), [("L", 90, (90,) * 3), ("1", 1, (255,) * 3)])
def test_grey_is_repeated(mode: str, value: int, expected: tuple[int, ...]) -> None:
    np.testing.assert_array_equal(mean_colour(encode(Image.new(mode, (8, 8), value), "PNG")), expected)


def test_palette() -> None:
    image = Image.new("RGB", (8, 8), ORANGE).convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_allclose(mean_colour(encode(image, "PNG")), ORANGE, atol=1)


def test_palette_with_transparency_lies_on_white() -> None:
    image = Image.new("P", (8, 4), 0)
    image.putpalette([*ORANGE, 0, 0, 255])
    image.paste(1, (4, 0, 8, 4))
    pixels = np.asarray(decode_rgb(encode(image, "PNG", transparency=1)))
    np.testing.assert_array_equal(pixels[0, 0], ORANGE)
    np.testing.assert_array_equal(pixels[0, 7], (255, 255, 255))


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_alpha_lies_on_white(kind: str, options: dict[str, object]) -> None:
    data = encode(Image.new("RGBA", (8, 8), (0, 100, 200, 128)), kind, **options)
    np.testing.assert_allclose(mean_colour(data), (127, 177, 227), atol=1)


def test_grey_with_alpha_lies_on_white() -> None:
    np.testing.assert_allclose(mean_colour(encode(Image.new("LA", (8, 8), (0, 64)), "PNG")), (191,) * 3, atol=1)


def test_rgb_with_a_transparent_colour_lies_on_white() -> None:
    data = encode(Image.new("RGB", (8, 8), ORANGE), "PNG", transparency=ORANGE)
    np.testing.assert_array_equal(mean_colour(data), (255, 255, 255))


def test_cmyk() -> None:
    data = encode(Image.new("CMYK", (16, 16), (0, 128, 255, 0)), "JPEG", quality=95)
    np.testing.assert_allclose(mean_colour(data), (255, 127, 0), atol=4)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled(kind: str) -> None:
    ramp = np.array([[0, 257, 32896, 65535]], np.uint16)
    pixels = np.asarray(decode_rgb(encode(Image.fromarray(ramp), kind)))
    np.testing.assert_array_equal(pixels[0], np.array([0, 1, 128, 255])[:, None].repeat(3, 1))


def test_sixteen_bit_grey_with_a_transparent_value_lies_on_white() -> None:
    row = struct.pack(">4H", 0, 0, 257 * 50, 257 * 50)
    pixels = np.asarray(decode_rgb(png_of(0, 16, row, 4, 2, (b"tRNS", struct.pack(">H", 0)))))
    np.testing.assert_array_equal(pixels[0, :, 0], (255, 255, 50, 50))


def test_sixteen_bit_rgb_is_scaled() -> None:
    row = struct.pack(">3H", 60000, 30000, 1000) * 4
    np.testing.assert_allclose(mean_colour(png_of(2, 16, row, 4, 2)), np.array([60000, 30000, 1000]) / 257, atol=1)


def test_sixteen_bit_rgba_lies_on_white() -> None:
    row = struct.pack(">4H", 0, 0, 0, 32768) * 4
    np.testing.assert_allclose(mean_colour(png_of(6, 16, row, 4, 2)), (127,) * 3, atol=1)


def quarters() -> Image.Image:
    """Wider than high, each quarter of its own colour."""
    image = Image.new("RGB", (48, 32), (200, 30, 30))
    image.paste((30, 200, 30), (24, 0, 48, 16))
    image.paste((30, 30, 200), (0, 16, 24, 32))
    image.paste((220, 220, 30), (24, 16, 48, 32))
    return image


# What a camera does to store an upright picture under each orientation (the inverse of what a reader does).
STORE = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", STORE)
def test_exif_orientation(orientation: int, kind: str) -> None:
    upright = quarters()
    turn = STORE[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_rgb(encode(stored, kind, quality=95, exif=exif))
    assert decoded.size == upright.size
    for corner in ((8, 6), (40, 6), (8, 26), (40, 26)):
        np.testing.assert_allclose(decoded.getpixel(corner), upright.getpixel(corner), atol=12)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_no_reason_to_refuse() -> None:
    data = encode(Image.new("RGB", (16, 16), ORANGE), "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_allclose(mean_colour(data), ORANGE, atol=3)


@pytest.mark.parametrize("content", [b"", b"not an image", encode(Image.effect_noise((64, 64), 90), "PNG")[:900]])
def test_unreadable_files_are_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "holiday.png"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"holiday\.png") as caught:
        decode_rgb(file)
    assert "\n" not in str(caught.value)


NOISE = Image.effect_noise((64, 64), 90)


def far_away() -> bytes:
    """A TIFF that says of its pixels that they begin farther away than a file may be long."""
    before, entry, after = encode(NOISE, "TIFF", big_tiff=True).partition(struct.pack("<HHQ", 273, 4, 1))
    assert entry
    return before + struct.pack("<HHQQ", 273, 16, 1, 2**64 - 1) + after[8:]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(encode(NOISE, "AVIF").replace(b"iloc", b"lost"), id="RuntimeError"),
        pytest.param(encode(NOISE, "DDS")[:80] + bytes(50), id="NotImplementedError"),
        pytest.param(far_away(), id="OverflowError"),
    ],
)
def test_so_are_those_of_which_pillow_says_something_else(content: bytes) -> None:
    """Whatever the name, the content says of which kind a file is: pages save AVIF as .jpg."""
    with pytest.raises(UserError, match=r"cannot read a\.jpg as an image"):
        decode_rgb(content, "a.jpg")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png"):
        decode_rgb(tmp_path / "gone.png")


def test_unreadable_bytes_go_by_their_name() -> None:
    with pytest.raises(UserError, match="key 0a1b"):
        decode_rgb(b"nothing", "key 0a1b")


def test_float_images_are_refused() -> None:
    with pytest.raises(UserError, match="floats"):
        decode_rgb(encode(Image.new("F", (4, 4), 0.5), "TIFF"), "scan.tif")


@pytest.mark.parametrize("size", [16, 33, 64])
@pytest.mark.parametrize("shape", [(50, 50), (31, 77), (77, 31), (64, 65), (33, 100), (7, 5), (16, 17), (1, 9)])
def test_resize_and_crop_equals_torchvision(shape: tuple[int, int], size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    image = Image.fromarray(pixels)
    published = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size)])
    expected = np.asarray(published(image)).transpose(2, 0, 1)
    actual = resize_and_crop(image, size)
    assert actual.dtype == np.uint8
    assert actual.flags.c_contiguous
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("shape", [(60_000, 1), (1, 60_000)])
def test_a_narrow_line_does_not_take_gigabytes(shape: tuple[int, int]) -> None:
    line = Image.new("RGB", shape, ORANGE)
    assert resize_and_crop(line, 32).shape == (3, 32, 32)
    with pytest.raises(UserError, match=rf"line\.png is too narrow to be resized \({shape[0]}x{shape[1]} pixels\)"):
        resize_and_crop(line, 256, "line.png")


def test_a_large_panorama_is_no_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would say so on stderr, from every worker."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    panorama = encode(Image.new("RGB", (15, 10), ORANGE), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_rgb(panorama).size == (15, 10)
    with pytest.raises(UserError, match="exceeds limit"):
        decode_rgb(encode(Image.new("RGB", (21, 10), ORANGE), "PNG"))


def test_resize_refuses_no_size() -> None:
    with pytest.raises(ValueError, match="size"):
        resize_and_crop(quarters(), 0)
