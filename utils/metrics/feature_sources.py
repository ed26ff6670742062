"""Where the two sets of features come from that a metric compares, each with all that it depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from hparams.checks import check_image_count, image_source
from hparams.errors import UserError
from hparams.settings.experiments import FeatureExperiment, PRDCExperiment, PRDCSettings
from models.vqgan.autoencoder import VQAutoEncoder
from utils.data.datasets import ImageData, open_folder
from utils.machine.devices import precision_name
from utils.machine.files import content_key, sha256_of
from utils.metrics.feature_cache import data_features, data_statistics, part_size
from utils.metrics.features import FeatureExtractor, build_features
from utils.metrics.fid import FeatureStatistics, feature_statistics
from utils.metrics.given_files import read_features, read_latents
from utils.pretrained.building import open_data
from utils.pretrained.loading import restore_autoencoder
from utils.pretrained.trained_models import ae_key, load_trained_models, note_averages
from utils.runs.job import Job
from utils.runs.results import Value
from utils.runs.run_folder import DATA_FEATURES
from utils.runs.shards import Rows, Shards
from utils.sampling.drawing import decoded, sampled_codes, sampling_conditions
from utils.sampling.sample_files import write_samples

Features = Rows | np.ndarray


@dataclass(frozen=True)
class FeatureSource:
    """A set of features that is not computed yet.

    Attributes:
        n: how many there will be.
        width: d, numbers in each.
        where: what they are of, for messages.
        conditions: everything that they depend on, by name, for results.
        features: gives them, [n,d] float32; the processes call it together.
        kept_statistics: gives their mean and covariance where these are kept on their own.
        data: the images that they are of, n or more, where these are read.
    """

    n: int
    width: int
    where: str
    conditions: Mapping[str, Value]
    features: Callable[[Job], Features]
    kept_statistics: Callable[[Job], FeatureStatistics] | None = None
    data: ImageData | None = None

    def statistics(self, job: Job) -> FeatureStatistics:
        """Their mean and covariance, for which they are computed only where these are not kept."""
        return self.kept_statistics(job) if self.kept_statistics else feature_statistics(job, self.features(job))


def open_sources(job: Job, settings: FeatureExperiment, *, as_many: bool) -> tuple[FeatureSource, FeatureSource]:
    """Generated and real images. Whatever is missing shows here; the long work is left to `FeatureSource.features`.

    as_many: of the real images only the first, as many as there are generated ones (or all, if there are fewer).

    Raises:
        UserError: a model, a file, a folder or weights are missing or do not fit, or there are too few images.
    """
    prdc = settings.prdc if isinstance(settings, PRDCExperiment) else PRDCSettings()
    generated = _from_file("--fake_feats", prdc.fake_feats) if prdc.fake_feats else None
    real = _from_file("--real_feats", prdc.real_feats) if prdc.real_feats else None
    if not (generated and real):
        extractor = build_features(settings.features.features, settings.features.feature_weights, job.device)
        generated = generated or _generated(job, settings, extractor)
        if not real:
            split, img_size = settings.real.split, settings.autoencoder.img_size
            data = open_data(settings.run, split=split, img_size=img_size, hold_out=True)
            real = real_source(extractor, data, split, generated.n if as_many else None)
    for source in (generated, real):
        check_image_count(settings, source.n, source.where)
    if generated.width != real.width:
        raise UserError(
            f"features do not fit together: {generated.where} has [n, {generated.width}], "
            f"{real.where} has [n, {real.width}]"
        )
    return generated, real


def facts_of(generated: FeatureSource, real: FeatureSource) -> dict[str, str]:
    """What is compared, for the first lines of a run."""
    conditions = {**real.conditions, **generated.conditions}
    facts = {"generated": f"{generated.n} images, {generated.where}", "real": f"{real.n} images, {real.where}"}
    if "features" in conditions:
        facts["features"] = f"{conditions['features']} (weights {conditions['feature_weights']})"
    return facts | {name: str(conditions[name]) for name in ("prior", "autoencoder") if name in conditions}


def images_read(generated: FeatureSource, real: FeatureSource, dataset: str) -> dict[str, list[ImageData]]:
    """The images that both read, by the flag that names them."""
    read = {f"--dataset {dataset}": real.data, "--fake_images_path": generated.data}
    return {flag: [data] for flag, data in read.items() if data}


def real_source(extractor: FeatureExtractor, data: ImageData, split: str, most: int | None = None) -> FeatureSource:
    """The images of a data set, or its first `most`; `split` is what it is called."""
    n, what = min(most or len(data), len(data)), f"{extractor.name} of real images"
    return FeatureSource(
        n,
        extractor.width,
        f"the {split} split of {data.name}",
        {**extractor.conditions, "dataset": data.name, "split": split, "img_size": data.img_size, "n_real": n},
        lambda job: data_features(job, DATA_FEATURES, extractor, data, n, what=what),
        lambda job: data_statistics(job, DATA_FEATURES, extractor, data, n, what=what),
        data,
    )


def _from_file(flag: str, path: str) -> FeatureSource:
    features = read_features(flag, Path(path))
    n, width = features.shape
    name = flag.strip("-")
    conditions: dict[str, Value] = {name: path, f"{name}_sha256": sha256_of(Path(path))[:8], f"{name}_n": n}
    return FeatureSource(n, width, f"{flag} {path}", conditions, lambda _: features)


def _generated(job: Job, settings: FeatureExperiment, extractor: FeatureExtractor) -> FeatureSource:
    """Images drawn from the prior, decoded from given codes, or read from a folder, as the settings say."""
    generated, source = settings.generated, image_source(settings)
    if source == "images":
        path = str(generated.fake_images_path)
        data = open_folder(Path(path), img_size=settings.autoencoder.img_size, flag="--fake_images_path")
        n, what = len(data), f"{extractor.name} of {path}"
        return FeatureSource(
            n,
            extractor.width,
            f"--fake_images_path {path}",
            {**extractor.conditions, "fake_images": path, "fake_images_key": data.fingerprint[:8], "n_fake": n},
            lambda job: data_features(job, job.folder.features, extractor, data, n, what=what),
            data=data,
        )
    if source == "latents":
        path = str(generated.latents_path)
        autoencoder, ae_file = restore_autoencoder(
            settings.autoencoder,
            str(settings.source.ae_load_dir),
            settings.source.ae_load_step,
            ema=settings.checkpoint.ema is not False,
            device=job.device,
        )
        note_averages(ae_file)
        h, w = autoencoder.latent_size
        ids = read_latents("--latents_path", Path(path), tokens=h * w, codebook_size=settings.autoencoder.codebook_size)
        decoder = _Decoder(extractor, autoencoder, ae_key(ae_file, settings.autoencoder), generated.save_images)
        return FeatureSource(
            len(ids),
            extractor.width,
            f"--latents_path {path}",
            {
                **extractor.conditions,
                "latents": path,
                "latents_sha256": content_key(ids)[:8],
                "n_fake": len(ids),
                "autoencoder": str(ae_file),
                "dtype": precision_name(job.amp_dtype),
            },
            lambda job: decoder.features(job, ids, content_key(ids)),
        )
    models, sampling = load_trained_models(job, settings), settings.sampling
    decoder = _Decoder(extractor, models.autoencoder, models.ae_key, generated.save_images)
    conditions: dict[str, Value] = {
        **extractor.conditions,
        "n_fake": sampling.n_samples,
        **sampling_conditions(sampling, settings.prior.sampler),
        **models.conditions(job, settings.run.dataset),
    }

    def features(job: Job) -> Rows:
        codes = sampled_codes(job, models, sampling)
        return decoder.features(job, codes.ids, codes.key)

    return FeatureSource(sampling.n_samples, extractor.width, "--n_samples", conditions, features)


@dataclass(frozen=True)
class _Decoder:
    """Codes to features, by way of images of 8 bits, which touch the disk with --save_images only."""

    extractor: FeatureExtractor
    autoencoder: VQAutoEncoder
    key: tuple[object, ...]  # what determines its images
    saves: bool

    def features(self, job: Job, ids: Rows | np.ndarray, ids_key: str) -> Rows:
        """Of codes [n,N], which `ids_key` names."""
        if self.saves:
            images = lambda part: decoded(job, self.autoencoder, ids[part.start : part.stop])  # noqa: E731
            files = write_samples(job, len(ids), images, job.folder.images, individually=True)
            job.say(f"{len(ids)} images in {files.where}")

        def features(indices: np.ndarray, _: object) -> Iterator[Tensor]:
            for first in range(0, len(indices), job.batch_size):
                yield self.extractor(decoded(job, self.autoencoder, ids[indices[first : first + job.batch_size]]))

        key = content_key("decoded 3", *self.key, ids_key, job.amp_dtype, self.extractor.name, self.extractor.weights)
        like, what = np.empty(self.extractor.width, np.float32), f"{self.extractor.name} of generated images"
        return Shards(job.folder.features / key).fill(job, len(ids), like, features, what=what, size=part_size(job))
