"""From a file's bytes to the network's pixels: upright RGB, shorter side resized, centre cropped."""

from __future__ import annotations

import ctypes
import stat
import struct
import warnings
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features
from PIL.PngImagePlugin import MAX_TEXT_CHUNK, MAX_TEXT_MEMORY
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

from hparams.errors import UserError

_MOST_PIXELS = 178_956_970  # of a resized image: beyond, Pillow refuses to decode one
# The formats that are decoded, by Pillow's names. Pillow has more, and picks one by the content alone: some start
# programs (EPS: Ghostscript), some are hardly tested. Phones' MPO files come as JPEG, DIB without a file header never.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
_PNG = b"\x89PNG\r\n\x1a\n"  # how one begins
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the same, the last two with 64-bit offsets
_MOST_UNPACKED = 1032  # bytes that deflate makes of one
_WHITE_IS_ZERO, _SIGNED = 0, 2  # in a TIFF's tags

# libtiff would write to stderr about each odd file; what keeps an image from being read, Pillow raises.
with suppress(AttributeError, OSError):  # where Pillow's libtiff is linked statically
    _pillow = ctypes.CDLL(Image.core.__file__)
    _pillow.TIFFSetErrorHandler(None)
    _pillow.TIFFSetWarningHandler(None)


class BadImageError(UserError):
    """One image that cannot be read; the others may be fine."""


