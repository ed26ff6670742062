"""Features of images and their statistics on disk, keyed by what made them.

They are computed once, and continued after an interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.data.bad_images import Report
from utils.data.batches import eval_batches
from utils.data.datasets import ImageData
from utils.machine.distributed import ALONE, Ranks
from utils.machine.files import content_key
from utils.metrics.features import FeatureExtractor
from utils.metrics.fid import FeatureStatistics, feature_statistics
from utils.runs.growing_array import growing_array, made_array, read_array, warn_of_damage
from utils.runs.shared_batches import fill_array


def cached_features(
    path: Path,
    extractor: FeatureExtractor,
    n: int,
    batches: Callable[[np.ndarray, Report], Iterator[Tensor]],
    *,
    batch_size: int,
    what: str,
    quiet: bool,
    bad: Report | None = None,
    ranks: Ranks = ALONE,
    otherwise: Path | None = None,
) -> np.ndarray:
    """Features [n,d] float32 of n images, in order, mapped from the file `path`, which is made if it is missing.

    `batches` gives the images with some numbers, uint8 [b,3,H,W], `batch_size` at a time, and says which ones it cannot
    read; `bad` is told of them, also when the features are there already. `what` names the work for the progress bar,
    and `quiet` shows none. Of several `ranks` each computes its share. They are kept in the folder `otherwise` where
    that of `path` cannot be written.

    Raises:
        UserError: a feature is not finite.
    """

    def make(path: Path) -> None:
        fill_array(
            path,
            n,
            np.empty(extractor.width, np.float32),
            lambda indices, report: (extractor(images.to(extractor.device)) for images in batches(indices, report)),
            batch_size=batch_size,
            none=torch.empty((0, extractor.width), device=extractor.device),
            what=what,
            quiet=quiet,
            bad=bad,
            ranks=ranks,
        )

    features, unreadable = made_array(path, make, ranks, otherwise=otherwise)
    if bad and unreadable:
        bad(unreadable, n)
    return features


def data_features(
    folder: Path,
    extractor: FeatureExtractor,
    data: ImageData,
    most: int | None = None,
    *,
    batch_size: int,
    num_workers: int,
    what: str,
    quiet: bool,
    bad: Report | None = None,
    ranks: Ranks = ALONE,
    otherwise: Path | None = None,
) -> np.ndarray:
    """Features of a data set, or of its first `most` images, as `cached_features`, from a file in `folder`.

    The file takes n · d · 4 bytes (Inception: 25 GB for the 3 million bedrooms), and is read as a whole, for its
    checksum, whenever it is opened.
    """

    def path(images: ImageData) -> Path:
        return _data_file(folder, "features 2", extractor, images)

    def batches(indices: np.ndarray, report: Report) -> Iterator[Tensor]:
        return eval_batches(first, batch_size, num_workers, indices=indices, bad=report)

    first = data.first(most)
    if first is not data and (whole := read_array(path(data), ranks, otherwise)):
        features, unreadable = whole
        if bad and unreadable:
            names = {data.source(i) for i in range(len(first))}
            bad({name: reason for name, reason in unreadable.items() if name in names}, len(first))
        return features[: len(first)]
    if first is not data:
        warn_of_damage(path(data))
    return cached_features(
        path(first),
        extractor,
        len(first),
        batches,
        batch_size=batch_size,
        what=what,
        quiet=quiet,
        bad=bad,
        ranks=ranks,
        otherwise=otherwise,
    )


def statistics_file(folder: Path, extractor: FeatureExtractor, data: ImageData, most: int | None = None) -> Path:
    """Where in `folder` the statistics of a data set's features are kept, or those of its first `most` images."""
    return _data_file(folder, "statistics 2", extractor, data.first(most))


def cached_statistics(
    path: Path,
    features: Callable[[Report], np.ndarray],
    n: int,
    *,
    quiet: bool,
    bad: Report,
    ranks: Ranks = ALONE,
    otherwise: Path | None = None,
) -> FeatureStatistics:
    """Statistics from the file `path`, [d+1,d] float64, which is made from features [n,d] if it is missing.

    Where it is there, `features` are not asked for: their file may be deleted. They take the report of images that
    cannot be read; `bad` is told of these also when the statistics are there already. `quiet` hides the progress. Of
    several `ranks` each computes its share. They are kept in the folder `otherwise` where that of `path` cannot be
    written.
    """
    kept = read_array(path, ranks, otherwise)
    if not kept:
        unreadable: dict[str, str] = {}

        def report(found: Mapping[str, str], images: int) -> None:
            unreadable.update(found)
            bad(found, images)

        rows = features(report)

        def make(path: Path) -> None:
            statistics = feature_statistics(rows, quiet=quiet, ranks=ranks)
            if ranks.first:
                with growing_array(path, (rows.shape[1] + 1, rows.shape[1]), np.float64) as out:
                    out.write(0, np.vstack([statistics.mu, statistics.sigma]))
                    out.bad.update(unreadable)

        kept = made_array(path, make, ranks, otherwise=otherwise)
    values, unreadable = kept
    if unreadable:
        bad(unreadable, n)
    return FeatureStatistics(values[0], values[1:])


def _data_file(folder: Path, kind: str, extractor: FeatureExtractor, data: ImageData) -> Path:
    return folder / f"{content_key(kind, data.fingerprint, extractor.name, extractor.weights)}.npy"
