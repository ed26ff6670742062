"""What can be found wrong before anything is built: missing checkpoints and files. Imports no torch.

Settles the newest step where none is named: training may save a newer one before the last process loads its own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hparams.errors import UserError
from hparams.settings.experiments import CheckpointSource
from hparams.settings.stages import AutoencoderSource
from utils.runs.run_folder import AE_FLAGS, VQGAN, RunFolder


def check_autoencoder(source: AutoencoderSource, *, ema: bool = True) -> AutoencoderSource:
    """The trained autoencoder and its step; UserError unless its file exists."""
    step, _ = RunFolder(str(source.ae_load_dir)).pick(VQGAN, source.ae_load_step, AE_FLAGS, ema=ema)
    return replace(source, ae_load_step=step)


def check_prior(source: CheckpointSource, sampler: str) -> CheckpointSource:
    """The trained prior and its step; UserError unless its file exists."""
    step, _ = RunFolder(str(source.load_dir)).pick(sampler, source.load_step, ema=source.ema is not False)
    return replace(source, load_step=step)


def check_file(flag: str, path: str | None) -> None:
    """UserError if a file that was named is not there."""
    if path and not Path(path).is_file():
        why = "is a folder: name a file" if Path(path).is_dir() else "there is no such file"
        raise UserError(f"{flag} {path}: {why}")
