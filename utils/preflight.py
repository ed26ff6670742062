"""What can be found wrong before anything is built: missing data and checkpoints. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from hparams.checks import image_source
from hparams.errors import UserError
from hparams.experiments import CheckpointSource, FeatureExperiment, PRDCExperiment, PRDCSettings, PriorExperiment
from hparams.settings import AutoencoderSource, RunSettings
from utils.datasets import Split, check_images, open_folder
from utils.run_folder import KINDS, VQGAN, RunFolder


def check_data(run: RunSettings, *, hold_out: bool) -> None:
    """UserError unless the data set can be opened."""
    check_images(
        run.dataset, custom_dataset_path=run.custom_dataset_path, datasets_file=run.datasets_file, hold_out=hold_out
    )


def check_autoencoder(source: AutoencoderSource, *, ema: bool = True) -> int:
    """The step of the trained autoencoder; UserError unless its file exists."""
    folder = RunFolder(str(source.ae_load_dir))
    step = folder.pick_step(VQGAN, source.ae_load_step, ("--ae_load_dir", "--ae_load_step"))
    folder.pick_model_file(VQGAN, step, ema=ema)
    return step


def check_prior(source: CheckpointSource, sampler: str, *, ema: bool) -> None:
    """UserError unless the trained prior's file exists."""
    folder = RunFolder(str(source.load_dir))
    folder.pick_model_file(sampler, folder.pick_step(sampler, source.load_step), ema=ema)


def check_file(flag: str, path: str | None) -> None:
    """UserError if a file that was named is not there."""
    if path and not Path(path).is_file():
        why = "is a folder: name a file" if Path(path).is_dir() else "there is no such file"
        raise UserError(f"{flag} {path}: {why}")


def check_split(run: RunSettings, split: Split) -> None:
    """UserError unless a split of the data set can be opened."""
    check_images(
        run.dataset,
        custom_dataset_path=run.custom_dataset_path,
        datasets_file=run.datasets_file,
        hold_out=True,
        split=split,
    )


def check_comparison(settings: FeatureExperiment) -> None:
    """UserError unless all that a comparison of real and generated images reads is there."""
    source, ema = image_source(settings), settings.checkpoint.ema is not False
    if source == "prior":
        check_prior(settings.checkpoint, settings.prior.sampler, ema=ema)
    if source in ("prior", "latents"):
        check_autoencoder(settings.source, ema=ema)
    if source == "images":
        open_folder(Path(str(settings.generated.fake_images_path)), img_size=1, flag="--fake_images_path")
    files = {"--latents_path": settings.generated.latents_path, "--feature_weights": settings.features.feature_weights}
    prdc = settings.prdc if isinstance(settings, PRDCExperiment) else PRDCSettings()
    for flag, path in (files | {"--real_feats": prdc.real_feats, "--fake_feats": prdc.fake_feats}).items():
        check_file(flag, path)
    if not prdc.real_feats:
        check_split(settings.run, settings.real.split)
    check_output(settings.run)


def check_output(run: RunSettings) -> None:
    """UserError if an experiment would write its settings over those of a training run."""
    folder = RunFolder(run.log_dir)
    if any(folder.model_steps(kind) for kind in KINDS):
        raise UserError(f"--log_dir {run.log_dir}: {folder.path} holds a training run: use another --log_dir")


def check_experiment(settings: PriorExperiment) -> None:
    """UserError unless an experiment's trained models exist and its run folder is free."""
    ema = settings.checkpoint.ema is not False
    check_prior(settings.checkpoint, settings.prior.sampler, ema=ema)
    check_autoencoder(settings.source, ema=ema)
    check_output(settings.run)
