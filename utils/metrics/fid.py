"""Fréchet distance and kernel distance of feature sets, by torch-fidelity's own functions (FID, KID)."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_kid import kernel_mmd

from hparams.settings.experiments import KIDSettings
from utils.runs.job import Job
from utils.runs.shards import Rows

_ROWS = 4096  # features in float64 at a time


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean [d] and covariance [d,d] of a set of features, float64."""

    mu: np.ndarray
    sigma: np.ndarray


def distances(
    job: Job, generated: Rows | np.ndarray, real: Rows | np.ndarray | None, real_statistics: FeatureStatistics,
    n_real: int, kid: KIDSettings,
) -> dict[str, float]:
    """FID of features [n,d] and, unless it is left out, KID with its deviation over subsets, by name.

    Of the real features [n_real,d] only KID needs more than their statistics: None without it. A note on stderr says
    when a set has no more than d images: its covariance then lacks rank, and FID is biased upwards.
    """
    n, d = generated.shape
    if min(n, n_real) <= d:
        few = f"{n} images" if n <= n_real else f"{n_real} real images"
        line = f"FID of only {few}, by {d} features each, is too high: compare it only with FIDs of as many"
        print(f"note: {line}", file=sys.stderr)
    found = {"fid": frechet_distance(feature_statistics(job, generated), real_statistics)}
    if kid.kid_subsets:
        assert real is not None
        kid_sizes = {"subsets": kid.kid_subsets, "subset_size": kid.kid_subset_size}
        found["kid"], found["kid_std"] = kernel_distance(job, generated, real, **kid_sizes)
    return found


def feature_statistics(job: Job, features: Rows | np.ndarray) -> FeatureStatistics:
    """Of features [n,d], n ≥ 2, which may be larger than memory: they are read once, part by part.

    The processes have the same features, and each sees to its share.
    """
    (n, d), ranks = features.shape, job.ranks
    near = features[:_ROWS].mean(0, dtype=np.float64)  # about the mean, so that one pass loses no digits
    total, products = np.zeros(d), np.zeros((d, d))
    with job.progress("mean and covariance", n, "image") as progress:
        for start in range(ranks.rank * _ROWS, n, ranks.count * _ROWS):
            centred = features[start : start + _ROWS] - near
            total += centred.sum(0)
            products += centred.T @ centred
            progress.update(min(ranks.count * _ROWS, n - start))
    total, products = (ranks.sum(torch.from_numpy(part)).numpy() for part in (total, products))
    return FeatureStatistics(near + total / n, (products - np.outer(total, total) / n) / (n - 1))


def frechet_distance(x: FeatureStatistics, y: FeatureStatistics) -> float:
    """|μ_x − μ_y|² + tr(Σ_x + Σ_y − 2 (Σ_x Σ_y)^½) (Heusel et al. 2017, arXiv 1706.08500, equation 6)."""
    return fid_statistics_to_metric(vars(x), vars(y), verbose=False)[KEY_METRIC_FID]


def kernel_distance(
    job: Job, x: Rows | np.ndarray, y: Rows | np.ndarray, *, subsets: int, subset_size: int
) -> tuple[float, float]:
    """KID (Bińkowski et al. 2018, arXiv 1801.01401) of features [n,d] and [m,d]: mean and deviation over subsets.

    The random subsets are torch-fidelity's, whatever the seed of a run.

    Raises:
        ValueError: a subset would be larger than a set.
    """
    if subset_size > min(len(x), len(y)):
        raise ValueError(f"subsets of {subset_size} are larger than the sets of {len(x)} and {len(y)}")
    rng, found = np.random.RandomState(DEFAULTS["rng_seed"]), np.zeros(subsets)
    with job.progress("KID", subsets, "subset") as progress:
        for i in range(subsets):
            found[i] = kernel_mmd(*(part[rng.choice(len(part), subset_size, replace=False)] for part in (x, y)))
            progress.update()
    return float(found.mean()), float(found.std())
