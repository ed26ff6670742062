"""Every kind of image comes out as upright RGB; resizing equals torchvision's."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from torchvision import transforms

from hparams.errors import UserError
from utils.data.datasets import open_folder
from utils.data.images import BadImageError, decode_rgb, painted_pixels, resize_and_crop
from utils.data.lmdb_images import write_lmdb

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


def tiff_of(samples: np.ndarray, bits: int, sample_format: int, photometric: int = 1, width: int = 4) -> bytes:
    """An uncompressed grey TIFF of one row, of kinds that Pillow reads but does not write."""
    order, data = (">", b"MM\0*") if samples.dtype.byteorder == ">" else ("<", b"II*\0")
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: samples.nbytes}
    tags[339] = sample_format
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    return data + struct.pack(f"{order}I", 8 + samples.nbytes) + samples.tobytes() + directory


FORMATS = [
    ("JPEG", {"quality": 95}),
    ("MPO", {"quality": 95, "save_all": True, "append_images": [Image.new("RGB", (16, 16))]}),
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("BMP", {}),
    ("TIFF", {}),
    ("PPM", {}),
    ("AVIF", {"quality": 95}),
]


@pytest.mark.parametrize(("kind", "options"), FORMATS)
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


SIDE = (8, 8)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(encode(Image.new("L", SIDE, 90), "PNG"), (90,) * 3, id="grey"),
        pytest.param(encode(Image.new("1", SIDE, 1), "PNG"), (255,) * 3, id="black and white"),
        pytest.param(
            encode(Image.new("RGB", SIDE, ORANGE).convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
            ORANGE,
            id="palette",
        ),
        pytest.param(encode(Image.new("RGBA", SIDE, (0, 100, 200, 128)), "PNG"), (127, 177, 227), id="alpha"),
        pytest.param(
            encode(Image.new("RGBA", SIDE, (0, 100, 200, 128)), "WEBP", lossless=True, exact=True),
            (127, 177, 227),
            id="alpha, WebP",
        ),
        pytest.param(encode(Image.new("LA", SIDE, (0, 64)), "PNG"), (191,) * 3, id="grey with alpha"),
        pytest.param(
            encode(Image.new("RGB", SIDE, ORANGE), "PNG", transparency=ORANGE), (255,) * 3, id="a transparent colour"
        ),
        pytest.param(encode(Image.new("CMYK", SIDE, (0, 128, 255, 0)), "JPEG", quality=95), (255, 127, 0), id="CMYK"),
        pytest.param(
            png_of(2, 16, struct.pack(">3H", 60000, 30000, 1000) * 4, 4, 2),
            np.array([60000, 30000, 1000]) / 257,
            id="16 bits",
        ),
        pytest.param(png_of(6, 16, struct.pack(">4H", 0, 0, 0, 32768) * 4, 4, 2), (127,) * 3, id="16 bits and alpha"),
    ],
)
def test_every_mode_becomes_rgb_over_white(content: bytes, expected: tuple[float, ...]) -> None:
    np.testing.assert_allclose(mean_colour(content), expected, atol=4 if content[:2] == b"\xff\xd8" else 1)


def test_palette_with_transparency_lies_on_white() -> None:
    image = Image.new("P", (8, 4), 0)
    image.putpalette([*ORANGE, 0, 0, 255])
    image.paste(1, (4, 0, 8, 4))
    pixels = np.asarray(decode_rgb(encode(image, "PNG", transparency=1)))
    np.testing.assert_array_equal(pixels[0, 0], ORANGE)
    np.testing.assert_array_equal(pixels[0, 7], (255, 255, 255))


def test_sixteen_bit_grey_with_a_transparent_value_lies_on_white() -> None:
    row = struct.pack(">4H", 0, 0, 257 * 50, 257 * 50)
    pixels = np.asarray(decode_rgb(png_of(0, 16, row, 4, 2, (b"tRNS", struct.pack(">H", 0)))))
    np.testing.assert_array_equal(pixels[0, :, 0], (255, 255, 50, 50))


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


def test_errors_name_the_file_or_the_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png"):
        decode_rgb(tmp_path / "gone.png")
    with pytest.raises(UserError, match="key 0a1b"):
        decode_rgb(b"nothing", "key 0a1b")
    with pytest.raises(UserError, match=r"scan\.tif holds 32-bit floats"):
        decode_rgb(encode(Image.new("F", (4, 4), 0.5), "TIFF"), "scan.tif")


RAMP = np.array([0, 257, 32896, 65535])


@pytest.mark.parametrize(
    ("samples", "bits", "sample_format", "told"),
    [
        (RAMP.astype("<i2"), 16, 2, "signed integers"),
        (RAMP.astype(">i2"), 16, 2, "signed integers"),
        (RAMP.astype("i1"), 8, 2, "signed integers"),
        (RAMP.astype("<i4"), 32, 2, "signed integers"),
        (RAMP.astype("<u4"), 32, 1, "32-bit integers"),
    ],
)
def test_so_are_integers_that_do_not_say_what_is_white(
    samples: np.ndarray, bits: int, sample_format: int, told: str
) -> None:
    with pytest.raises(BadImageError, match=rf"^scan\.tif holds {told}, .* 8 or 16 unsigned bits"):
        decode_rgb(tiff_of(samples, bits, sample_format), "scan.tif")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(encode(Image.fromarray(RAMP.astype("u2")[None]), "PNG"), id="PNG"),
        pytest.param(tiff_of(RAMP.astype("<u2"), 16, 1), id="16 bits"),
        pytest.param(tiff_of(RAMP.astype(">u2"), 16, 1), id="16 bits, big-endian"),
        pytest.param(tiff_of(65535 - RAMP.astype("<u2"), 16, 1, photometric=0), id="16 bits, white is 0"),
        pytest.param(tiff_of(np.frombuffer(b"\0\0\x10\x80\x8f\xff", "u1"), 12, 1), id="12 bits"),
        pytest.param(b"P5 4 1 65535\n" + RAMP.astype(">u2").tobytes(), id="PGM"),
        pytest.param(b"P5 4 1 510\n" + np.array([0, 2, 256, 510], ">u2").tobytes(), id="PGM of 9 bits"),
        pytest.param(b"P2 4 1 510 0 2 256 510", id="plain PGM of 9 bits"),
    ],
)
def test_unsigned_samples_of_up_to_16_bits_are_scaled(content: bytes) -> None:
    np.testing.assert_array_equal(np.asarray(decode_rgb(content))[0, :, 1], (0, 1, 128, 255))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n{} loop\n"),
        ("a.png", struct.pack(">27f", *[1] * 27) + bytes(4000)),  # as SPIDER's files begin
    ],
)
def test_no_file_chooses_a_decoder_that_is_not_meant_for_images(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's images, an LMDB's values and masks all come through one door; `gs` would be started."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / name).write_bytes(content)
    write_lmdb(tmp_path / "packed", [(name.encode(), content)])
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/mark\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for read in (
        lambda: open_folder(tmp_path / "photos", img_size=8, flag="--fake_images_path")[0],
        lambda: open_folder(tmp_path / "packed", img_size=8, flag="--fake_images_path")[0],
        lambda: painted_pixels(f"{tmp_path}/photos/{name}", None, 8),
    ):
        with pytest.raises(UserError, match=rf"{name} as an image \(damaged, or of none of the kinds JPEG"):
            read()
    assert not (tmp_path / "mark").exists()


def test_what_a_decoder_raises_makes_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: BaseException) -> bytes:
        def load(*_: object) -> None:
            raise error

        monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
        return encode(quarters(), "PNG")

    for error in (AttributeError("no such thing"), ZeroDivisionError(), MemoryError(), AssertionError("odd")):
        with pytest.raises(BadImageError, match=rf"a\.png as an image \({str(error) or type(error).__name__}\)"):
            decode_rgb(fails(error), "a.png")
    with pytest.raises(KeyboardInterrupt):
        decode_rgb(fails(KeyboardInterrupt()), "a.png")


def with_text(text: bytes | str, *, zip: bool, keyword: str = "XML:com.adobe.xmp") -> dict[str, object]:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(keyword, text, zip=zip) if keyword.startswith("XML") else chunks.add_text(keyword, text, zip=zip)
    return {"pnginfo": chunks}


LARGE = 3 << 20
SIDEWAYS = '<x tiff:Orientation="6"/>'


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param({"icc_profile": np.random.default_rng(0).bytes(LARGE)}, id="profile"),
        pytest.param({"icc_profile": bytes(1 << 25)}, id="profile, a bomb"),
        pytest.param(with_text("x" * LARGE, zip=True), id="XMP"),
        pytest.param(with_text("x" * LARGE, zip=True, keyword="Comment"), id="text"),
    ],
)
def test_metadata_however_large_is_no_reason_to_refuse(metadata: dict[str, object]) -> None:
    decoded = decode_rgb(encode(quarters(), "PNG", **metadata))
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(quarters()))


def test_nor_is_text_of_more_than_pillow_keeps() -> None:
    assert decode_rgb(png_of(0, 8, bytes(4), 4, 4, (b"tEXt", b"a\0" + bytes(65 << 20)))).size == (4, 4)


def test_an_image_with_a_large_profile_is_turned_upright_all_the_same() -> None:
    stored = quarters().transpose(Image.Transpose.ROTATE_90)
    for turned in (with_text(SIDEWAYS, zip=True), with_text(SIDEWAYS + " " * LARGE, zip=False)):
        content = encode(stored, "PNG", icc_profile=bytes(LARGE), **turned)
        np.testing.assert_array_equal(np.asarray(decode_rgb(content)), np.asarray(quarters()))


def test_a_large_profile_hides_no_damage() -> None:
    content = encode(Image.effect_noise((64, 64), 90), "PNG", icc_profile=bytes(LARGE))
    with pytest.raises(BadImageError, match="truncated"):
        decode_rgb(content[:-200])


def test_many_bombs_take_little_memory() -> None:
    bomb = png_of(0, 8, bytes(4), 4, 4, *[(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26)))] * 40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decode_rgb(bomb).size == (4, 4)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB; they hold 2.6 GB


def test_libtiff_says_nothing_by_itself(tmp_path: Path) -> None:
    content = bytearray(encode(Image.effect_noise((64, 64), 90), "TIFF", compression="tiff_lzw"))
    content[300:3000:97] = b"\xff" * len(range(300, 3000, 97))
    (tmp_path / "odd.tif").write_bytes(content)
    code = """if True:
        from pathlib import Path
        from utils.data.images import BadImageError, decode_rgb
        try:
            decode_rgb(Path("odd.tif"))
        except BadImageError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("cannot read odd.tif as an image")


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
