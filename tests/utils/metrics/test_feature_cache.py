"""Features of a data set on disk: whose they are, which are used again, and what becomes of unreadable images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hparams.errors import UserError
from utils.data.batch_reader import stand_in
from utils.data.datasets import ImageData, open_folder
from utils.metrics.feature_cache import cached_statistics, data_features, statistics_file
from utils.metrics.features import FeatureExtractor
from utils.metrics.fid import FeatureStatistics


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
def photos(tmp_path: Path) -> Path:
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


def features(folder: Path, extractor: FeatureExtractor, most: int | None = None, **options: Any) -> np.ndarray:
    data: ImageData = open_folder(folder, img_size=8, flag="--fake_images_path")
    options = {"batch_size": 6, "num_workers": 0, "what": "colours", "quiet": True, **options}
    return data_features(folder.parent / "features", extractor, data, most, **options)


def test_the_first_images_are_taken_from_the_features_of_all(photos: Path, extractor: FeatureExtractor) -> None:
    first = features(photos, extractor, 7).copy()
    assert first.shape == (7, 3)
    assert first[:, 0].tolist() == list(range(7))
    assert extractor.network.seen == 7
    whole = features(photos, extractor)
    assert extractor.network.seen == 27  # features of some are not looked for when all are asked for
    assert np.array_equal(features(photos, extractor, 12), whole[:12])
    assert np.array_equal(features(photos, extractor, 7), first)
    assert np.array_equal(features(photos, extractor, 99), whole)
    assert extractor.network.seen == 27

    Image.new("RGB", (8, 8), "white").save(photos / "03.png")  # other data
    assert features(photos, extractor, 7)[3].tolist() == [255, 255, 255]
    assert extractor.network.seen == 34
    features(photos, FeatureExtractor("colours", "other weights", extractor.network), 7)
    assert extractor.network.seen == 42  # one more for the width


def test_unreadable_images_are_reported_also_when_their_features_are_there(
    photos: Path, extractor: FeatureExtractor
) -> None:
    (photos / "05.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"05\.png"):
        features(photos, extractor)

    told: list[tuple[Mapping[str, str], int]] = []
    found = features(photos, extractor, bad=lambda unreadable, images: told.append((dict(unreadable), images)))
    assert found[5].tolist() == found[stand_in(5, 1, 20)].tolist()
    assert [(list(unreadable), images) for unreadable, images in told] == [([str(photos / "05.png")], 20)] * 2
    seen = extractor.network.seen
    for most in (None, 10):
        told.clear()
        features(photos, extractor, most, bad=lambda unreadable, images: told.append((dict(unreadable), images)))
        assert [list(unreadable) for unreadable, _ in told] == [[str(photos / "05.png")]]
    assert extractor.network.seen == seen


def statistics(
    folder: Path, extractor: FeatureExtractor, most: int | None = None, bad: Any = None
) -> FeatureStatistics:
    data = open_folder(folder, img_size=8, flag="--fake_images_path")
    path = statistics_file(folder.parent / "features", extractor, data, most)
    n = len(data.first(most))
    return cached_statistics(path, lambda told: features(folder, extractor, most, bad=told), n, quiet=True, bad=bad)


def test_statistics_are_kept_and_outlive_the_features(photos: Path, extractor: FeatureExtractor) -> None:
    for most, used in ((None, 20), (7, 7)):
        first = statistics(photos, extractor, most)
        rows = features(photos, extractor, most).astype(np.float64)
        np.testing.assert_allclose(first.mu, rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(first.sigma, np.cov(rows, rowvar=False), rtol=1e-9, atol=1e-9)
        assert len(rows) == used
    assert extractor.network.seen == 20
    for file in (photos.parent / "features").glob("*.npy"):
        if np.load(file).dtype == np.float32:
            file.unlink()
    assert np.array_equal(statistics(photos, extractor, 7).sigma, first.sigma)
    assert extractor.network.seen == 20

    Image.new("RGB", (8, 8), "white").save(photos / "03.png")  # other data
    assert not np.array_equal(statistics(photos, extractor, 7).sigma, first.sigma)
    kept = next(file for file in (photos.parent / "features").glob("*.npy") if np.load(file).dtype == np.float64)
    kept.write_bytes(b"damaged")
    for most in (None, 7):
        rows = features(photos, extractor, most).astype(np.float64)
        np.testing.assert_allclose(statistics(photos, extractor, most).mu, rows.mean(0), rtol=1e-12)


def test_unreadable_images_are_reported_also_when_their_statistics_are_there(
    photos: Path, extractor: FeatureExtractor
) -> None:
    told: list[tuple[list[str], int]] = []
    for name in ("05.png", "15.png"):
        (photos / name).write_bytes(b"no image")
    for most, names in ((None, ["05.png", "15.png"]), (10, ["05.png"])):
        for _ in range(2):
            told.clear()
            statistics(photos, extractor, most, lambda found, images: told.append((sorted(found), images)))
            paths = [str(photos / name) for name in names]
            assert sorted({path for found, _ in told for path in found}) == paths
            assert {images for _, images in told} == {20 if most is None else 10}
    assert extractor.network.seen == 20
