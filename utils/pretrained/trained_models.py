"""The two trained models of an experiment, with everything they are run with."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hparams import launch, saved
from hparams.presets import FOLDERS
from hparams.settings.experiments import PriorExperiment
from hparams.settings.stages import PriorStage, RunSettings, VQGANStage
from models.prior.prior import Prior
from models.vqgan.autoencoder import VQAutoEncoder
from utils.machine.compiling import compile_autoencoder, compile_prior
from utils.machine.devices import autocast, pick_amp_dtype, pick_device, precision_name
from utils.machine.files import sha256_of
from utils.pretrained.loading import note_of_average, restore_autoencoder, restore_prior
from utils.runs.checkpoints import noted_autoencoder
from utils.runs.introduction import tell_parameters
from utils.runs.results import Value
from utils.runs.run_folder import VQGAN, RunFolder


@dataclass(frozen=True)
class TrainedModels:
    """Frozen modules in evaluation mode on `device`; `amp_dtype` is the type for autocast, or None."""

    prior: Prior
    autoencoder: VQAutoEncoder
    prior_file: Path
    ae_file: Path
    device: torch.device
    amp_dtype: torch.dtype | None

    def autocast(self) -> torch.autocast:
        """A block in which the networks run in `amp_dtype`."""
        return autocast(self.device, self.amp_dtype)

    def facts(self) -> dict[str, str]:
        """What they are, for the first lines of a run."""
        return {
            "prior": f"{self.prior_file}, {tell_parameters(self.prior)} parameters",
            "autoencoder": f"{self.ae_file}, {tell_parameters(self.autoencoder)} parameters",
        }

    def conditions(self, run: RunSettings) -> dict[str, Value]:
        """What every number that comes of these models depends on, for `record_result`."""
        return {
            "dataset": run.dataset,
            "prior": str(self.prior_file),
            "autoencoder": str(self.ae_file),
            "dtype": precision_name(self.amp_dtype),
            "seed": run.seed,
        }


def load_trained_models(settings: PriorExperiment) -> TrainedModels:
    """Load prior and autoencoder of an experiment; lines on stderr say what the prior learnt otherwise.

    Raises:
        UserError: no such run, step or file, a file that does not fit the settings, or no such device.
    """
    run, source, checkpoint = settings.run, settings.source, settings.checkpoint
    device = pick_device(run.device)
    ema = checkpoint.ema is not False
    autoencoder, ae_file = restore_autoencoder(
        settings.autoencoder, str(source.ae_load_dir), source.ae_load_step, ema=ema, device=device
    )
    prior, prior_file = restore_prior(
        settings.prior,
        settings.autoencoder.codebook_size,
        str(checkpoint.load_dir),
        checkpoint.load_step,
        ema=ema,
        device=device,
    )
    if launch.rank() == 0:
        for line in _doubts(settings, prior_file, ae_file):
            print(line, file=sys.stderr)
    note_averages(ae_file, prior_file)
    compile_prior(prior, run.compile, device)
    if run.compile == "on":  # longer than most decodings take
        compile_autoencoder(autoencoder, run.compile, device)
    amp_dtype = pick_amp_dtype(device, run.amp, run.amp_dtype)
    return TrainedModels(prior, autoencoder, prior_file, ae_file, device, amp_dtype)


def note_if_seen(settings: PriorExperiment) -> None:
    """Say on stderr if training, as the models' runs note it, did not hold out what is held out of a folder now."""
    run = settings.run
    if run.dataset not in FOLDERS or launch.rank():
        return
    data = {"dataset": run.dataset, "custom_dataset_path": run.custom_dataset_path, "steps_per_eval": 0}
    runs = ((settings.source.ae_load_dir, VQGANStage), (settings.checkpoint.load_dir, PriorStage))
    folders = [(RunFolder(str(name)), stage) for name, stage in runs]
    seen = [str(folder.path) for folder, stage in folders if data.items() <= saved.load(folder.hparams, stage).items()]
    if seen:
        who = " and ".join(seen)
        print(
            f"note: {who} learnt from the images to evaluate, too: training with --steps_per_eval holds them out",
            file=sys.stderr,
        )


def note_averages(*files: Path) -> None:
    """Say on stderr which of some model files hold an average that is still much like its random start."""
    for line in filter(None, map(note_of_average, files)) if launch.rank() == 0 else ():
        print(f"note: {line}: --no_ema takes the raw weights", file=sys.stderr)


def _doubts(settings: PriorExperiment, prior_file: Path, ae_file: Path) -> Iterator[str]:
    """Lines to be said if the prior's run notes another data set or autoencoder. Where nothing is noted, none is."""
    learnt, now = saved.load(RunFolder(str(settings.checkpoint.load_dir)).hparams, PriorStage), settings.run.dataset
    if (then := learnt.get("dataset")) not in (None, now):
        yield f"note: {prior_file} learnt from --dataset {then}, and this is of --dataset {now}"
    if not _is_known(settings, learnt):
        name, number = learnt.get("ae_load_dir"), learnt.get("ae_load_step")
        was = f" ({name!r} at step {number}, then)" if name and number else ""
        yield (
            f"WARNING: {ae_file} is not the autoencoder whose codes {prior_file} learnt{was}: its codes mean something "
            "else; name that one by --ae_load_dir and --ae_load_step"
        )


def _is_known(settings: PriorExperiment, learnt: Mapping[str, Any]) -> bool:
    """Whether the autoencoder is the one that the prior's run notes. learnt: that run's settings.

    Names are not compared, as runs may have been renamed: a training state notes the checksum of the file, and without
    one the step has to do. It is no error, as the same weights may have been written to another file.
    """
    source, checkpoint, kind = settings.source, settings.checkpoint, settings.prior.sampler
    prior_run, ae_run = RunFolder(str(checkpoint.load_dir)), RunFolder(str(source.ae_load_dir))
    step = ae_run.pick_step(VQGAN, source.ae_load_step)
    noted = noted_autoencoder(prior_run.state_file(kind, prior_run.pick_step(kind, checkpoint.load_step)))
    if noted:  # of the average where there is one, also where raw weights are loaded now
        return noted == sha256_of(ae_run.pick_model_file(VQGAN, step, ema=True))
    return learnt.get("ae_load_step") in (None, step)