def decode_rgb(source: bytes | Path, name: str | None = None, *, opaque: bool = False) -> Image.Image:
    """Decodes a JPEG, PNG, WebP, BMP, TIFF, PPM or AVIF image to upright RGB, 8 bits a channel. Runs no other program.

    The content tells the format, whatever the file is called. Grey is repeated, palettes are looked up, CMYK is
    converted, samples of 12 and 16 bits are scaled to 8. Transparent pixels are laid over white. The EXIF orientation
    is applied. Of an animation the first frame counts. `name` is what errors call the image (default: its path).

    BadImageError: of another format, damaged, truncated, too large, with samples of no defined range (floats, signed or
    32-bit integers), or with transparent pixels where it should be `opaque`.
    """
    name = name or (str(source) if isinstance(source, Path) else "an image")
    try:
        content = source if isinstance(source, bytes) else read_regular(source, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large panoramas and odd metadata, which are read all the same
            try:
                return _decode(content, name, opaque)
            except ValueError:  # what Pillow raises, among others, of large metadata
                if not content.startswith(_PNG):
                    raise
            return _decode(_without_large_metadata(content), name, opaque)
    except BadImageError:
        raise
    except Exception as error:  # decoders of damaged files raise anything; MemoryError where a header asks for too much
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # its text holds an address in memory
            known = (kind for kind in _FORMATS if kind not in ("WEBP", "AVIF") or features.check(kind.lower()))
            reason = f"damaged, or of none of the kinds {', '.join(known)}"
            if content.startswith(_TIFF):
                reason = "a damaged TIFF, or one whose samples are no unsigned integers of at most 16 bits"
        raise BadImageError(f"cannot read {name} as an image ({reason}): replace or remove it") from error


def read_regular(file: Path, name: str) -> bytes:
    """A file's content; `name` is what errors call it. BadImageError: no regular file; a pipe would be waited for."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise BadImageError(f"cannot read {name} as an image (not a regular file): replace or remove it")
    return file.read_bytes()


def _decode(content: bytes, name: str, opaque: bool) -> Image.Image:
    with Image.open(BytesIO(content), formats=_FORMATS) as image:
        image.load()
        tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
        kind = "32-bit floats" if image.mode == "F" else None
        if _SIGNED in tags.get(SAMPLEFORMAT, ()):
            kind = "signed integers"
        elif tags and image.mode == "I":  # of other formats, samples of 16 bits have this mode
            kind = "32-bit integers"
        if kind:
            raise BadImageError(f"{name} holds {kind}, which have no defined range: save it with 8 or 16 unsigned bits")
        with suppress(SyntaxError, ValueError, TypeError, KeyError, struct.error):  # of a broken EXIF block
            ImageOps.exif_transpose(image, in_place=True)
        # Of 16-bit samples Pillow's conversion compares 8 bits alone with the transparent value, and clips at 255.
        deep, transparent = image.mode.startswith("I"), image.has_transparency_data
        layered = image.convert("RGBA") if transparent and not deep else None
        if opaque and transparent and (layered is None or layered.getchannel("A").getextrema() != (255, 255)):
            raise BadImageError(f"{name} has transparent pixels, which might mean black or white: save it without")
        if deep:
            return _deep_grey_to_rgb(image, tags)
        if layered is not None:
            return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
        return image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Scales grey of 16 bits, or of a TIFF's 12, to 8."""
    samples = np.asarray(image).astype(np.float64)
    most = 4095 if tags.get(BITSPERSAMPLE) == (12,) else 65535
    grey = np.clip(np.rint(samples / (most / 255)), 0, 255).astype(np.uint8)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO:
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[samples == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _without_large_metadata(png: bytes) -> bytes:
    """The PNG without its colour profile, which nothing here uses, and without texts that may exceed Pillow's limits.

    Other texts stay: some hold the image's orientation. All else stays as it is, whole or damaged.
    """
    content, kept, room, place = memoryview(png), [memoryview(png)[:8]], MAX_TEXT_MEMORY, 8
    while place < len(png):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")  # length, kind, body, checksum
        kind, body = png[place + 4 : place + 8], png[place + 8 : end - 4]
        wanted = kind != b"iCCP" or end > len(png)
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            packed = kind == b"zTXt" or (kind == b"iTXt" and body.partition(b"\0")[2][:1] != b"\0")
            size = len(body) * (_MOST_UNPACKED if packed else 1)
            wanted = size <= room and not (packed and size > MAX_TEXT_CHUNK)
            room -= size * wanted
        if wanted:
            kept.append(content[place:end])
        place = end
    return b"".join(kept)


def resize_and_crop(image: Image.Image, size: int, name: str = "an image") -> np.ndarray:
    """Resizes the shorter side to `size` (Pillow's bilinear, antialiased) and crops the centre: uint8 [3, size, size].

    Pixel for pixel what torchvision's `Resize(size)` and `CenterCrop(size)` make of a Pillow image, which is what the
    published models saw. BadImageError: it is so narrow that it would take gigabytes; `name` is what it is called.
    """
    width, height = image.size
    short, long = sorted((width, height))
    scaled = int(size * long / short)
    if size * scaled > _MOST_PIXELS:
        raise BadImageError(f"{name} is too narrow to be resized ({width}x{height} pixels): replace or remove it")
    new_size = (size, scaled) if width <= height else (scaled, size)
    if new_size != image.size:
        image = image.resize(new_size, Image.Resampling.BILINEAR)
    left, top = round((new_size[0] - size) / 2), round((new_size[1] - size) / 2)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def painted_pixels(mask_path: str | None, region: tuple[int, ...] | None, side: int) -> np.ndarray:
    """Which pixels inpainting is to paint anew: bool [side,side], of the data's images.

    They are where the image `mask_path` is white; else those of the box `region`: top, left, height and width.
    UserError: --mask_path is no image, is transparent somewhere, or has no white.
    """
    pixels = np.zeros((side, side), bool)
    if mask_path:
        name = f"--mask_path {mask_path}"
        pixels = resize_and_crop(decode_rgb(Path(mask_path), name, opaque=True), side, name).mean(0) >= 128
        if not pixels.any():
            cropped = f"when it is resized and cropped to {side}x{side} pixels, as the data are"
            raise UserError(f"{name}: nothing of it is white {cropped}: use one that is white where to paint anew")
    elif region:
        top, left, height, width = region
        pixels[top : top + height, left : left + width] = True
    return pixels
