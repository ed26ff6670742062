"""FID and KID: equal to torch-fidelity's on the same images."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import Tensor
from torch_fidelity.metric_kid import kid_features_to_metric

from hparams.settings.data import DataSettings
from hparams.settings.experiments import KIDSettings
from jobs import a_job
from utils.data.datasets import open_images
from utils.data.pictures import save_png
from utils.machine.distributed import Ranks
from utils.metrics.features import build_features
from utils.metrics.fid import FeatureStatistics, distances, feature_statistics, kernel_distance
from utils.runs.job import Job


def statistics_of(features: np.ndarray) -> FeatureStatistics:
    with a_job() as job:
        return feature_statistics(job, features)


def test_equal_to_torch_fidelity(job: Job, inception_file: Path) -> None:
    """On scenes of toy churches."""
    data = open_images(DataSettings("toy_churches", toy_images=1), split="val", img_size=32, hold_out=False)
    for number in range(11):
        save_png(Path("x" if number < 6 else "y") / f"{number:03d}.png", data[number])
    kid = KIDSettings(kid_subsets=5, kid_subset_size=4)
    expected = torch_fidelity.calculate_metrics(
        input1="x", input2="y", cuda=False, fid=True, kid=True, **vars(kid), feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(inception_file), save_cpu_ram=True, verbose=False, cache=False,
    )  # fmt: skip
    extractor = build_features("inception", str(inception_file), job.device)
    features = extractor(torch.from_numpy(np.stack([data[i] for i in range(11)]))).numpy()
    generated, real = features[:6], features[6:]
    got = distances(job, generated, real, statistics_of(real), len(real), kid)
    assert got["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
    assert got["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    assert got["kid_std"] == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-2)


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

    with a_job(Thread(0, 2)) as first, a_job(Thread(1, 2)) as second, ThreadPoolExecutor(2) as pool:
        shared = list(pool.map(feature_statistics, (first, second), (features, features)))
    for statistics in (statistics_of(features), *shared):
        np.testing.assert_allclose(statistics.mu, features.mean(0, dtype=np.float64), rtol=1e-12)
        np.testing.assert_allclose(statistics.sigma, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-9)


def test_kid_is_that_of_torch_fidelity_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(n, 8)).astype(np.float32) for n in (50, 40))
    both = torch.from_numpy(x), torch.from_numpy(y)
    theirs = kid_features_to_metric(*both, kid_subsets=7, kid_subset_size=30, verbose=False)
    with a_job() as job:
        assert kernel_distance(job, x, y, subsets=7, subset_size=30) == tuple(theirs.values())
        with pytest.raises(ValueError, match="larger than the sets"):
            kernel_distance(job, x, y, subsets=1, subset_size=41)


def test_a_covariance_of_too_few_images_is_said(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    features = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)
    fid_alone, statistics = KIDSettings(kid_subsets=0), statistics_of(features)
    told = "note: FID of only 8 images, by 8 features each, is too high"
    assert list(distances(job, features, None, statistics, 9, fid_alone)) == ["fid"]
    assert capsys.readouterr().err == ""  # 9 images leave a rank of 8
    distances(job, features[:8], None, statistics, 9, fid_alone)
    assert capsys.readouterr().err.startswith(told)
    distances(job, features, None, statistics_of(features[:8]), 8, fid_alone)
    assert capsys.readouterr().err.startswith(told.replace("images", "real images"))
