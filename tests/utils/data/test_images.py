"""Every kind of image becomes upright RGB; resizing equals torchvision's; masks tell which pixels to paint anew."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from torchvision import transforms

from hparams.errors import UserError
from utils.data.datasets import open_folder
from utils.data.images import BadImageError, decode_rgb, painted_pixels, resize_and_crop
from utils.data.lmdb_images import write_lmdb

ORANGE, SIDE = (240, 130, 40), (8, 8)
PLAIN = Image.new("RGB", (16, 16), ORANGE)
NOISE = Image.effect_noise((64, 64), 90)
RAMP = np.array([0, 257, 32896, 65535])


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(decode_rgb(content))


def png_of(colour_type: int, depth: int, row: bytes, width: int, height: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of equal rows, of kinds that Pillow reads but does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * height))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*e) for e in extra) + pixels + chunk(b"IEND", b"")


def tiff_of(samples: np.ndarray, bits: int, sample_format: int, photometric: int = 1, width: int = 4) -> bytes:
    """An uncompressed grey TIFF of one row, of kinds that Pillow reads but does not write."""
    order, data = (">", b"MM\0*") if samples.dtype.byteorder == ">" else ("<", b"II*\0")
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: samples.nbytes}
    tags[339] = sample_format
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    return data + struct.pack(f"{order}I", 8 + samples.nbytes) + samples.tobytes() + directory


def test_real_photographs_and_emoji(images_dir: Path) -> None:
    photos, emoji = (sorted((images_dir / kind).rglob("*.???")) for kind in ("photos", "emoji"))
    assert min(len(photos), len(emoji)) > 100
    for file in photos[::20]:
        image = decode_rgb(file)
        assert (image.mode, min(image.size)) == ("RGB", 144)
        assert resize_and_crop(image, 64).std() > 5
    for file in emoji[::50]:
        with Image.open(file) as image:
            layered = np.asarray(image.convert("RGBA"))
        opaque = layered[..., 3] == 255
        np.testing.assert_array_equal(np.asarray(decode_rgb(file))[opaque], layered[opaque, :3])


TWO_COLOURS = Image.new("P", SIDE, 0)
TWO_COLOURS.putpalette([*ORANGE, 0, 0, 255])
TWO_COLOURS.paste(1, (4, 0, 8, 8))
HALF_BLUE = Image.new("RGBA", SIDE, (0, 100, 200, 128))
KINDS = {
    "JPEG": (encode(PLAIN, "JPEG", quality=95), ORANGE),
    "MPO": (encode(PLAIN, "MPO", quality=95, save_all=True, append_images=[Image.new("RGB", (16, 16))]), ORANGE),
    "PNG": (encode(PLAIN, "PNG"), ORANGE),
    "WebP": (encode(PLAIN, "WEBP", lossless=True), ORANGE),
    "BMP": (encode(PLAIN, "BMP"), ORANGE),
    "TIFF": (encode(PLAIN, "TIFF"), ORANGE),
    "PPM": (encode(PLAIN, "PPM"), ORANGE),
    "AVIF": (encode(PLAIN, "AVIF", quality=95), ORANGE),
    "broken EXIF": (encode(PLAIN, "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), ORANGE),
    "grey": (encode(Image.new("L", SIDE, 90), "PNG"), (90,) * 3),
    "black and white": (encode(Image.new("1", SIDE, 1), "PNG"), (255,) * 3),
    "palette": (encode(PLAIN.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), ORANGE),
    "palette, half transparent": (encode(TWO_COLOURS, "PNG", transparency=1), ((*[ORANGE] * 4, *[(255,) * 3] * 4),)),
    "alpha": (encode(HALF_BLUE, "PNG"), (127, 177, 227)),
    "alpha, WebP": (encode(HALF_BLUE, "WEBP", lossless=True, exact=True), (127, 177, 227)),
    "grey with alpha": (encode(Image.new("LA", SIDE, (0, 64)), "PNG"), (191,) * 3),
    "a transparent colour": (encode(Image.new("RGB", SIDE, ORANGE), "PNG", transparency=ORANGE), (255,) * 3),
    "CMYK": (encode(Image.new("CMYK", SIDE, (0, 128, 255, 0)), "JPEG", quality=95), (255, 127, 0)),
    "16 bits": (png_of(2, 16, struct.pack(">3H", 60000, 30000, 1000) * 4, 4, 2), (233.5, 116.7, 3.9)),
    "16 bits and alpha": (png_of(6, 16, struct.pack(">4H", 0, 0, 0, 32768) * 4, 4, 2), (127,) * 3),
    "16 bits, grey, a transparent value": (
        png_of(0, 16, struct.pack(">4H", 0, 0, 257 * 50, 257 * 50), 4, 2, (b"tRNS", struct.pack(">H", 0))),
        np.array([255, 255, 50, 50])[None, :, None],
    ),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_rgb_over_white(kind: str) -> None:
    content, expected = KINDS[kind]
    pixels = pixels_of(content).astype(float)
    lossy = kind == "AVIF" or content[:2] == b"\xff\xd8"
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, pixels.shape), atol=4 if lossy else 1)


def quarters() -> Image.Image:
    """Wider than high, each quarter of its own colour."""
    image = Image.new("RGB", (48, 32), (200, 30, 30))
    image.paste((30, 200, 30), (24, 0, 48, 16))
    image.paste((30, 30, 200), (0, 16, 24, 32))
    image.paste((220, 220, 30), (24, 16, 48, 32))
    return image


# What a camera does to store an upright picture under each orientation from 2 on (the inverse of what a reader does).
TURNS = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, kind: str) -> None:
    upright = stored = quarters()
    if orientation > 1:
        stored = upright.transpose(Image.Transpose[TURNS[orientation - 2]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_rgb(encode(stored, kind, quality=95, exif=exif))
    assert decoded.size == upright.size
    for corner in ((8, 6), (40, 6), (8, 26), (40, 26)):
        np.testing.assert_allclose(decoded.getpixel(corner), upright.getpixel(corner), atol=12)


def far_away() -> bytes:
    """A TIFF that says of its pixels that they begin farther away than a file may be long."""
    before, entry, after = encode(NOISE, "TIFF", big_tiff=True).partition(struct.pack("<HHQ", 273, 4, 1))
    assert entry
    return before + struct.pack("<HHQQ", 273, 16, 1, 2**64 - 1) + after[8:]


UNREADABLE = {
    "empty": (b"", "cannot read a.jpg as an image"),
    "words": (b"not an image", "cannot read a.jpg as an image"),
    "truncated": (encode(NOISE, "PNG")[:900], "cannot read a.jpg as an image"),
    "truncated, with a large profile": (encode(NOISE, "PNG", icc_profile=bytes(3 << 20))[:-200], "truncated"),
    # Pillow raises other errors for these. The content tells the kind, not the name: pages save AVIF as .jpg.
    "RuntimeError": (encode(NOISE, "AVIF").replace(b"iloc", b"lost"), "cannot read a.jpg as an image"),
    "NotImplementedError": (encode(NOISE, "DDS")[:80] + bytes(50), "cannot read a.jpg as an image"),
    "OverflowError": (far_away(), "cannot read a.jpg as an image"),
    "floats": (encode(Image.new("F", (4, 4), 0.5), "TIFF"), "^a.jpg holds 32-bit floats, .* 8 or 16 unsigned bits"),
    # Integers that do not say what is white.
    "int16": (tiff_of(RAMP.astype("<i2"), 16, 2), "^a.jpg holds signed integers, .* 8 or 16 unsigned bits"),
    "int16, big-endian": (tiff_of(RAMP.astype(">i2"), 16, 2), "^a.jpg holds signed integers, "),
    "int8": (tiff_of(RAMP.astype("i1"), 8, 2), "^a.jpg holds signed integers, "),
    "int32": (tiff_of(RAMP.astype("<i4"), 32, 2), "^a.jpg holds signed integers, "),
    "uint32": (tiff_of(RAMP.astype("<u4"), 32, 1), "^a.jpg holds 32-bit integers, .* 8 or 16 unsigned bits"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_one_line_that_names_the_image(kind: str, tmp_path: Path) -> None:
    content, line = UNREADABLE[kind]
    with pytest.raises(BadImageError, match=line) as caught:
        decode_rgb(content, "a.jpg")
    assert "\n" not in str(caught.value)
    (tmp_path / "b.png").write_bytes(content)
    for name in ("b", "gone"):
        with pytest.raises(UserError, match=rf"{tmp_path}/{name}\.png"):
            decode_rgb(tmp_path / f"{name}.png")


DEEP_GREY = {
    "PNG": encode(Image.fromarray(RAMP.astype("u2")[None]), "PNG"),
    "16 bits": tiff_of(RAMP.astype("<u2"), 16, 1),
    "16 bits, big-endian": tiff_of(RAMP.astype(">u2"), 16, 1),
    "16 bits, white is 0": tiff_of(65535 - RAMP.astype("<u2"), 16, 1, photometric=0),
    "12 bits": tiff_of(np.frombuffer(b"\0\0\x10\x80\x8f\xff", "u1"), 12, 1),
    "PGM": b"P5 4 1 65535\n" + RAMP.astype(">u2").tobytes(),
    "PGM of 9 bits": b"P5 4 1 510\n" + np.array([0, 2, 256, 510], ">u2").tobytes(),
    "plain PGM of 9 bits": b"P2 4 1 510 0 2 256 510",
}


@pytest.mark.parametrize("kind", DEEP_GREY)
def test_unsigned_samples_of_up_to_16_bits_are_scaled(kind: str) -> None:
    np.testing.assert_array_equal(pixels_of(DEEP_GREY[kind])[0, :, 1], (0, 1, 128, 255))


def test_no_file_chooses_a_decoder_of_another_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of EPS, which would start `gs`, and of SPIDER. Folders, LMDBs and masks all come through one door."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/mark\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n{} loop\n"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(eps)
    write_lmdb(tmp_path / "packed", [(b"a.jpg", struct.pack(">27f", *[1] * 27) + bytes(4000))])
    for read in (
        lambda: open_folder(tmp_path / "photos", img_size=8, flag="--fake_images_path")[0],
        lambda: open_folder(tmp_path / "packed", img_size=8, flag="--fake_images_path")[0],
        lambda: painted_pixels(f"{tmp_path}/photos/a.jpg", None, 8),
    ):
        with pytest.raises(UserError, match=r"a\.jpg as an image \(damaged, or of none of the kinds JPEG"):
            read()
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("error", [ZeroDivisionError(), MemoryError(), AssertionError("odd"), KeyboardInterrupt()])
def test_whatever_a_decoder_raises_makes_a_bad_image(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", Mock(side_effect=error))
    line = rf"a\.png as an image \({str(error) or type(error).__name__}\)"
    ours = isinstance(error, Exception)
    with pytest.raises(BadImageError if ours else KeyboardInterrupt, match=line if ours else None):
        decode_rgb(encode(PLAIN, "PNG"), "a.png")


def with_text(text: bytes | str, *, zip: bool, keyword: str = "XML:com.adobe.xmp") -> dict[str, object]:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(keyword, text, zip=zip) if keyword.startswith("XML") else chunks.add_text(keyword, text, zip=zip)
    return {"pnginfo": chunks}


LARGE = 3 << 20
SIDEWAYS = '<x tiff:Orientation="6"/>'
METADATA = {
    "profile": {"icc_profile": np.random.default_rng(0).bytes(LARGE)},
    "profile, a bomb": {"icc_profile": bytes(1 << 25)},
    "XMP": with_text("x" * LARGE, zip=True),
    "text": with_text("x" * LARGE, zip=True, keyword="Comment"),
    "profile, turned": {"icc_profile": bytes(LARGE), **with_text(SIDEWAYS, zip=True)},
    "profile, turned, much text": {"icc_profile": bytes(LARGE), **with_text(SIDEWAYS + " " * LARGE, zip=False)},
}


@pytest.mark.parametrize("kind", METADATA)
def test_metadata_however_large_is_no_reason_to_refuse(kind: str) -> None:
    stored = quarters().transpose(Image.Transpose.ROTATE_90) if "turned" in kind else quarters()
    np.testing.assert_array_equal(pixels_of(encode(stored, "PNG", **METADATA[kind])), np.asarray(quarters()))


def test_neither_is_text_of_more_than_pillow_keeps_and_many_bombs_take_little_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bombs = [(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26)))] * 40
    assert decode_rgb(png_of(0, 8, bytes(4), 4, 4, *bombs)).size == (4, 4)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB; they hold 2.6 GB
    assert decode_rgb(png_of(0, 8, bytes(4), 4, 4, (b"tEXt", b"a\0" + bytes(65 << 20)))).size == (4, 4)


def test_libtiff_says_nothing_by_itself(tmp_path: Path) -> None:
    content = bytearray(encode(NOISE, "TIFF", compression="tiff_lzw"))
    content[300:3000:97] = b"\xff" * len(range(300, 3000, 97))
    (tmp_path / "odd.tif").write_bytes(content)
    code = "from pathlib import Path; from utils.data.images import decode_rgb; decode_rgb(Path('odd.tif'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stderr.startswith("Traceback")  # nothing before it
    assert done.stderr.splitlines()[-1].startswith("utils.data.images.BadImageError: cannot read odd.tif as an image")


@pytest.mark.parametrize("size", [16, 33, 64])
@pytest.mark.parametrize("shape", [(50, 50), (31, 77), (77, 31), (64, 65), (33, 100), (7, 5), (16, 17), (1, 9)])
def test_resize_and_crop_equals_torchvision(shape: tuple[int, int], size: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))
    published = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size)])
    actual = resize_and_crop(image, size)
    assert actual.dtype == np.uint8
    assert actual.flags.c_contiguous
    np.testing.assert_array_equal(actual, np.asarray(published(image)).transpose(2, 0, 1))


@pytest.mark.parametrize("shape", [(60_000, 1), (1, 60_000)])
def test_a_narrow_line_does_not_take_gigabytes(shape: tuple[int, int]) -> None:
    line = Image.new("RGB", shape, ORANGE)
    assert resize_and_crop(line, 32).shape == (3, 32, 32)
    with pytest.raises(UserError, match=rf"line\.png is too narrow to be resized \({shape[0]}x{shape[1]} pixels\)"):
        resize_and_crop(line, 256, "line.png")


def test_a_large_panorama_is_no_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would say so on stderr, from every worker."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_rgb(encode(Image.new("RGB", (15, 10), ORANGE), "PNG")).size == (15, 10)
    with pytest.raises(UserError, match="exceeds limit"):
        decode_rgb(encode(Image.new("RGB", (21, 10), ORANGE), "PNG"))


def painted_by(image: Image.Image, folder: Path, **options: object) -> np.ndarray:
    """What a mask of this image paints, of 8×8 pixels."""
    image.save(folder / "mask.png", **options)
    return painted_pixels(f"{folder}/mask.png", None, 8)


def boxed(rows: slice, columns: slice, shape: tuple[int, int] = SIDE) -> np.ndarray:
    box = np.zeros(shape, bool)
    box[rows, columns] = True
    return box


@pytest.mark.parametrize("mode", ["region", "1", "L", "RGB", "RGBA", "LA", "P", "I;16"])
def test_a_region_and_a_mask_of_any_kind_tell_where_to_paint(tmp_path: Path, mode: str) -> None:
    expected = boxed(np.s_[1:4], np.s_[2:7])
    if mode == "region":
        painted = painted_pixels(None, (1, 2, 3, 5), 8)
    elif mode == "I;16":
        painted = painted_by(Image.fromarray(expected.astype(np.uint16) * 65535), tmp_path)
    else:
        painted = painted_by(Image.fromarray(expected.astype(np.uint8) * 255).convert(mode), tmp_path)
    np.testing.assert_array_equal(painted, expected)


def test_a_mask_is_white_where_it_is_light_in_all_channels_together(tmp_path: Path) -> None:
    greys = np.broadcast_to(np.array([0, 60, 127, 128, 200, 255, 127, 128], np.uint8), SIDE)
    assert painted_by(Image.fromarray(greys), tmp_path).tolist() == [[False] * 3 + [True] * 3 + [False, True]] * 8
    mask = np.zeros((8, 8, 3), np.uint8)
    mask[:, 4:] = 160
    mask[:4, :4, 0] = 255  # red
    mask[4:, :4] = 90
    assert painted_by(Image.fromarray(mask), tmp_path).tolist() == [[False] * 4 + [True] * 4] * 8


def test_a_mask_is_resized_and_cropped_as_images_are(tmp_path: Path) -> None:
    # The middle 16 columns of the 20 that are left are 12 to 28 of the original ones.
    wide = boxed(np.s_[:], np.s_[28:], (16, 40)) | boxed(np.s_[:8], np.s_[12:20], (16, 40))
    np.testing.assert_array_equal(painted_by(Image.fromarray(wide), tmp_path), boxed(np.s_[:4], np.s_[:4]))


@pytest.mark.parametrize("painted", [np.s_[:, :0], np.s_[:, 34:], np.s_[3:4, 20:21]], ids=["none", "cropped", "a dot"])
def test_a_mask_that_paints_nothing_is_refused(tmp_path: Path, painted: tuple[slice, slice]) -> None:
    with pytest.raises(UserError, match=r"^--mask_path .*mask\.png: nothing of it is white .* 8x8 pixels"):
        painted_by(Image.fromarray(boxed(*painted, (16, 40))), tmp_path)


def test_a_transparent_mask_is_refused_and_so_is_no_image(tmp_path: Path) -> None:
    """It is over white elsewhere: a mask drawn on a transparent page would paint everything."""
    rgba, grey = Image.new("RGBA", SIDE, (0, 0, 0, 255)), Image.new("LA", SIDE, (255, 255))
    rgba.putpixel((3, 3), (0, 0, 0, 254))
    grey.putpixel((3, 3), (255, 254))
    deep = Image.fromarray(np.full(SIDE, 300, np.uint16))
    for image, options in ((rgba, {}), (grey, {}), (deep, {"transparency": 300})):
        with pytest.raises(UserError, match=r"^--mask_path .*mask\.png has transparent pixels"):
            painted_by(image, tmp_path, **options)
    (tmp_path / "mask.png").write_bytes(b"words")
    with pytest.raises(UserError, match=r"--mask_path .*mask\.png as an image"):
        painted_pixels(f"{tmp_path}/mask.png", None, 8)
