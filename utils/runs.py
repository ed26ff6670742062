"""Trained models from run folders, rebuilt from resolved settings."""

from __future__ import annotations

from pathlib import Path

import torch

from hparams.resolve import LOGS
from hparams.settings import AutoencoderSettings, PriorSettings
from models.autoencoder import VQAutoEncoder
from utils.building import Prior, build_autoencoder, build_prior
from utils.checkpoints import load_into, load_state_dict, part_of
from utils.run_folder import VQGAN, RunFolder

LOGSIGMA = ("generator.logsigma.",)


def restore_autoencoder(
    settings: AutoencoderSettings, log_dir: str, step: int | None, *, ema: bool, device: torch.device, root: Path = LOGS
) -> tuple[VQAutoEncoder, Path]:
    """The autoencoder of a run, frozen, in evaluation mode, and the file that it came from.

    Raises:
        UserError: no such run, step or file, or a file that does not fit the settings.
    """
    folder = RunFolder(log_dir, root)
    path = folder.pick_model_file(VQGAN, folder.pick_step(VQGAN, step, "--ae_load_step"), ema=ema)
    autoencoder = build_autoencoder(settings)
    load_into(autoencoder, part_of(load_state_dict(path), "ae."), path, may_lack=LOGSIGMA)
    return autoencoder.to(device).eval().requires_grad_(False), path


def restore_prior(
    settings: PriorSettings,
    codebook_size: int,
    log_dir: str,
    step: int | None,
    *,
    ema: bool,
    device: torch.device,
    root: Path = LOGS,
) -> tuple[Prior, Path]:
    """The prior of a run, frozen, in evaluation mode, and the file that it came from.

    Raises:
        UserError: no such run, step or file, or a file that does not fit the settings.
    """
    folder = RunFolder(log_dir, root)
    path = folder.pick_model_file(settings.sampler, folder.pick_step(settings.sampler, step, "--load_step"), ema=ema)
    prior = build_prior(settings, codebook_size)
    load_into(prior, load_state_dict(path), path)
    return prior.to(device).eval().requires_grad_(False), path
