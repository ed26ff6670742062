"""Rows of reading images: decoding and resizing, per worker process."""

from __future__ import annotations

import io
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.measure import Row, interleave
from benchmarks.scale import Scale
from utils.data.images import decode_rgb, resize_and_crop
from utils.data.lmdb_images import LMDBImages
from utils.data.pack_images import encode_lossless, pack_images

SIZE = 256
SOURCES = {  # what the published data sets hold: kind, pixels of the source, quality
    "LSUN, WebP 256 × 341": ("WEBP", (341, 256), 75),
    "JPEG 256 × 341": ("JPEG", (341, 256), 90),
    "JPEG 1024 × 1024": ("JPEG", (1024, 1024), 95),
    "FFHQ, PNG 1024 × 1024": ("PNG", (1024, 1024), None),
}


def reading(scale: Scale, device: torch.device) -> Row:
    """Photographs of each kind, decoded and resized to 256² in one process; and the same, packed once."""
    photograph = Image.fromarray(load_sample_images().images[0])
    sources = {}
    for name, (kind, size, quality) in SOURCES.items():
        buffer = io.BytesIO()
        photograph.resize(size).save(buffer, kind, **({} if quality is None else {"quality": quality}))
        sources[name] = buffer.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        pixels = resize_and_crop(decode_rgb(sources["JPEG 1024 × 1024"]), SIZE)
        pack_images(Path(folder, "packed"), [pixels] * 4)
        packed = LMDBImages(Path(folder, "packed")).read(0)
        unpacked = resize_and_crop(decode_rgb(packed), SIZE)
        sources["packed at 256 × 256, lossless"] = packed
        count = max(1, scale.data_images // 20)

        def read(source: bytes) -> None:
            for _ in range(count):
                resize_and_crop(decode_rgb(source), SIZE)

        row = Row(
            name="reading images at 256²",
            unit="s per image",
            reduced="one photograph, one process; its bytes are in memory",
            target="keeps up with the GPU",
            baseline="JPEG 1024 × 1024",
        )
        timings = interleave({name: partial(read, source) for name, source in sources.items()}, scale.repeats, device)
    row.timings = {name: timing.scaled(1 / count) for name, timing in timings.items()}
    row.checks["packed pixels are those of the source"] = bool(np.array_equal(pixels, unpacked))
    for name, timing in row.timings.items():
        row.figures[f"images/s per worker, {name}"] = round(1 / timing.median, 1)
    row.figures["packed, kB per image"] = round(len(encode_lossless(pixels)) / 1000, 1)
    return row
