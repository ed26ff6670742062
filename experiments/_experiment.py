"""What every experiment does around its own work: read and check its settings, `--dry_run`, a job.

A check finds what is missing before torch is imported, and fills in the newest steps, which training may change later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hparams.checks import image_source
from hparams.cli import parse
from hparams.errors import UserError
from hparams.saved import describe
from hparams.settings.experiments import (
    FeatureExperiment,
    PRDCExperiment,
    PRDCSettings,
    PriorExperiment,
    ReconstructionExperiment,
)  # fmt: skip
from hparams.settings.stages import Stage
from utils.data.datasets import check_images, open_folder
from utils.runs.preflight import check_autoencoder, check_file, check_prior
from utils.runs.run_folder import KINDS, RunFolder

if TYPE_CHECKING:
    from utils.runs.job import Job

StageT = TypeVar("StageT", bound=Stage)
PriorT = TypeVar("PriorT", bound=PriorExperiment)
FeatureT = TypeVar("FeatureT", bound=FeatureExperiment)


def experiment(
    stage_class: type[StageT], work: Callable[[Job, StageT], None], *,
    description: str | None, example: str, check: Callable[[StageT], StageT],
) -> Callable[[], None]:
    """The main function of a script: `work` with settings of a stage; description and example are for `--help`.

    check: finds, before torch is imported, what is missing, and fills in the newest steps.
    """

    def main() -> None:
        settings = check(parse(stage_class, description=description or "", example=example))
        folder = RunFolder(settings.run.log_dir)
        if any(folder.model_steps(kind) for kind in KINDS):  # the settings of one would be written over
            raise UserError(f"--log_dir {folder.name}: {folder.path} holds a training run: use another --log_dir")
        if settings.run.dry_run:
            print(describe(settings))
            return
        # Imported late, so that --help and a refused flag need not wait for torch.
        from utils.reporting.sinks import open_sinks
        from utils.runs.job import open_job

        with open_job(settings, open_sinks) as job:
            work(job, settings)

    return main


def check_experiment(settings: PriorT) -> PriorT:
    """UserError: the trained prior or its autoencoder does not exist."""
    checkpoint = check_prior(settings.checkpoint, settings.prior.sampler)
    source = check_autoencoder(settings.source, ema=checkpoint.ema is not False)
    return replace(settings, checkpoint=checkpoint, source=source)


def check_comparison(settings: FeatureT) -> FeatureT:
    """UserError: something that a comparison of real and generated images reads is not there."""
    kind, generated = image_source(settings), settings.generated
    if kind == "prior":
        settings = check_experiment(settings)
    if kind == "latents":
        source = check_autoencoder(settings.source, ema=settings.checkpoint.ema is not False)
        settings = replace(settings, source=source)
    if kind == "images":
        open_folder(Path(str(generated.fake_images_path)), img_size=1, flag="--fake_images_path")
    if not Path(generated.latents_path or ".").is_dir():
        check_file("--latents_path", generated.latents_path)
    prdc = settings.prdc if isinstance(settings, PRDCExperiment) else PRDCSettings()
    check_file("--feature_weights", settings.features.feature_weights)
    check_file("--real_feats", prdc.real_feats)
    check_file("--fake_feats", prdc.fake_feats)
    if not prdc.real_feats:
        check_images(settings.run, split=settings.real.split)
    return settings


def check_reconstruction(settings: ReconstructionExperiment) -> ReconstructionExperiment:
    """UserError: something that reconstructing and comparing images reads is not there."""
    settings = replace(settings, source=check_autoencoder(settings.source, ema=settings.weights.ema is not False))
    check_file("--feature_weights", settings.features.feature_weights)
    check_file("--lpips_weights", settings.reconstruction.lpips_weights)
    check_images(settings.run, split=settings.real.split)
    return settings


def command(script: str, log_dir: str, *more: str, dataset: str = "churches") -> str:
    """An example: a script on the published models of a data set."""
    ae, prior = f"vqgan_{dataset} --ae_load_step 2200000", f"absorbing_{dataset} --load_step 2000000"
    words = f"--sampler absorbing --dataset {dataset} --log_dir {log_dir} --ae_load_dir {ae} --load_dir {prior} --ema"
    return " ".join([f"python experiments/{script} {words}", *more])
