"""The two trained models of an experiment, with everything they are run with."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from hparams import launch, saved
from hparams.experiments import PriorExperiment
from hparams.settings import PriorStage, RunSettings
from models.autoencoder import VQAutoEncoder
from utils.building import Prior
from utils.checkpoints import noted_autoencoder
from utils.compiling import compile_autoencoder, compile_prior
from utils.devices import autocast, pick_amp_dtype, pick_device, precision_name
from utils.files import sha256_of
from utils.introduction import tell_parameters
from utils.results import Value
from utils.run_folder import VQGAN, RunFolder
from utils.runs import restore_autoencoder, restore_prior


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
    """Load prior and autoencoder of an experiment; a line on stderr says if the prior learnt another one's codes.

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
    if launch.rank() == 0 and (warning := _other_autoencoder(settings, prior_file, ae_file)):
        print(warning, file=sys.stderr)
    compile_prior(prior, run.compile, device)
    if run.compile == "on":  # longer than most decodings take
        compile_autoencoder(autoencoder, run.compile, device)
    amp_dtype = pick_amp_dtype(device, run.amp, run.amp_dtype)
    return TrainedModels(prior, autoencoder, prior_file, ae_file, device, amp_dtype)


def _other_autoencoder(settings: PriorExperiment, prior_file: Path, ae_file: Path) -> str | None:
    """A line if the prior's run notes another autoencoder than is loaded; None if it is the same, or nothing is noted.

    Names are not compared, as runs may have been renamed: a training state notes the checksum of the file, and without
    one the step has to do. It is no error, as the same weights may have been written to another file.
    """
    source, checkpoint, kind = settings.source, settings.checkpoint, settings.prior.sampler
    prior_run, ae_run = RunFolder(str(checkpoint.load_dir)), RunFolder(str(source.ae_load_dir))
    step = ae_run.pick_step(VQGAN, source.ae_load_step)
    learnt = saved.load(prior_run.hparams, PriorStage)
    noted = noted_autoencoder(prior_run.state_file(kind, prior_run.pick_step(kind, checkpoint.load_step)))
    if noted:  # of the average where there is one, also where raw weights are loaded now
        same = noted == sha256_of(ae_run.pick_model_file(VQGAN, step, ema=True))
    else:
        same = learnt.get("ae_load_step") in (None, step)
    if same:
        return None
    name, number = learnt.get("ae_load_dir"), learnt.get("ae_load_step")
    was = f" ({name!r} at step {number}, then)" if name and number else ""
    return (
        f"WARNING: {ae_file} is not the autoencoder whose codes {prior_file} learnt{was}: its codes mean something "
        "else; name that one by --ae_load_dir and --ae_load_step"
    )
