"""Features of images on disk, keyed by what made them: computed once, and continued after an interruption."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from utils.bad_images import Report, remembering
from utils.batches import eval_batches
from utils.datasets import ImageData
from utils.features import FeatureExtractor
from utils.growing_array import growing_array, made_array, read_array
from utils.progress import Progress


def content_key(*parts: object) -> str:
    """A name for what is made from all of `parts`."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:24]


def cached_features(
    path: Path,
    extractor: FeatureExtractor,
    n: int,
    batches: Callable[[int, Report], Iterator[Tensor]],
    *,
    what: str,
    quiet: bool,
    bad: Report | None = None,
) -> np.ndarray:
    """Features [n,d] float32 of n images, in order, mapped from the file `path`, which is made if it is missing.

    `batches` gives the images from a number on, uint8 [b,3,H,W], and says which ones it cannot read; `bad` is told of
    them, also when the features are there already. `what` names the work for the progress bar, and `quiet` shows none.

    Raises:
        UserError: a feature is not finite.
    """
    features, unreadable = made_array(path, lambda: _compute(path, extractor, n, batches, what, quiet, bad), mode="c")
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
) -> np.ndarray:
    """Features of a data set, or of its first `most` images, as `cached_features`, from a file in `folder`."""

    def path(images: ImageData) -> Path:
        return folder / f"{content_key('features 1', images.fingerprint, extractor.name, extractor.weights)}.npy"

    def batches(start: int, report: Report) -> Iterator[Tensor]:
        return eval_batches(first, batch_size, num_workers, start=start, bad=report)

    first = data.first(most)
    if first is not data and (whole := read_array(path(data), mode="c")):
        features, unreadable = whole
        if bad and unreadable:
            bad(unreadable, len(data))
        return features[: len(first)]
    return cached_features(path(first), extractor, len(first), batches, what=what, quiet=quiet, bad=bad)


def _compute(
    path: Path,
    extractor: FeatureExtractor,
    n: int,
    batches: Callable[[int, Report], Iterator[Tensor]],
    what: str,
    quiet: bool,
    bad: Report | None,
) -> None:
    with (
        growing_array(path, (n, extractor.width), np.float32) as rows,
        Progress(what, n, "image", done=rows.done, quiet=quiet) as progress,
    ):
        for images in batches(rows.done, remembering(rows.bad, bad)):
            rows.values[rows.done : rows.done + len(images)] = extractor(images.to(extractor.device)).cpu().numpy()
            rows.advance(len(images))
            progress.update(len(images))
