"""Features of images and their statistics, computed once, and kept under what made them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.data.bad_images import Report
from utils.data.batches import eval_batches
from utils.data.datasets import ImageData
from utils.machine.files import content_key
from utils.metrics.features import FeatureExtractor
from utils.metrics.fid import FeatureStatistics, feature_statistics
from utils.runs.job import Job
from utils.runs.shards import Rows, Shards
from utils.sampling.latents import part_size


def data_features(job: Job, folder: Path, extractor: FeatureExtractor, data: ImageData, n: int, *, what: str) -> Rows:
    """Features [n,d] float32 of a data set's first n images, kept in `folder`, or in the job's if that is read-only.

    They take n · d · 4 bytes (Inception: 25 GB for the 3 million bedrooms). UserError: a feature is not finite.
    """

    def features(indices: np.ndarray, report: Report) -> Iterator[Tensor]:
        batches = eval_batches(data, job.batch_size, job.num_workers, indices=indices, bad=report)
        return (extractor(images.to(job.device)) for images in batches)

    key, like = _key("features 3", extractor, data), np.empty(extractor.width, np.float32)
    shards = Shards(folder / key, job.folder.features / key)
    return shards.fill(job, n, like, features, what=what, size=part_size(job), of=len(data))


def data_statistics(
    job: Job, folder: Path, extractor: FeatureExtractor, data: ImageData, n: int, *, what: str
) -> FeatureStatistics:
    """Of the features of a data set's first n images, which are computed only if these statistics are not kept yet."""
    d, key = extractor.width, content_key(_key("statistics 3", extractor, data), n)
    shards = Shards(folder / key, job.folder.features / key)
    kept: list[Tensor] = []
    unreadable: dict[str, str] = {}
    if not job.ranks.from_first(lambda: shards.read(1) is not None):
        rows = data_features(job, folder, extractor, data, n, what=what)
        made = feature_statistics(job, rows)
        kept, unreadable = [torch.from_numpy(np.vstack([made.mu, made.sigma]))[None]], rows.unreadable

    def statistics(_: np.ndarray, report: Report) -> Iterator[Tensor]:
        if unreadable:
            report(unreadable, len(data))
        return iter(kept)

    (values,) = shards.fill(job, 1, np.empty((d + 1, d)), statistics, what="statistics", of=len(data))
    return FeatureStatistics(values[0], values[1:])


def _key(kind: str, extractor: FeatureExtractor, data: ImageData) -> str:
    return content_key(kind, data.fingerprint, extractor.name, extractor.weights)
