"""Features of a data set on disk: whose they are, which are used again, and what becomes of unreadable images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from utils.data.batches import stand_in
from utils.data.datasets import ImageData, open_folder
from utils.metrics.feature_cache import data_features, data_statistics
from utils.metrics.features import FeatureExtractor
from utils.metrics.fid import FeatureStatistics
from utils.runs.job import Job
from utils.runs.shards import Rows


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


def features(job: Job, folder: Path, extractor: FeatureExtractor, most: int | None = None) -> Rows:
    data: ImageData = open_folder(folder, img_size=8, flag="--fake_images_path")
    n = min(most or len(data), len(data))
    return data_features(job, Path("features"), extractor, data, n, what="colours")


def statistics(job: Job, folder: Path, extractor: FeatureExtractor, most: int | None = None) -> FeatureStatistics:
    data = open_folder(folder, img_size=8, flag="--fake_images_path")
    return data_statistics(job, Path("features"), extractor, data, most or len(data), what="colours")


@pytest.fixture
def told(job: Job) -> list[tuple[list[str], int]]:
    """What is reported as unreadable."""
    told: list[tuple[list[str], int]] = []
    job.bad_images = lambda found, images: told.append((sorted(found), images))
    return told


def test_features_of_the_first_images_are_used_for_more_and_for_fewer(
    job: Job, photos: Path, extractor: FeatureExtractor
) -> None:
    first = features(job, photos, extractor, 7)
    assert first[:][:, 0].tolist() == list(range(7))
    assert extractor.network.seen == 7
    whole = features(job, photos, extractor)
    assert extractor.network.seen == 20
    assert np.array_equal(features(job, photos, extractor, 12)[:], whole[:12])
    assert np.array_equal(features(job, photos, extractor, 99)[:], whole[:])
    assert extractor.network.seen == 20

    Image.new("RGB", (8, 8), "white").save(photos / "03.png")  # other data
    assert features(job, photos, extractor, 7)[3].tolist() == [255, 255, 255]
    assert extractor.network.seen == 27
    features(job, photos, FeatureExtractor("colours", "other weights", extractor.network), 7)
    assert extractor.network.seen == 35  # one more for the width


def test_unreadable_images_are_reported_also_when_their_features_are_there(
    job: Job, photos: Path, extractor: FeatureExtractor, told: list[tuple[list[str], int]]
) -> None:
    (photos / "05.png").write_bytes(b"no image")
    found = features(job, photos, extractor)
    assert found[5].tolist() == found[stand_in(5, 1, 20)].tolist()
    for most in (None, 10):
        told.clear()
        features(job, photos, extractor, most)
        assert [names for names, _ in told] == [[str(photos / "05.png")]]
    assert extractor.network.seen == 20


def test_statistics_are_kept_and_outlive_the_features(job: Job, photos: Path, extractor: FeatureExtractor) -> None:
    for most, used in ((None, 20), (7, 7)):
        first = statistics(job, photos, extractor, most)
        rows = features(job, photos, extractor, most)[:].astype(np.float64)
        np.testing.assert_allclose(first.mu, rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(first.sigma, np.cov(rows, rowvar=False), rtol=1e-9, atol=1e-9)
        assert len(rows) == used
    files = {file: np.load(file).dtype for file in Path("features").rglob("*.npy")}
    for file in [file for file, dtype in files.items() if dtype == np.float32]:
        file.unlink()
    assert np.array_equal(statistics(job, photos, extractor, 7).sigma, first.sigma)
    assert extractor.network.seen == 20

    for file in [file for file, dtype in files.items() if dtype == np.float64]:
        file.write_bytes(b"damaged")
    assert np.array_equal(statistics(job, photos, extractor, 7).sigma, first.sigma)
    Image.new("RGB", (8, 8), "white").save(photos / "03.png")  # other data
    assert not np.array_equal(statistics(job, photos, extractor, 7).sigma, first.sigma)


def test_unreadable_images_are_reported_also_when_their_statistics_are_there(
    job: Job, photos: Path, extractor: FeatureExtractor, told: list[tuple[list[str], int]]
) -> None:
    for name in ("05.png", "15.png"):
        (photos / name).write_bytes(b"no image")
    for most, names in ((10, ["05.png"]), (None, ["05.png", "15.png"])):
        for _ in range(2):
            told.clear()
            statistics(job, photos, extractor, most)
            assert {path for found, _ in told for path in found} == {str(photos / name) for name in names}
            assert {images for _, images in told} == {20}
