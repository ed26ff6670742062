"""Trained models from run folders: for scripts, from resolved settings; for programs, by the run's name alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from hparams import folders, saved
from hparams.errors import UserError
from hparams.fields import settings_of
from hparams.folders import LOGS
from hparams.resolve import resolve_run
from hparams.settings.models import AutoencoderSettings, PriorSettings
from hparams.settings.stages import PriorStage, Stage, VQGANStage
from models.ema import share_of_start, updates_before
from models.prior.prior import Prior
from models.vqgan.autoencoder import VQAutoEncoder
from utils.machine.devices import pick_device
from utils.pretrained.building import build_autoencoder, build_prior
from utils.runs.checkpoints import LOGSIGMA, load_into, load_state_dict
from utils.runs.run_folder import ABSORBING, AE_FLAGS, AUTOREGRESSIVE, VQGAN, RunFolder

_MOST_OF_START = 0.05  # that an average may hold without a word


def load_autoencoder(
    log_dir: str, step: int | None = None, *, ema: bool = True, device: torch.device | str | None = None,
    root: Path | str = LOGS, **settings: Any,
) -> VQAutoEncoder:
    """The autoencoder of a run, frozen, in evaluation mode.

    Its `encode` takes images [B,3,H,W] in [0,1] to ids [B,N] int64, its `decode` ids to images.

    Args:
        log_dir: the run's name below `root`, the folder that holds the run folders.
        step: which step; None for the newest whole one.
        ema: the averaged weights where they exist, else the raw ones; False for the raw ones.
        device: where to put it; None for CUDA when there is one, else the CPU.
        **settings: flags of either training stage by name, over the run's `hparams.yaml`, which is over the preset of
            `dataset`. Those that do not concern the autoencoder are ignored.

    Raises:
        UserError: no such run, step, file or device, or a file that does not fit the settings.
        TypeError: a keyword is no flag.
    """
    folder = RunFolder(folders.run_folder("log_dir", log_dir), Path(root))
    stage, place = resolve_run(VQGANStage, folder.path, settings), pick_device(str(device or "auto"))
    return restore_autoencoder(stage.autoencoder, _file(folder, VQGAN, step, ema=ema), place)


def load_prior(
    log_dir: str, step: int | None = None, *, ema: bool = True, device: torch.device | str | None = None,
    root: Path | str = LOGS, **settings: Any,
) -> Prior:
    """The prior of a run, frozen, in evaluation mode; arguments and errors as for `load_autoencoder`.

    Its `logits` takes ids [B,N] int64 (absorbing: the id K is the mask) to logits [B,N,K]; those of the autoregressive
    prior at place i come from the ids before it. Its `sample` draws ids [n,N] int64. Without `sampler`, the kind is
    that of the run's settings, or of its only files.
    """
    folder = RunFolder(folders.run_folder("log_dir", log_dir), Path(root))
    if "sampler" not in settings and "sampler" not in saved.load(folder.hparams, PriorStage):
        settings["sampler"] = _only_kind(folder)
    stage, place = resolve_run(PriorStage, folder.path, settings), pick_device(str(device or "auto"))
    file = _file(folder, stage.prior.sampler, step, ema=ema)
    return restore_prior(stage.prior, stage.autoencoder.codebook_size, file, place)


def restore_autoencoder(settings: AutoencoderSettings, file: Path, device: torch.device) -> VQAutoEncoder:
    """The autoencoder of a model file, frozen, in evaluation mode. UserError if it does not fit the settings."""
    autoencoder = build_autoencoder(settings)
    load_into(autoencoder, load_state_dict(file), file, may_lack=LOGSIGMA, prefix="ae.", beside=("disc.",))
    return autoencoder.to(device).eval().requires_grad_(False)


def restore_prior(settings: PriorSettings, codebook_size: int, file: Path, device: torch.device) -> Prior:
    """The prior of a model file, frozen, in evaluation mode. UserError if it does not fit the settings."""
    prior = build_prior(settings, codebook_size)
    load_into(prior, load_state_dict(file), file)
    return prior.to(device).eval().requires_grad_(False)


def note_of_average(file: Path) -> str | None:
    """What to say of a model file that a `RunFolder` picked: that its average still holds much of its random start.

    None where it does not, where the file holds no average, and where no settings say how it was made.
    """
    run, kind, step = step_of(file)
    stage_class: type[Stage] = VQGANStage if kind == VQGAN else PriorStage
    defaults = {name: setting.default for name, setting in settings_of(stage_class).items()}
    made_by = defaults | saved.load(run.hparams, stage_class)
    if file != run.model_file(kind, step, ema=True) or not made_by["ema"]:
        return None
    if made_by["load_step"]:  # it began with trained weights
        return None
    updates = updates_before(step, made_by["steps_per_update_ema"])
    share = share_of_start(updates, made_by["ema_beta"], warmup=made_by["ema_warmup"])
    if share < _MOST_OF_START:
        return None
    return f"{share:.0%} of {file} is still the random start of its moving average, as it was trained for too few steps"


def autoencoder_file(log_dir: str | None, step: int | None, *, ema: bool) -> Path:
    """The file that --ae_load_dir and --ae_load_step name. UserError: no such run, step or file."""
    return RunFolder(str(log_dir)).pick(VQGAN, step, AE_FLAGS, ema=ema)[1]


def step_of(file: Path) -> tuple[RunFolder, str, int]:
    """Run folder, kind and step of a model file that a `RunFolder` picked."""
    kind, *_, step = file.stem.split("_")
    return RunFolder(file.parents[1].name, file.parents[2]), kind, int(step)


def _only_kind(folder: RunFolder) -> str:
    kinds = [kind for kind in (ABSORBING, AUTOREGRESSIVE) if folder.model_steps(kind)]
    if len(kinds) == 2:
        raise UserError(f"{folder.path} holds priors of both kinds: say which, by sampler={kinds[0]!r} or {kinds[1]!r}")
    return kinds[0] if kinds else ABSORBING


def _file(folder: RunFolder, kind: str, step: int | None, *, ema: bool) -> Path:
    _, file = folder.pick(kind, step, ("log_dir", "step"), ema=ema)
    if line := note_of_average(file):
        warnings.warn(f"{line}: ema=False takes the raw weights", stacklevel=3)
    return file
