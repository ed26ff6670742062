"""Features of a data set on disk: whose they are, which are used again, and what becomes of unreadable images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from utils.data.batches import stand_in
from utils.data.datasets import open_folder
from utils.metrics.feature_sources import data_features, data_statistics
from utils.metrics.features import FeatureExtractor
from utils.runs.job import Job


class Colours(nn.Module):
    """The mean colour of an image; counts the images that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.seen = 0

    def forward(self, images: Tensor) -> tuple[Tensor]:
        self.seen += len(images)
        return (images.float().mean((2, 3)),)


@pytest.fixture
def photos(job: Job, tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (8, 8), (number, 2 * number, 100)).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture
def extractor() -> FeatureExtractor:
    made = FeatureExtractor("colours", "fixed", Colours())
    assert made.width == 3
    made.network.seen = 0
    return made


def of(made: Any, job: Job, folder: Path, extractor: FeatureExtractor, most: int = 20) -> Any:
    """`data_features` or `data_statistics` of a folder's first images."""
    data = open_folder(folder, img_size=8, flag="--fake_images_path")
    return made(job, Path("features"), extractor, data, min(most, len(data)), what="colours")


def test_features_of_the_first_images_are_used_for_more_and_for_fewer(
    job: Job, photos: Path, extractor: FeatureExtractor
) -> None:
    assert of(data_features, job, photos, extractor, 7)[:][:, 0].tolist() == list(range(7))
    assert extractor.network.seen == 7
    whole = of(data_features, job, photos, extractor)
    assert extractor.network.seen == 20
    assert np.array_equal(of(data_features, job, photos, extractor, 12)[:], whole[:12])
    assert extractor.network.seen == 20

    Image.new("RGB", (8, 8), "white").save(photos / "03.png")  # other data
    assert of(data_features, job, photos, extractor, 7)[3].tolist() == [255, 255, 255]
    assert extractor.network.seen == 27
    of(data_features, job, photos, FeatureExtractor("colours", "other weights", extractor.network), 7)
    assert extractor.network.seen == 35  # one more for the width


def test_statistics_are_kept_and_outlive_the_features(job: Job, photos: Path, extractor: FeatureExtractor) -> None:
    for most in (20, 7):
        first = of(data_statistics, job, photos, extractor, most)
        rows = of(data_features, job, photos, extractor, most)[:].astype(np.float64)
        np.testing.assert_allclose(first.mu, rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(first.sigma, np.cov(rows, rowvar=False), rtol=1e-9, atol=1e-9)
        assert len(rows) == most
    files = {file: np.load(file).dtype for file in Path("features").rglob("*.npy")}
    for file in [file for file, dtype in files.items() if dtype == np.float32]:
        file.unlink()
    assert np.array_equal(of(data_statistics, job, photos, extractor, 7).sigma, first.sigma)
    assert extractor.network.seen == 20

    for file in [file for file, dtype in files.items() if dtype == np.float64]:
        file.write_bytes(b"damaged")
    assert np.array_equal(of(data_statistics, job, photos, extractor, 7).sigma, first.sigma)
    Image.new("RGB", (8, 8), "white").save(photos / "03.png")  # other data
    assert not np.array_equal(of(data_statistics, job, photos, extractor, 7).sigma, first.sigma)


@pytest.mark.parametrize("made", [data_features, data_statistics])
def test_unreadable_images_are_reported_also_when_what_comes_of_them_is_there(
    made: Any, job: Job, photos: Path, extractor: FeatureExtractor
) -> None:
    told: dict[str, int] = {}
    job.bad_images = lambda found, images: told.update(dict.fromkeys(found, images))
    for name in ("05.png", "15.png"):
        (photos / name).write_bytes(b"no image")
    for most, names in ((10, ["05.png"]), (20, ["05.png", "15.png"])):
        for _ in range(2):
            told.clear()
            found = of(made, job, photos, extractor, most)
            assert told == {str(photos / name): 20 for name in names}
    assert extractor.network.seen == 20
    if made is data_features:
        assert found[5].tolist() == found[stand_in(5, 1, 20)].tolist()
