"""Where the two sets of features come from that a metric compares, each with all that it depends on.

Features of a data set and their statistics are computed once, and kept under what made them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hparams.checks import check_image_count, image_source
from hparams.errors import UserError
from hparams.settings.experiments import FeatureExperiment, PRDCExperiment, PRDCSettings
from models.vqgan.autoencoder import VQAutoEncoder
from utils.data.bad_images import Report
from utils.data.batches import eval_batches
from utils.data.datasets import ImageData, open_folder, open_images
from utils.machine.devices import precision_name
from utils.machine.files import content_key, sha256_of
from utils.metrics.features import FeatureExtractor, build_features
from utils.metrics.fid import FeatureStatistics, feature_statistics
from utils.metrics.given_files import read_features, read_latents
from utils.pretrained.trained_models import load_trained_autoencoder, load_trained_models
from utils.runs.job import Job
from utils.runs.results import Value
from utils.runs.run_folder import DATA_FEATURES
from utils.runs.shards import Rows, Shards
from utils.sampling.drawing import decoded, sampled_codes, sampling_conditions
from utils.sampling.latents import part_size
from utils.sampling.sample_files import write_samples


@dataclass(frozen=True)
class FeatureSource:
    """A set of n features of d numbers each that is not computed yet."""

    n: int
    width: int  # d
    where: str  # what they are of, for messages
    conditions: Mapping[str, Value]  # everything that they depend on, by name, for results
    features: Callable[[Job], Rows | np.ndarray]  # gives them, [n,d] float32; the processes call it together
    kept_statistics: Callable[[Job], FeatureStatistics] | None = None  # where these are kept on their own
    data: ImageData | None = None  # the images that they are of, n or more, where these are read

    def statistics(self, job: Job) -> FeatureStatistics:
        """Their mean and covariance, for which they are computed only where these are not kept."""
        return self.kept_statistics(job) if self.kept_statistics else feature_statistics(job, self.features(job))


def begin_comparison(
    job: Job, settings: FeatureExperiment, what: str, *, as_many: bool
) -> tuple[FeatureSource, FeatureSource]:
    """Begin a job that compares generated images with real ones: the two sets, whose features are still to compute.

    what: the job in words. as_many: of the real images only the first, as many as there are generated ones (or all, if
    there are fewer).

    Raises:
        UserError: a model, a file, a folder or weights are missing or do not fit, or there are too few images.
    """
    run, given, sizes = settings.run, settings.generated, settings.autoencoder
    prdc = settings.prdc if isinstance(settings, PRDCExperiment) else PRDCSettings()
    extractor = cache(lambda: build_features(settings.features.features, settings.features.feature_weights, job.device))
    source = image_source(settings)
    if source == "features":
        generated = _from_file("--fake_feats", str(prdc.fake_feats))
    elif source == "images":
        path = str(given.fake_images_path)
        data = open_folder(Path(path), img_size=sizes.img_size, flag="--fake_images_path")
        named: dict[str, Value] = {"fake_images": path, "fake_images_key": data.fingerprint[:8], "n_fake": len(data)}
        generated = _from_data(extractor(), data, len(data), f"--fake_images_path {path}", named, job.folder.features)
    elif source == "latents":
        generated = _from_latents(job, settings, extractor())
    else:
        generated = _from_prior(job, settings, extractor())
    if prdc.real_feats:
        real = _from_file("--real_feats", prdc.real_feats)
    else:
        data = open_images(run, split=settings.real.split, img_size=sizes.img_size, hold_out=True)
        real = of_data(extractor(), data, settings.real.split, generated.n if as_many else None)
    for each in (generated, real):
        check_image_count(settings, each.n, each.where)
    if generated.width != real.width:
        raise UserError(
            f"features do not fit together: {generated.where} has [n, {generated.width}], "
            f"{real.where} has [n, {real.width}]"
        )
    read = {f"--dataset {run.dataset}": real.data, "--fake_images_path": generated.data}
    job.begin(what, _facts(generated, real), data={flag: [data] for flag, data in read.items() if data})
    return generated, real


def _facts(generated: FeatureSource, real: FeatureSource) -> dict[str, str]:
    """What is compared, for the first lines of a run."""
    conditions = {**real.conditions, **generated.conditions}
    facts = {"generated": f"{generated.n} images, {generated.where}", "real": f"{real.n} images, {real.where}"}
    if "features" in conditions:
        facts["features"] = f"{conditions['features']} (weights {conditions['feature_weights']})"
    return facts | {name: str(conditions[name]) for name in ("prior", "autoencoder") if name in conditions}


def of_data(extractor: FeatureExtractor, data: ImageData, split: str, most: int | None = None) -> FeatureSource:
    """The images of a data set, or its first `most`; `split` is what it is called."""
    n = min(most or len(data), len(data))
    named: dict[str, Value] = {"dataset": data.name, "split": split, "img_size": data.img_size, "n_real": n}
    return _from_data(extractor, data, n, f"the {split} split of {data.name}", named, DATA_FEATURES)


def _from_data(
    extractor: FeatureExtractor, data: ImageData, n: int, where: str, named: Mapping[str, Value], folder: Path
) -> FeatureSource:
    what, conditions = f"{extractor.name} of {where}", {**extractor.conditions, **named}
    features = lambda job: data_features(job, folder, extractor, data, n, what=what)  # noqa: E731
    statistics = lambda job: data_statistics(job, folder, extractor, data, n, what=what)  # noqa: E731
    return FeatureSource(n, extractor.width, where, conditions, features, statistics, data)


def _from_file(flag: str, path: str) -> FeatureSource:
    features, name = read_features(flag, Path(path)), flag.strip("-")
    n, width = features.shape
    conditions = {name: path, f"{name}_sha256": sha256_of(Path(path))[:8], f"{name}_n": n}
    return FeatureSource(n, width, f"{flag} {path}", conditions, lambda _: features)


def _from_latents(job: Job, settings: FeatureExperiment, extractor: FeatureExtractor) -> FeatureSource:
    ema, sizes, path = settings.checkpoint.ema is not False, settings.autoencoder, str(settings.generated.latents_path)
    autoencoder, file, ae_key = load_trained_autoencoder(job, sizes, settings.source, ema=ema)
    h, w = autoencoder.latent_size
    ids = read_latents("--latents_path", Path(path), tokens=h * w, codebook_size=sizes.codebook_size)
    n, key = len(ids), content_key(ids)
    conditions: dict[str, Value] = {**extractor.conditions, "latents": path, "latents_sha256": key[:8], "n_fake": n}
    conditions |= {"autoencoder": str(file), "dtype": precision_name(job.amp_dtype)}

    def features(job: Job) -> Rows:
        return _decoded(job, extractor, autoencoder, ae_key, ids, key, saves=settings.generated.save_images)

    return FeatureSource(n, extractor.width, f"--latents_path {path}", conditions, features)


def _from_prior(job: Job, settings: FeatureExperiment, extractor: FeatureExtractor) -> FeatureSource:
    models, sampling, saves = load_trained_models(job, settings), settings.sampling, settings.generated.save_images
    conditions: dict[str, Value] = {**extractor.conditions, "n_fake": sampling.n_samples}
    conditions |= sampling_conditions(sampling, settings.prior.sampler) | models.conditions(job, settings.run.dataset)

    def features(job: Job) -> Rows:
        ids, key = sampled_codes(job, models, sampling)
        return _decoded(job, extractor, models.autoencoder, models.ae_key, ids, key, saves=saves)

    return FeatureSource(sampling.n_samples, extractor.width, "--n_samples", conditions, features)


def _decoded(
    job: Job, extractor: FeatureExtractor, autoencoder: VQAutoEncoder, ae_key: tuple[object, ...],
    ids: Rows | np.ndarray, ids_key: str, *, saves: bool,
) -> Rows:
    """Codes to features, by way of images of 8 bits, which touch the disk with --save_images only."""
    n, size = len(ids), job.batch_size
    if saves:
        images = lambda part: decoded(job, autoencoder, ids[part])  # noqa: E731
        job.say(f"{n} images in {write_samples(job, n, images, job.folder.images, individually=True).where}")

    def features(indices: np.ndarray, _: object) -> Iterator[Tensor]:
        for first in range(0, len(indices), size):
            yield extractor(decoded(job, autoencoder, ids[indices[first : first + size]]))

    key = content_key("decoded 3", *ae_key, ids_key, job.amp_dtype, extractor.name, extractor.weights)
    like, what = np.empty(extractor.width, np.float32), f"{extractor.name} of generated images"
    return Shards(job.folder.features / key).fill(job, n, like, features, what=what, size=part_size(job))


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
