"""Fréchet distance and kernel distance of feature sets, by torch-fidelity's own functions (FID, KID)."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_kid import kernel_mmd

from hparams.settings.metrics import KIDSettings
from utils.machine.distributed import ALONE, Ranks
from utils.machine.progress import Progress

_ROWS = 4096  # features in float64 at a time


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean [d] and covariance [d,d] of a set of features, float64."""

    mu: np.ndarray
    sigma: np.ndarray


def distances(
    generated: np.ndarray,
    real: np.ndarray | None,
    real_statistics: FeatureStatistics,
    n_real: int,
    kid: KIDSettings,
    *,
    quiet: bool,
) -> dict[str, float]:
    """FID of features [n,d] and, unless it is left out, KID with its deviation over subsets, by name.

    Of the real features [n_real,d] only KID needs more than their statistics: None without it. `quiet` hides its
    progress. A note on stderr says when a set has no more than d images: its covariance, of a rank of at most one less
    than images, then lacks rank, and FID is biased upwards.
    """
    n, d = generated.shape
    if min(n, n_real) <= d:
        few = f"{n} images" if n <= n_real else f"{n_real} real images"
        print(
            f"note: FID of only {few}, by {d} features each, is too high: compare it only with FIDs of as many",
            file=sys.stderr,
        )
    found = {"fid": frechet_distance(feature_statistics(generated, quiet=quiet), real_statistics)}
    if kid.kid_subsets:
        assert real is not None
        mean, deviation = kernel_distance(
            generated, real, subsets=kid.kid_subsets, subset_size=kid.kid_subset_size, quiet=quiet
        )
        found |= {"kid": mean, "kid_std": deviation}
    return found


def feature_statistics(features: np.ndarray, *, quiet: bool, ranks: Ranks = ALONE) -> FeatureStatistics:
    """Of features [n,d], n ≥ 2, which may be larger than memory: they are read once, part by part.

    `quiet` hides the progress. Several `ranks` have the same features, and each sees to its share.
    """
    n, d = features.shape
    near = features[:_ROWS].mean(0, dtype=np.float64)  # about the mean, so that one pass loses no digits
    total, products = np.zeros(d), np.zeros((d, d))
    with Progress("mean and covariance", n, "image", quiet=quiet) as progress:
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
    x: np.ndarray, y: np.ndarray, *, subsets: int, subset_size: int, quiet: bool
) -> tuple[float, float]:
    """KID (Bińkowski et al. 2018, arXiv 1801.01401) of features [n,d] and [m,d]: mean and deviation over subsets.

    The random subsets are torch-fidelity's, whatever the seed of a run. `quiet` hides the progress.

    Raises:
        ValueError: a subset would be larger than a set.
    """
    if subset_size > min(len(x), len(y)):
        raise ValueError(f"subsets of {subset_size} are larger than the sets of {len(x)} and {len(y)}")
    rng, found = np.random.RandomState(DEFAULTS["rng_seed"]), np.zeros(subsets)
    with Progress("KID", subsets, "subset", quiet=quiet) as progress:
        for i in range(subsets):
            found[i] = kernel_mmd(*(part[rng.choice(len(part), subset_size, replace=False)] for part in (x, y)))
            progress.update()
    return float(found.mean()), float(found.std())
