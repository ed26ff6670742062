"""From a file's bytes to the network's pixels: upright RGB, shorter side resized, centre cropped."""

from __future__ import annotations

import stat
import struct
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hparams.errors import UserError

_MOST_PIXELS = 178_956_970  # of a resized image: beyond, Pillow refuses to decode one

_BROKEN = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    RuntimeError,  # of AVIF's decoder, and of kinds that are known and not decoded
    TypeError,  # of numbers in a TIFF's header, as is the next
    OverflowError,
)


class BadImageError(UserError):
    """One image that cannot be read; the others may be fine."""


def decode_rgb(source: bytes | Path, name: str | None = None, *, opaque: bool = False) -> Image.Image:
    """Decodes an image of any common kind to upright RGB, 8 bits a channel.

    Grey is repeated, palettes are looked up, CMYK is converted, 16-bit samples are scaled to 8 bits. Transparent
    pixels are laid over white. The EXIF orientation is applied. Of an animation the first frame counts.

    Args:
        source: the encoded bytes, or the path of a file.
        name: what errors call it (default: the path).
        opaque: refuse transparent pixels.

    Raises:
        BadImageError: not an image, truncated, too large, of a kind without a defined range (32-bit floats), or
            transparent where it should be `opaque`.
    """
    name = name or (str(source) if isinstance(source, Path) else "an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large panoramas and odd metadata, which are read all the same
            content = source if isinstance(source, bytes) else read_regular(source, name)
            with Image.open(BytesIO(content)) as image:
                image.load()
                if opaque and _is_transparent(image):
                    raise BadImageError(
                        f"{name} has transparent pixels, which might mean black or white: save it without"
                    )
                return _to_rgb(_upright(image), name)
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # its text holds an address in memory
            reason = "of no known kind"
        raise BadImageError(f"cannot read {name} as an image ({reason}): replace or remove it") from error


def read_regular(file: Path, name: str) -> bytes:
    """A file's content; `name` is what errors call it.

    Raises:
        BadImageError: no regular file; a pipe would be waited for.
        OSError: the file system does not give it.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise BadImageError(f"cannot read {name} as an image (not a regular file): replace or remove it")
    return file.read_bytes()


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, TypeError, KeyError, struct.error):  # a broken EXIF block tells no orientation
        return image


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    # Of 16-bit samples Pillow's conversion compares 8 bits alone.
    return image.mode.startswith("I") or image.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise BadImageError(f"{name} holds 32-bit floats, which have no defined range: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _sixteen_bit_grey_to_rgb(image)
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _sixteen_bit_grey_to_rgb(image: Image.Image) -> Image.Image:
    """Pillow's own conversion clips at 255 instead of scaling."""
    samples = np.asarray(image).astype(np.float64)
    grey = np.clip(np.rint(samples / 257), 0, 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[samples == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def resize_and_crop(image: Image.Image, size: int, name: str = "an image") -> np.ndarray:
    """Resizes the shorter side to `size` (Pillow's bilinear, antialiased) and crops the centre.

    Pixel for pixel what torchvision's `Resize(size)` and `CenterCrop(size)` make of a Pillow image, which is what the
    published models saw.

    Returns:
        uint8 [3, size, size], values 0..255.

    Raises:
        BadImageError: it is so narrow that it would take gigabytes; `name` is what the error calls it.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    width, height = image.size
    short, long = sorted((width, height))
    scaled = int(size * long / short)
    if size * scaled > _MOST_PIXELS:
        raise BadImageError(f"{name} is too narrow to be resized ({width}x{height} pixels): replace or remove it")
    new_size = (size, scaled) if width <= height else (scaled, size)
    if new_size != image.size:
        image = image.resize(new_size, Image.Resampling.BILINEAR)
    left = round((new_size[0] - size) / 2)
    top = round((new_size[1] - size) / 2)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
