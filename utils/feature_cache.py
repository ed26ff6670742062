"""Features of images on disk, keyed by what made them: computed once, and continued after an interruption."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.bad_images import Report
from utils.batches import eval_batches
from utils.datasets import ImageData
from utils.distributed import ALONE, Ranks
from utils.features import FeatureExtractor
from utils.files import content_key
from utils.growing_array import made_array, read_array
from utils.shared_batches import fill_array


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
) -> np.ndarray:
    """Features [n,d] float32 of n images, in order, mapped from the file `path`, which is made if it is missing.

    `batches` gives the images with some numbers, uint8 [b,3,H,W], `batch_size` at a time, and says which ones it cannot
    read; `bad` is told of them, also when the features are there already. `what` names the work for the progress bar,
    and `quiet` shows none. Of several `ranks` each computes its share.

    Raises:
        UserError: a feature is not finite.
    """

    def make() -> None:
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

    features, unreadable = made_array(path, make, mode="c", ranks=ranks)
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
) -> np.ndarray:
    """Features of a data set, or of its first `most` images, as `cached_features`, from a file in `folder`."""

    def path(images: ImageData) -> Path:
        return folder / f"{content_key('features 1', images.fingerprint, extractor.name, extractor.weights)}.npy"

    def batches(indices: np.ndarray, report: Report) -> Iterator[Tensor]:
        return eval_batches(first, batch_size, num_workers, indices=indices, bad=report)

    first = data.first(most)
    if first is not data and (whole := read_array(path(data), "c", ranks)):
        features, unreadable = whole
        if bad and unreadable:
            bad(unreadable, len(data))
        return features[: len(first)]
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
    )
