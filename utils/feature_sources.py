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
from hparams.experiments import FeatureExperiment, PRDCExperiment, PRDCSettings
from hparams.settings import RunSettings
from models.autoencoder import VQAutoEncoder
from utils.bad_images import Report
from utils.building import open_data
from utils.datasets import ImageData, Split, open_folder
from utils.devices import pick_amp_dtype, precision_name
from utils.feature_cache import cached_features, content_key, data_features
from utils.features import FeatureExtractor, build_features
from utils.files import sha256_of
from utils.given_files import read_features, read_latents
from utils.growing_array import growing_array, made_array
from utils.latents import ids_dtype
from utils.pictures import to_uint8
from utils.progress import Progress, say
from utils.results import Value
from utils.run_folder import DATA_FEATURES, RunFolder
from utils.runs import restore_autoencoder
from utils.sample_files import SampleFiles
from utils.sampling import decode_images, id_batches
from utils.trained_models import TrainedModels, load_trained_models


@dataclass(frozen=True)
class FeatureSource:
    """A set of features that is not computed yet.

    Attributes:
        n: how many there will be.
        width: d, numbers in each.
        where: what they are of, for messages.
        conditions: everything that they depend on, by name, for results.
        compute: gives them, [n,d] float32; its argument is told of images that cannot be read.
    """

    n: int
    width: int
    where: str
    conditions: Mapping[str, Value]
    compute: Callable[[Report], np.ndarray]


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
    return FeatureSource(n, width, f"{flag} {path}", {flag.strip("-"): path}, lambda _: features)


def real_source(
    run: RunSettings, extractor: FeatureExtractor, data: ImageData, split: str, most: int | None = None
) -> FeatureSource:
    """The images of a data set, or its first `most`; `split` is what it is called."""
    n = len(data.first(most))
    return FeatureSource(
        n,
        extractor.width,
        f"the {split} split of {data.name}",
        {**extractor.conditions, "dataset": data.name, "split": split, "img_size": data.img_size, "n_real": n},
        lambda bad: _of_data(DATA_FEATURES, run, extractor, data, f"{extractor.name} of real images", bad, most),
    )


def open_split(run: RunSettings, split: Split, img_size: int) -> ImageData:
    """A split to compare with: of a folder, train and val are its first 95% and the rest.

    Raises:
        UserError: the data set cannot be opened.
    """
    return open_data(run, split=split, img_size=img_size, hold_out=split != "all")


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
            {**extractor.conditions, "fake_images": path, "n_fake": len(data)},
            lambda bad: _of_data(folder.features, run, extractor, data, f"{extractor.name} of {path}", bad),
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
                "n_fake": len(ids),
                "autoencoder": str(ae_file),
                "precision": precision_name(pick_amp_dtype(extractor.device, run.amp, run.amp_dtype)),
            },
            lambda _: decoder.features(ids),
        )
    models, sampling = load_trained_models(settings), settings.sampling
    decoder = _Decoder(settings, extractor, folder, models.autoencoder, models.ae_file)
    conditions: dict[str, Value] = {
        **extractor.conditions,
        "n_fake": sampling.n_samples,
        "temp": sampling.temp,
        **({"sample_steps": sampling.sample_steps} if settings.prior.sampler == "absorbing" else {}),
        **({"sample_type": sampling.sample_type} if sampling.sample_type != "diffusion" else {}),
        **models.conditions(run),
    }
    return FeatureSource(
        sampling.n_samples,
        extractor.width,
        "--n_samples",
        conditions,
        lambda _: decoder.features(sampled_ids(folder, models, settings)),
    )


def sampled_ids(folder: RunFolder, models: TrainedModels, settings: FeatureExperiment) -> np.ndarray:
    """`n_samples` ids [n,N] from the prior, mapped from a file in the run folder that is keyed by what makes them.

    An interrupted sampling goes on where it stopped.
    """
    run, sampling = settings.run, settings.sampling
    key = content_key(
        "samples 1", sha256_of(models.prior_file), asdict(settings.prior), asdict(sampling), run.seed, models.amp_dtype
    )
    path = folder.samples / f"{key}.npy"
    ids, _ = made_array(path, lambda: _draw(path, models, settings))
    return ids


def _draw(path: Path, models: TrainedModels, settings: FeatureExperiment) -> None:
    run, sampling, n = settings.run, settings.sampling, settings.sampling.n_samples
    dtype = ids_dtype(settings.autoencoder.codebook_size)
    with growing_array(path, (n, models.prior.tokens), dtype) as rows:
        indices = range(rows.done, n)
        with Progress("sampling", n, "image", done=rows.done, quiet=run.quiet) as progress:
            for ids in id_batches(models.prior, sampling, run, models.amp_dtype, indices):
                rows.values[rows.done : rows.done + len(ids)] = ids.cpu().numpy()
                rows.advance(len(ids))
                progress.update(len(ids))


def _of_data(
    folder: Path,
    run: RunSettings,
    extractor: FeatureExtractor,
    data: ImageData,
    what: str,
    bad: Report,
    most: int | None = None,
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
    )


@dataclass(frozen=True)
class _Decoder:
    """Codes to features, by way of images of 8 bits, which touch the disk with --save_images only."""

    settings: FeatureExperiment
    extractor: FeatureExtractor
    folder: RunFolder
    autoencoder: VQAutoEncoder
    ae_file: Path

    def features(self, ids: np.ndarray) -> np.ndarray:
        """Of codes [n,N]."""
        run, extractor = self.settings.run, self.extractor
        amp_dtype = pick_amp_dtype(extractor.device, run.amp, run.amp_dtype)
        made_from = (sha256_of(self.ae_file), asdict(self.settings.autoencoder), content_key(ids.tobytes()), amp_dtype)
        path = self.folder.features / f"{content_key('decoded 1', *made_from, extractor.name, extractor.weights)}.npy"
        files = None
        if self.settings.generated.save_images:
            path.unlink(missing_ok=True)  # every image is to be seen again
            path.with_suffix(".progress.json").unlink(missing_ok=True)
            files = SampleFiles(self.folder.images, individually=True)

        def batches(start: int, _: Report) -> Iterator[Tensor]:
            for first in range(start, len(ids), run.batch_size):
                part = torch.from_numpy(ids[first : first + run.batch_size].astype(np.int64)).to(extractor.device)
                images = to_uint8(decode_images(self.autoencoder, part, amp_dtype))
                if files:
                    list(files.add(images))
                yield images

        what = f"{extractor.name} of generated images"
        features = cached_features(path, extractor, len(ids), batches, what=what, quiet=run.quiet)
        if files:
            list(files.finish())
            say(f"{len(ids)} images in {files.where}")
        return features
