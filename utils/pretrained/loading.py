"""Trained models from run folders: for scripts, from resolved settings; for programs, by the run's name alone."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch

from hparams import folders, saved
from hparams.errors import UserError
from hparams.fields import settings_of
from hparams.resolve import LOGS, resolve_run
from hparams.settings.models import AutoencoderSettings, PriorSettings
from hparams.settings.stages import PriorStage, Stage, VQGANStage
from models.ema import share_of_start, updates_before
from models.prior.prior import Prior
from models.vqgan.autoencoder import VQAutoEncoder
from utils.machine.devices import pick_device
from utils.pretrained.building import build_autoencoder, build_prior
from utils.runs.checkpoints import LOGSIGMA, load_into, load_state_dict
from utils.runs.run_folder import ABSORBING, AUTOREGRESSIVE, KINDS, VQGAN, Flags, RunFolder

_MOST_OF_START = 0.05  # that an average may hold without a word

_ARGUMENTS = ("log_dir", "step")  # what flags are called here


def load_autoencoder(
    log_dir: str,
    step: int | None = None,
    *,
    ema: bool = True,
    device: torch.device | str | None = None,
    root: Path | str = LOGS,
    **settings: Any,
) -> VQAutoEncoder:
    """The autoencoder of a run, frozen, in evaluation mode.

    Its `encode` takes images [B,3,H,W] in [0,1] to ids [B,N] int64, its `decode` ids to images.

    Args:
        log_dir: the run's name below `root`.
        step: which step; None for the newest whole one.
        ema: the averaged weights where they exist, else the raw ones; False for the raw ones.
        device: where to put it; None for CUDA when there is one, else the CPU.
        root: the folder that holds the run folders.
        **settings: flags of either training stage by name, over the run's `hparams.yaml`, which is over the preset of
            `dataset`. Those that do not concern the autoencoder are ignored.

    Raises:
        UserError: no such run, step, file or device, or a file that does not fit the settings.
        TypeError: a keyword is no flag.
    """
    folder = RunFolder(folders.run_folder("log_dir", log_dir), Path(root))
    stage = resolve_run(VQGANStage, folder.path, settings)
    autoencoder, file = restore_autoencoder(
        stage.autoencoder, folder.name, step, ema=ema, device=_device(device), root=Path(root), flags=_ARGUMENTS
    )
    _warn_of_average(file)
    return autoencoder


def load_prior(
    log_dir: str,
    step: int | None = None,
    *,
    ema: bool = True,
    device: torch.device | str | None = None,
    root: Path | str = LOGS,
    **settings: Any,
) -> Prior:
    """The prior of a run, frozen, in evaluation mode; arguments and errors as for `load_autoencoder`.

    Its `logits` takes ids [B,N] int64 (absorbing: the id K is the mask) to logits [B,N,K]; those of the autoregressive
    prior at place i come from the ids before it. Its `sample` draws ids [n,N] int64. Without `sampler`, the kind is
    that of the run's settings, or of its only files.
    """
    folder = RunFolder(folders.run_folder("log_dir", log_dir), Path(root))
    if "sampler" not in settings and "sampler" not in saved.load(folder.hparams, PriorStage):
        settings["sampler"] = _only_kind(folder)
    stage = resolve_run(PriorStage, folder.path, settings)
    prior, file = restore_prior(
        stage.prior,
        stage.autoencoder.codebook_size,
        folder.name,
        step,
        ema=ema,
        device=_device(device),
        root=Path(root),
        flags=_ARGUMENTS,
    )
    _warn_of_average(file)
    return prior


def restore_autoencoder(
    settings: AutoencoderSettings,
    log_dir: str,
    step: int | None,
    *,
    ema: bool,
    device: torch.device,
    root: Path = LOGS,
    flags: Flags = ("--ae_load_dir", "--ae_load_step"),
) -> tuple[VQAutoEncoder, Path]:
    """The autoencoder of a run, frozen, in evaluation mode, and the file that it came from.

    Raises:
        UserError: no such run, step or file, or a file that does not fit the settings; `flags` are for the line.
    """
    folder = RunFolder(log_dir, root)
    path = folder.pick_model_file(VQGAN, folder.pick_step(VQGAN, step, flags), ema=ema)
    autoencoder = build_autoencoder(settings)
    load_into(autoencoder, load_state_dict(path), path, may_lack=LOGSIGMA, prefix="ae.", beside=("disc.",))
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
    flags: Flags = ("--load_dir", "--load_step"),
) -> tuple[Prior, Path]:
    """The prior of a run, frozen, in evaluation mode, and the file that it came from.

    Raises:
        UserError: no such run, step or file, or a file that does not fit the settings; `flags` are for the line.
    """
    folder = RunFolder(log_dir, root)
    path = folder.pick_model_file(settings.sampler, folder.pick_step(settings.sampler, step, flags), ema=ema)
    prior = build_prior(settings, codebook_size)
    load_into(prior, load_state_dict(path), path)
    return prior.to(device).eval().requires_grad_(False), path


def note_of_average(file: Path) -> str | None:
    """What to say of a model file that a `RunFolder` picked: that its average still holds much of its random start.

    None where it does not, where the file holds no average, and where no settings say how it was made.
    """
    name = re.fullmatch(rf"({'|'.join(KINDS)})_ema_(\d+)\.th", file.name)
    if not name:
        return None
    stage_class: type[Stage] = VQGANStage if name[1] == VQGAN else PriorStage
    defaults = {name: setting.default for name, setting in settings_of(stage_class).items()}
    made_by = defaults | saved.load(file.parents[1] / saved.FILE_NAME, stage_class)
    if not made_by["ema"] or made_by["load_step"]:  # then it began with trained weights
        return None
    updates = updates_before(int(name[2]), made_by["steps_per_update_ema"])
    share = share_of_start(updates, made_by["ema_beta"], warmup=made_by["ema_warmup"])
    if share < _MOST_OF_START:
        return None
    return f"{share:.0%} of {file} is still the random start of its moving average, as it was trained for too few steps"


def _only_kind(folder: RunFolder) -> str:
    kinds = [kind for kind in (ABSORBING, AUTOREGRESSIVE) if folder.model_steps(kind)]
    if len(kinds) == 2:
        raise UserError(f"{folder.path} holds priors of both kinds: say which, by sampler={kinds[0]!r} or {kinds[1]!r}")
    return kinds[0] if kinds else ABSORBING


def _warn_of_average(file: Path) -> None:
    if line := note_of_average(file):
        warnings.warn(f"{line}: ema=False takes the raw weights", stacklevel=3)


def _device(device: torch.device | str | None) -> torch.device:
    return pick_device("auto" if device is None else str(device))
