"""Sampled images on disk: every one, once, and nothing of an earlier call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from utils.machine.distributed import Ranks
from utils.runs.job import Job
from utils.sampling.sample_files import SampleFiles, write_samples


def numbered(part: slice) -> torch.Tensor:
    numbers = torch.arange(part.start, part.stop, dtype=torch.uint8)
    return numbers.view(-1, 1, 1, 1).expand(-1, 3, 96, 96)


def write(job: Job, n: int, *, individually: bool = False) -> SampleFiles:
    return write_samples(job, n, numbered, Path("images"), individually=individually)


def names(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*.png"))


def tiles(path: Path) -> list[int]:
    """The number of every image of a grid, left to right and down; 0 in the last row is empty space or number 0."""
    with Image.open(path) as image:
        pixels = np.asarray(image)[..., 0]
    return [int(pixels[y, x]) for y in range(50, pixels.shape[0], 98) for x in range(50, pixels.shape[1], 98)]


@pytest.mark.parametrize(("n", "grids"), [(1, 1), (64, 1), (65, 2), (150, 3)])
def test_grids_of_64_hold_every_image(job: Job, n: int, grids: int) -> None:
    files = write(job, n)
    assert names(Path("images")) == [f"samples_{number:03d}.png" for number in range(grids)]
    shown = [number for name in names(Path("images")) for number in tiles(Path("images") / name)]
    assert shown[:n] == list(range(n))
    assert files.where == "images/samples_000.png" + (f" to samples_{grids - 1:03d}.png" if grids > 1 else "")
    assert files.first.shape[2] == (2 + 98 * 8 if n > 1 else 96)  # a grid of one is that one


def test_individual_files_are_numbered(job: Job) -> None:
    files = write(job, 70, individually=True)
    assert names(Path("images")) == [f"samples/{number:06d}.png" for number in range(70)]
    with Image.open("images/samples/000069.png") as image:
        assert image.size == (96, 96)
        assert image.getpixel((0, 0)) == (69, 69, 69)
    assert files.where == "images/samples/, 000000.png to 000069.png"
    assert files.first.shape == (3, 2 + 98 * 8, 2 + 98 * 8)  # the first ones, to be shown


def test_nothing_of_an_earlier_call_stays_and_all_of_others(job: Job) -> None:
    write(job, 150)
    write(job, 70, individually=True)
    assert len(names(Path("images"))) == 70
    Path("images/samples/notes.txt").write_text("mine")
    Path("images/other.png").write_bytes(b"mine")
    write(job, 2, individually=True)
    assert names(Path("images")) == ["other.png", "samples/000000.png", "samples/000001.png"]
    write(job, 3)
    assert names(Path("images")) == ["other.png", "samples_000.png"]
    assert Path("images/samples/notes.txt").read_text() == "mine"


def test_grey_images_become_colour_files(job: Job) -> None:
    grey = torch.zeros((2, 1, 8, 8), dtype=torch.uint8)
    write_samples(job, 2, lambda part: grey[part], Path("images"), individually=True)
    with Image.open("images/samples/000001.png") as image:
        assert (image.mode, image.size) == ("RGB", (8, 8))


@pytest.mark.parametrize("individually", [False, True])
def test_an_interrupted_call_leaves_no_part_of_a_set(job: Job, individually: bool) -> None:
    def some(part: slice) -> torch.Tensor:
        if part.start == 128:
            raise KeyboardInterrupt
        return numbered(part)

    with pytest.raises(KeyboardInterrupt):
        write_samples(job, 130, some, Path("images"), individually=individually)
    assert [file.name for file in Path("images").iterdir()] == [".unfinished"]
    write(job, 3, individually=individually)
    assert len(names(Path("images"))) == (3 if individually else 1)
    assert not Path("images/.unfinished").exists()


def test_each_process_writes_its_share_alone(job: Job) -> None:
    """And makes no image of another's; the first puts all in their place."""

    class Alternating(Ranks):
        def wait(self) -> None: ...

    made: list[slice] = []
    job.ranks = Alternating(1, 2)
    unfinished = Path("images/.unfinished")
    unfinished.mkdir(parents=True)
    for number in (0, 2):
        (unfinished / f"samples_{number:03d}.png").touch()
    images = lambda part: made.append(part) or numbered(part)  # noqa: E731
    write_samples(job, 150, images, Path("images"), individually=False)
    assert made == [slice(64, 128)]
    assert sorted(file.name for file in unfinished.iterdir()) == [f"samples_00{i}.png" for i in range(3)]
