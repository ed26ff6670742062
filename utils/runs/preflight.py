"""What can be found wrong before anything is built: missing data and checkpoints. Imports no torch.

The newest step, where none is named, is settled here, and is then in the settings: training may save a newer one before
the last process loads its own, and a run folder says what was loaded.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from hparams.checks import image_source
from hparams.errors import UserError
from hparams.settings.experiments import (
    CheckpointSource,
    FeatureExperiment,
    PRDCExperiment,
    PRDCSettings,
    PriorExperiment,
    ReconstructionExperiment,
)
from hparams.settings.stages import AutoencoderSource, RunSettings
from utils.data.datasets import Split, check_images, open_folder
from utils.runs.run_folder import KINDS, VQGAN, RunFolder

_Experiment = TypeVar("_Experiment", bound=PriorExperiment)
_Comparison = TypeVar("_Comparison", bound=FeatureExperiment)


def check_data(run: RunSettings, *, hold_out: bool = True, split: Split | None = None) -> None:
    """UserError unless the data set, or this split of it, can be opened; see `check_images`."""
    check_images(
        run.dataset,
        custom_dataset_path=run.custom_dataset_path,
        datasets_file=run.datasets_file,
        hold_out=hold_out,
        split=split,
    )


def check_autoencoder(source: AutoencoderSource, *, ema: bool = True) -> AutoencoderSource:
    """The trained autoencoder and its step; UserError unless its file exists."""
    folder = RunFolder(str(source.ae_load_dir))
    step = folder.pick_step(VQGAN, source.ae_load_step, ("--ae_load_dir", "--ae_load_step"))
    folder.pick_model_file(VQGAN, step, ema=ema)
    return replace(source, ae_load_step=step)


def check_prior(source: CheckpointSource, sampler: str) -> CheckpointSource:
    """The trained prior and its step; UserError unless its file exists."""
    folder = RunFolder(str(source.load_dir))
    step = folder.pick_step(sampler, source.load_step)
    folder.pick_model_file(sampler, step, ema=source.ema is not False)
    return replace(source, load_step=step)


def check_file(flag: str, path: str | None) -> None:
    """UserError if a file that was named is not there."""
    if path and not Path(path).is_file():
        why = "is a folder: name a file" if Path(path).is_dir() else "there is no such file"
        raise UserError(f"{flag} {path}: {why}")


def check_comparison(settings: _Comparison) -> _Comparison:
    """The settings with the steps of what is loaded.

    Raises:
        UserError: something that a comparison of real and generated images reads is not there.
    """
    source, ema = image_source(settings), settings.checkpoint.ema is not False
    if source == "prior":
        settings = replace(settings, checkpoint=check_prior(settings.checkpoint, settings.prior.sampler))
    if source in ("prior", "latents"):
        settings = replace(settings, source=check_autoencoder(settings.source, ema=ema))
    if source == "images":
        open_folder(Path(str(settings.generated.fake_images_path)), img_size=1, flag="--fake_images_path")
    if not Path(settings.generated.latents_path or ".").is_dir():
        check_file("--latents_path", settings.generated.latents_path)
    files = {"--feature_weights": settings.features.feature_weights}
    prdc = settings.prdc if isinstance(settings, PRDCExperiment) else PRDCSettings()
    for flag, path in (files | {"--real_feats": prdc.real_feats, "--fake_feats": prdc.fake_feats}).items():
        check_file(flag, path)
    if not prdc.real_feats:
        check_data(settings.run, split=settings.real.split)
    check_output(settings.run)
    return settings


def check_reconstruction(settings: ReconstructionExperiment) -> ReconstructionExperiment:
    """The settings with the step of what is loaded; UserError if something that is read is not there."""
    settings = replace(settings, source=check_autoencoder(settings.source, ema=settings.weights.ema is not False))
    check_file("--feature_weights", settings.features.feature_weights)
    check_file("--lpips_weights", settings.reconstruction.lpips_weights)
    check_data(settings.run, split=settings.real.split)
    check_output(settings.run)
    return settings


def check_output(run: RunSettings) -> None:
    """UserError if an experiment would write its settings over those of a training run."""
    folder = RunFolder(run.log_dir)
    if any(folder.model_steps(kind) for kind in KINDS):
        raise UserError(f"--log_dir {run.log_dir}: {folder.path} holds a training run: use another --log_dir")


def check_experiment(settings: _Experiment) -> _Experiment:
    """The settings with the steps of what is loaded.

    Raises:
        UserError: an experiment's trained models do not exist, or its run folder is not free.
    """
    checkpoint = check_prior(settings.checkpoint, settings.prior.sampler)
    source = check_autoencoder(settings.source, ema=checkpoint.ema is not False)
    check_output(settings.run)
    return replace(settings, checkpoint=checkpoint, source=source)
