"""Sampled images on disk: grids of 64, or a file each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from utils.data.pictures import image_grid, pil_image, save_png
from utils.machine.files import make_folder, naming, sync
from utils.runs.job import Job

PER_GRID = 64
COLUMNS = 8
UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class SampleFiles:
    """Images that were written."""

    where: str  # the files, in words
    first: np.ndarray  # a grid of the first ones, uint8 [3,H',W']; nothing but on the first process


def write_samples(
    job: Job, n: int, images: Callable[[slice], Tensor], folder: Path, *, individually: bool
) -> SampleFiles:
    """Write n images to `folder`, in place of the samples of an earlier call; each process makes and writes its share.

    Grids are `samples_<number>.png`; with `individually` each image is `samples/<index>.png`, at its own size. Until
    all are there they lie in a hidden folder, so that a call that was interrupted leaves no part of a set that looks
    whole. images: gives those of a slice of the n, uint8 [b,C,H,W].
    """
    unfinished, grids = folder / UNFINISHED, [slice(i, min(i + PER_GRID, n)) for i in range(0, n, PER_GRID)]
    if job.ranks.first:
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        make_folder(unfinished / "samples" if individually else unfinished)
    job.ranks.wait()
    first = np.empty((3, 0, 0), np.uint8)
    with job.progress("decoding", n, "image") as progress, ThreadPoolExecutor() as pool:
        for number in job.ranks.share(len(grids)):
            pixels = images(grids[number]).cpu()
            if individually:  # compressing takes longer than drawing does on a GPU
                files = (unfinished / "samples" / f"{index:06d}.png" for index in range(n)[grids[number]])
                list(pool.map(_write_image, files, pixels))
            else:
                save_png(unfinished / f"samples_{number:03d}.png", image_grid(pixels, COLUMNS))
            if number == 0:
                first = image_grid(pixels, COLUMNS)
            progress.update(len(pixels))
            job.check()
    written = n if individually else len(grids)
    job.wait_for(lambda: written - sum(1 for _ in unfinished.rglob("*.png")), f"images in {unfinished}")
    if job.ranks.first:
        _put_in_place(unfinished, folder)
    if individually:
        return SampleFiles(f"{folder / 'samples'}/, 000000.png to {n - 1:06d}.png", first)
    last = f" to samples_{len(grids) - 1:03d}.png" if len(grids) > 1 else ""
    return SampleFiles(f"{folder / 'samples_000.png'}{last}", first)


def _put_in_place(unfinished: Path, folder: Path) -> None:
    """Move the new files to `folder`, instead of an earlier call's."""
    for old in [*folder.glob("samples_*.png"), *folder.glob("samples/*.png")]:
        old.unlink()
    for path in unfinished.rglob("*"):
        sync(path)
    for new in sorted(unfinished.iterdir()):
        place = folder / new.name
        if place.is_dir():  # what others put there stays
            for other in place.iterdir():
                other.replace(new / other.name)
            place.rmdir()
        new.replace(place)
    unfinished.rmdir()
    sync(folder)


def _write_image(file: Path, pixels: Tensor) -> None:
    """Without waiting for the disk: that is for `_put_in_place`, when most are there already."""
    with naming(file):
        pil_image(pixels.expand(3, -1, -1).numpy()).save(file)
