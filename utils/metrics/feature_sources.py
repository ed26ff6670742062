"""Where the two sets of features come from that a metric compares, each with all that it depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hparams.checks import check_image_count, image_source
from hparams.errors import UserError
from hparams.settings.experiments import FeatureExperiment, PRDCExperiment
from hparams.settings.metrics import PRDCSettings
from hparams.settings.stages import RunSettings
from models.vqgan.autoencoder import VQAutoEncoder
from utils.data.bad_images import Report
from utils.data.datasets import ImageData, Split, open_folder
from utils.data.pictures import to_uint8
from utils.machine.devices import pick_amp_dtype, precision_name
from utils.machine.distributed import Ranks
from utils.machine.files import content_key, sha256_of
from utils.machine.progress import Progress, say
from utils.metrics.feature_cache import cached_features, cached_statistics, data_features, statistics_file
from utils.metrics.features import FeatureExtractor, build_features
from utils.metrics.fid import FeatureStatistics, feature_statistics
from utils.metrics.given_files import read_features, read_latents
from utils.pretrained.building import open_data
from utils.pretrained.loading import restore_autoencoder
from utils.pretrained.trained_models import load_trained_models, note_averages
from utils.runs.results import Value
from utils.runs.run_folder import DATA_FEATURES, RunFolder
from utils.runs.shared_batches import in_order, own_indices
from utils.sampling.sample_files import SampleFiles
from utils.sampling.sampled_ids import sampled_ids
from utils.sampling.sampling import decode_images, sampling_conditions


@dataclass(frozen=True)
class FeatureSource:
    """A set of features that is not computed yet.

    Attributes:
        n: how many there will be.
        width: d, numbers in each.
        where: what they are of, for messages.
        conditions: everything that they depend on, by name, for results.
        compute: gives them, [n,d] float32. Processes share the work; the other argument is told of images that cannot
            be read.
        statistics_file: where their statistics are kept; None: nowhere.
        otherwise: the folder for the statistics where that of their file cannot be written.
        data: the images that they are of, n or more, where these are read.
    """

    n: int
    width: int
    where: str
    conditions: Mapping[str, Value]
    compute: Callable[[Ranks, Report], np.ndarray]
    statistics_file: Path | None = None
    otherwise: Path | None = None
    data: ImageData | None = None

    def statistics(self, ranks: Ranks, bad: Report, *, quiet: bool) -> FeatureStatistics:
        """Their mean and covariance, for which they are computed only where these are not kept."""
        if not self.statistics_file:
            return feature_statistics(self.compute(ranks, bad), quiet=quiet, ranks=ranks)
        return cached_statistics(
            self.statistics_file,
            lambda report: self.compute(ranks, report),
            self.n,
            quiet=quiet,
            bad=bad,
            ranks=ranks,
            otherwise=self.otherwise,
        )


def open_sources(
    settings: FeatureExperiment, folder: RunFolder, device: torch.device, *, as_many: bool
) -> tuple[FeatureSource, FeatureSource]:
    """Generated and real images. Whatever is missing shows here; the long work is left to `compute`.

    as_many: of the real images only the first, as many as there are generated ones (or all, if there are fewer).

    Raises:
        UserError: a model, a file, a folder or weights are missing or do not fit, or there are too few images.
    """
    prdc = settings.prdc if isinstance(settings, PRDCExperiment) else PRDCSettings()
    generated = _from_file("--fake_feats", prdc.fake_feats) if prdc.fake_feats else None
    real = _from_file("--real_feats", prdc.real_feats) if prdc.real_feats else None
    if not (generated and real):
        extractor = build_features(settings.features, device)
        generated = generated or _generated(settings, extractor, folder)
        if not real:
            data = open_split(settings.run, settings.real.split, settings.autoencoder.img_size)
            most = generated.n if as_many else None
            real = real_source(settings.run, extractor, data, settings.real.split, most)
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


def _from_file(flag: str, path: str) -> FeatureSource:
    features = read_features(flag, Path(path))
    n, width = features.shape
    name = flag.strip("-")
    conditions: dict[str, Value] = {name: path, f"{name}_sha256": sha256_of(Path(path))[:8], f"{name}_n": n}
    return FeatureSource(n, width, f"{flag} {path}", conditions, lambda *_: features)


def real_source(
    run: RunSettings, extractor: FeatureExtractor, data: ImageData, split: str, most: int | None = None
) -> FeatureSource:
    """The images of a data set, or its first `most`; `split` is what it is called."""
    n, what, own = len(data.first(most)), f"{extractor.name} of real images", RunFolder(run.log_dir).features
    return FeatureSource(
        n,
        extractor.width,
        f"the {split} split of {data.name}",
        {**extractor.conditions, "dataset": data.name, "split": split, "img_size": data.img_size, "n_real": n},
        lambda ranks, bad: _of_data(DATA_FEATURES, run, extractor, data, what, ranks, bad, most, own),
        statistics_file(DATA_FEATURES, extractor, data, most),
        own,
        data,
    )


def open_split(run: RunSettings, split: Split, img_size: int) -> ImageData:
    """A split to compare with: of a folder, train and val are its first 95% and the rest.

    Raises:
        UserError: the data set cannot be opened.
    """
    return open_data(run, split=split, img_size=img_size, hold_out=True)


def _generated(settings: FeatureExperiment, extractor: FeatureExtractor, folder: RunFolder) -> FeatureSource:
    """Images drawn from the prior, decoded from given codes, or read from a folder, as the settings say."""
    run, generated = settings.run, settings.generated
    source = image_source(settings)
    if source == "images":
        path = str(generated.fake_images_path)
        data = open_folder(Path(path), img_size=settings.autoencoder.img_size, flag="--fake_images_path")
        return FeatureSource(
            len(data),
            extractor.width,
            f"--fake_images_path {path}",
            {**extractor.conditions, "fake_images": path, "fake_images_key": data.fingerprint[:8], "n_fake": len(data)},
            lambda ranks, bad: _of_data(
                folder.features, run, extractor, data, f"{extractor.name} of {path}", ranks, bad
            ),
            data=data,
        )
    if source == "latents":
        path = str(generated.latents_path)
        autoencoder, ae_file = restore_autoencoder(
            settings.autoencoder,
            str(settings.source.ae_load_dir),
            settings.source.ae_load_step,
            ema=settings.checkpoint.ema is not False,
            device=extractor.device,
        )
        note_averages(ae_file)
        h, w = autoencoder.latent_size
        ids = read_latents("--latents_path", Path(path), tokens=h * w, codebook_size=settings.autoencoder.codebook_size)
        decoder = _Decoder(settings, extractor, folder, autoencoder, ae_file)
        return FeatureSource(
            len(ids),
            extractor.width,
            f"--latents_path {path}",
            {
                **extractor.conditions,
                "latents": path,
                "latents_sha256": sha256_of(Path(path))[:8],
                "n_fake": len(ids),
                "autoencoder": str(ae_file),
                "dtype": precision_name(pick_amp_dtype(extractor.device, run.amp, run.amp_dtype)),
            },
            lambda ranks, _: decoder.features(ids, ranks),
        )
    models, sampling = load_trained_models(settings), settings.sampling
    decoder = _Decoder(settings, extractor, folder, models.autoencoder, models.ae_file)
    conditions: dict[str, Value] = {
        **extractor.conditions,
        "n_fake": sampling.n_samples,
        **sampling_conditions(sampling, settings.prior.sampler),
        **models.conditions(run),
    }
    return FeatureSource(
        sampling.n_samples,
        extractor.width,
        "--n_samples",
        conditions,
        lambda ranks, _: decoder.features(sampled_ids(folder, models, settings, settings.sampling, ranks), ranks),
    )


def _of_data(
    folder: Path,
    run: RunSettings,
    extractor: FeatureExtractor,
    data: ImageData,
    what: str,
    ranks: Ranks,
    bad: Report,
    most: int | None = None,
    otherwise: Path | None = None,
) -> np.ndarray:
    return data_features(
        folder,
        extractor,
        data,
        most,
        batch_size=run.batch_size,
        num_workers=run.num_workers,
        what=what,
        quiet=run.quiet,
        bad=bad,
        ranks=ranks,
        otherwise=otherwise,
    )


@dataclass(frozen=True)
class _Decoder:
    """Codes to features, by way of images of 8 bits, which touch the disk with --save_images only."""

    settings: FeatureExperiment
    extractor: FeatureExtractor
    folder: RunFolder
    autoencoder: VQAutoEncoder
    ae_file: Path

    @property
    def amp_dtype(self) -> torch.dtype | None:
        """The decoder's."""
        return pick_amp_dtype(self.extractor.device, self.settings.run.amp, self.settings.run.amp_dtype)

    def features(self, ids: np.ndarray, ranks: Ranks) -> np.ndarray:
        """Of codes [n,N]."""
        run, extractor, size = self.settings.run, self.extractor, asdict(self.settings.autoencoder)
        made_from = (sha256_of(self.ae_file), size, content_key(ids), self.amp_dtype)
        path = self.folder.features / f"{content_key('decoded 2', *made_from, extractor.name, extractor.weights)}.npy"
        if self.settings.generated.save_images:
            self._save(ids, ranks)
        return cached_features(
            path,
            extractor,
            len(ids),
            lambda indices, _: self._images(ids, indices),
            batch_size=run.batch_size,
            what=f"{extractor.name} of generated images",
            quiet=run.quiet,
            ranks=ranks,
        )

    def _images(self, ids: np.ndarray, indices: np.ndarray) -> Iterator[Tensor]:
        """Those of codes [n,N] with some numbers, uint8 [b,3,H,W] each time."""
        size = self.settings.run.batch_size
        for first in range(0, len(indices), size):
            codes = torch.from_numpy(ids[indices[first : first + size]].astype(np.int64)).to(self.extractor.device)
            yield to_uint8(decode_images(self.autoencoder, codes, self.amp_dtype))

    def _save(self, ids: np.ndarray, ranks: Ranks) -> None:
        """Write the images of codes [n,N]."""
        n, run = len(ids), self.settings.run
        own = ((images,) for images in self._images(ids, own_indices(range(n), run.batch_size, ranks)))
        none = torch.empty((0, *self.autoencoder.image_shape), dtype=torch.uint8, device=self.extractor.device)
        files = SampleFiles(self.folder.images, individually=True) if ranks.first else None
        with Progress("writing images", n, "image", quiet=run.quiet) as progress:
            for (images,) in in_order(own, n, run.batch_size, [none], ranks):
                if files:
                    list(files.add(images))
                progress.update(len(images))
        if files:
            list(files.finish())
            say(f"{n} images in {files.where}")
