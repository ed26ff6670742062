"""Sampled images on disk: grids of 64, or a file each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.data.pictures import image_grid, pil_image, save_png, to_uint8
from utils.machine.files import make_folder, naming, sync

PER_GRID = 64
COLUMNS = 8


UNFINISHED = ".unfinished"


class SampleFiles:
    """Takes images as they come and writes them to `folder`, in place of the samples of an earlier call.

    Grids are `samples_<number>.png`; with `individually` each image is `samples/<index>.png`, at its own size. Until
    `finish` they lie in a hidden folder, so that a call that was interrupted leaves no part of a set that looks whole.
    """

    def __init__(self, folder: Path, *, individually: bool) -> None:
        self._folder = folder
        self._individually = individually
        self._waiting: list[Tensor] = []
        self._images = self._grids = 0
        self._unfinished = folder / UNFINISHED
        for old in [*folder.glob("samples_*.png"), *folder.glob("samples/*.png")]:
            old.unlink()
        if self._unfinished.is_dir():
            shutil.rmtree(self._unfinished)

    @property
    def where(self) -> str:
        """The files written so far, in words."""
        if self._individually:
            return f"{self._folder / 'samples'}/, 000000.png to {self._images - 1:06d}.png"
        last = f" to samples_{self._grids - 1:03d}.png" if self._grids > 1 else ""
        return f"{self._folder / 'samples_000.png'}{last}"

    def add(self, images: Tensor) -> Iterator[np.ndarray]:
        """Take images [b,C,H,W], uint8 or in [0,1]; yields each full grid uint8 [3,H',W'], once it is written."""
        pixels = to_uint8(images).cpu()
        if self._individually:
            make_folder(self._unfinished / "samples")
            with ThreadPoolExecutor() as pool:  # compressing takes longer than drawing does on a GPU
                for _ in pool.map(self._write_image, count(self._images), pixels):
                    self._images += 1
        self._waiting.extend(pixels)
        while len(self._waiting) >= PER_GRID:
            yield self._write_grid()

    def finish(self) -> Iterator[np.ndarray]:
        """Write and yield what fills no whole grid, then put all files in their place."""
        if self._waiting:
            yield self._write_grid()
        for path in self._unfinished.rglob("*"):
            sync(path)
        for new in sorted(self._unfinished.iterdir()):
            place = self._folder / new.name
            if place.is_dir():  # what others put there stays
                for other in place.iterdir():
                    other.replace(new / other.name)
                place.rmdir()
            new.replace(place)
        self._unfinished.rmdir()
        sync(self._folder)

    def _write_image(self, index: int, pixels: Tensor) -> None:
        """Without waiting for the disk: that is for `finish`, when most are there already."""
        file = self._unfinished / "samples" / f"{index:06d}.png"
        with naming(file):
            pil_image(pixels.expand(3, -1, -1).numpy()).save(file)

    def _write_grid(self) -> np.ndarray:
        grid = image_grid(torch.stack(self._waiting[:PER_GRID]), COLUMNS)
        del self._waiting[:PER_GRID]
        if not self._individually:
            save_png(self._unfinished / f"samples_{self._grids:03d}.png", grid)
            self._grids += 1
        return grid
