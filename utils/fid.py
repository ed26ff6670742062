"""Fréchet distance and kernel distance of feature sets, by torch-fidelity's own functions (FID, KID)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from hparams.experiments import KIDSettings

_ROWS = 4096  # features in float64 at a time


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean [d] and covariance [d,d] of a set of features, float64."""

    mu: np.ndarray
    sigma: np.ndarray


def distances(generated: np.ndarray, real: np.ndarray, kid: KIDSettings) -> dict[str, float]:
    """FID of features [n,d] and [m,d] and, unless it is left out, KID with its deviation over subsets, by name."""
    found = {"fid": frechet_distance(feature_statistics(generated), feature_statistics(real))}
    if kid.kid_subsets:
        mean, deviation = kernel_distance(generated, real, subsets=kid.kid_subsets, subset_size=kid.kid_subset_size)
        found |= {"kid": mean, "kid_std": deviation}
    return found


def feature_statistics(features: np.ndarray) -> FeatureStatistics:
    """Of features [n,d], n ≥ 2, which may be larger than memory: they are read twice, part by part."""
    n, d = features.shape
    parts = [features[start : start + _ROWS] for start in range(0, n, _ROWS)]
    mu = sum((part.sum(0, dtype=np.float64) for part in parts), np.zeros(d)) / n
    sigma = np.zeros((d, d))
    for part in parts:
        centred = part.astype(np.float64) - mu
        sigma += centred.T @ centred
    return FeatureStatistics(mu, sigma / (n - 1))


def frechet_distance(x: FeatureStatistics, y: FeatureStatistics) -> float:
    """|μ_x − μ_y|² + tr(Σ_x + Σ_y − 2 (Σ_x Σ_y)^½) (Heusel et al. 2017, arXiv 1706.08500, equation 6)."""
    return fid_statistics_to_metric(vars(x), vars(y), verbose=False)[KEY_METRIC_FID]


def kernel_distance(x: np.ndarray, y: np.ndarray, *, subsets: int, subset_size: int) -> tuple[float, float]:
    """KID (Bińkowski et al. 2018, arXiv 1801.01401) of features [n,d] and [m,d]: mean and deviation over subsets.

    The random subsets are torch-fidelity's, whatever the seed of a run.

    Raises:
        ValueError: a subset would be larger than a set.
    """
    if subset_size > min(len(x), len(y)):
        raise ValueError(f"subsets of {subset_size} are larger than the sets of {len(x)} and {len(y)}")
    result = kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=subsets, kid_subset_size=subset_size, verbose=False
    )
    return result[KEY_METRIC_KID_MEAN], result[KEY_METRIC_KID_STD]
