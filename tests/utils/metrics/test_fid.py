"""FID and KID: equal to torch-fidelity's on the same images, and in the order that a person would put them in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image, ImageFilter
from torch import Tensor
from torch_fidelity.metric_kid import kid_features_to_metric

from hparams.settings.metrics import FeatureSettings, KIDSettings
from utils.data.datasets import open_images
from utils.data.pictures import save_png
from utils.machine.distributed import Ranks
from utils.metrics.features import FeatureExtractor, build_features
from utils.metrics.fid import FeatureStatistics, distances, feature_statistics, frechet_distance, kernel_distance

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """Scenes, uint8 [n,3,32,32]."""
    where = tmp_path_factory.mktemp("toys") / "datasets.yaml"
    data = open_images("toy_churches", split="val", img_size=32, datasets_file=where, hold_out=False, toy_images=1)
    return torch.from_numpy(np.stack([data[i] for i in range(len(data))]))


@pytest.fixture(scope="module")
def r64() -> FeatureExtractor:
    return build_features(FeatureSettings(features="r64"), CPU)


@pytest.fixture(scope="module")
def features(pictures: Tensor, r64: FeatureExtractor) -> np.ndarray:
    return r64(pictures).numpy()


def statistics_of(features: np.ndarray) -> FeatureStatistics:
    return feature_statistics(features, quiet=True)


def fid(x: np.ndarray, y: np.ndarray) -> float:
    return frechet_distance(statistics_of(x), statistics_of(y))


def write(folder: Path, images: Tensor) -> str:
    for number, image in enumerate(images):
        save_png(folder / f"{number:03d}.png", image.numpy())
    return str(folder)


def check_against_torch_fidelity(
    folder: Path, extractor: FeatureExtractor, theirs: str, x: Tensor, y: Tensor, **more: str
) -> None:
    kid = KIDSettings(kid_subsets=5, kid_subset_size=min(len(x), len(y)) - 1)
    expected = torch_fidelity.calculate_metrics(
        input1=write(folder / "x", x),
        input2=write(folder / "y", y),
        cuda=False,
        fid=True,
        kid=True,
        kid_subsets=kid.kid_subsets,
        kid_subset_size=kid.kid_subset_size,
        feature_extractor=theirs,
        save_cpu_ram=True,
        verbose=False,
        cache=False,
        **more,
    )
    real = extractor(y).numpy()
    got = distances(extractor(x).numpy(), real, statistics_of(real), len(real), kid, quiet=True)
    assert got["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
    assert got["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    assert got["kid_std"] == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-2)


def test_equal_to_torch_fidelity_with_r64(
    tmp_path: Path, pictures: Tensor, r64: FeatureExtractor, registered_r64: str
) -> None:
    check_against_torch_fidelity(tmp_path, r64, registered_r64, pictures[:20], pictures[20:36])


def test_equal_to_torch_fidelity_with_inception(tmp_path: Path, pictures: Tensor, inception_file: Path) -> None:
    extractor = build_features(FeatureSettings(features="inception", feature_weights=str(inception_file)), CPU)
    weights = {"feature_extractor_weights_path": str(inception_file)}
    check_against_torch_fidelity(tmp_path, extractor, "inception-v3-compat", pictures[:6], pictures[6:11], **weights)


def test_it_grows_with_the_distance(pictures: Tensor, features: np.ndarray, r64: FeatureExtractor) -> None:
    """Nothing for the set itself in any order, little for a random half, and more with more noise or blur."""

    def noisy(deviation: float) -> Tensor:
        noise = deviation * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
        return (pictures + noise).round().clamp(0, 255).byte()

    def blurred(radius: float) -> Tensor:
        images = (Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pictures)
        kept = [np.asarray(image.filter(ImageFilter.GaussianBlur(radius))) for image in images]
        return torch.from_numpy(np.stack(kept)).permute(0, 3, 1, 2).contiguous()

    order = np.random.default_rng(0).permutation(len(features))
    assert abs(fid(features, features[order])) < 1e-4 * np.trace(statistics_of(features).sigma)
    half = fid(features, features[order[: len(order) // 2]])
    noise = [fid(features, r64(noisy(deviation)).numpy()) for deviation in (30, 90)]
    blur = [fid(features, r64(blurred(radius)).numpy()) for radius in (1, 4)]
    assert 0 < half < min(noise[0], blur[0])
    assert noise[0] < 0.5 * noise[1]
    assert blur[0] < 0.5 * blur[1]


def test_statistics_are_those_of_numpy() -> None:
    """Far from zero, over more parts than one, by one process or by two that each see to every second part."""
    features = np.random.default_rng(0).normal(300, 2, size=(10_000, 5)).astype(np.float32)
    both, given = Barrier(2), [torch.zeros(())] * 2

    class Thread(Ranks):
        def sum(self, tensor: Tensor) -> Tensor:
            given[self.rank] = tensor
            both.wait()
            total = given[0] + given[1]
            both.wait()
            return total

    with ThreadPoolExecutor(2) as pool:
        shared = list(pool.map(lambda rank: feature_statistics(features, quiet=True, ranks=Thread(rank, 2)), range(2)))
    for statistics in (statistics_of(features), *shared):
        np.testing.assert_allclose(statistics.mu, features.mean(0, dtype=np.float64), rtol=1e-12)
        np.testing.assert_allclose(statistics.sigma, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-9)


def test_the_formula_for_gaussians() -> None:
    """|μ|² + Σ (σ_x − σ_y)² where covariances are diagonal."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200_000, 2)).astype(np.float32) * [1, 2]
    y = rng.normal(size=(200_000, 2)).astype(np.float32) * [3, 1] + [0, 5]
    assert fid(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(4 + 1 + 25, rel=0.02)


def test_kid_is_that_of_torch_fidelity_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(n, 8)).astype(np.float32) for n in (50, 40))
    theirs = kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=7, kid_subset_size=30, verbose=False
    )
    assert kernel_distance(x, y, subsets=7, subset_size=30, quiet=True) == tuple(theirs.values())


def test_kid_is_left_out_or_refused(features: np.ndarray) -> None:
    fid_alone = KIDSettings(kid_subsets=0)
    found = distances(features, None, statistics_of(features), len(features), fid_alone, quiet=True)
    assert list(found) == ["fid"]
    with pytest.raises(ValueError, match="larger than the sets"):
        kernel_distance(features, features, subsets=1, subset_size=len(features) + 1, quiet=True)


def test_a_covariance_of_too_few_images_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    features = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)
    fid_alone, statistics = KIDSettings(kid_subsets=0), statistics_of(features)
    told = "note: FID of only 8 images, by 8 features each, is too high"
    distances(features, None, statistics, 9, fid_alone, quiet=True)
    assert capsys.readouterr().err == ""  # 9 images leave a rank of 8
    distances(features[:8], None, statistics, 9, fid_alone, quiet=True)
    assert capsys.readouterr().err.startswith(told)
    distances(features, None, statistics_of(features[:8]), 8, fid_alone, quiet=True)
    assert capsys.readouterr().err.startswith(told.replace("images", "real images"))


def test_long_work_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    features = np.random.default_rng(0).normal(size=(5000, 2)).astype(np.float32)
    kid = KIDSettings(kid_subsets=3, kid_subset_size=10)
    distances(features, features, statistics_of(features), len(features), kid, quiet=True)
    assert capsys.readouterr() == ("", "")
    distances(features, features, statistics_of(features), len(features), kid, quiet=False)
    said = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in said] == [
        ["mean and covariance", "5000/5000 images"],
        ["KID", "3/3 subsets"],
    ]
