"""Where a training run begins. Imports no torch, so that a run without a beginning is refused at once."""

from __future__ import annotations

from pathlib import Path

from hparams.errors import UserError
from hparams.resolve import LOGS
from hparams.settings import PriorStage, VQGANStage
from utils.run_folder import KINDS, VQGAN, RunFolder


def first_step(settings: VQGANStage | PriorStage, kind: str, root: Path = LOGS) -> int:
    """Number of updates done before this run's first one.

    Raises:
        UserError: nothing to resume or to load, or a fresh start would write over an earlier run.
    """
    training, folder = settings.training, RunFolder(settings.run.log_dir, root)
    if training.resume:
        steps = folder.state_steps(kind)
        if not steps and folder.hparams.exists() and not folder.model_steps(kind):
            return 0  # begun, but interrupted before its first step was saved
        if not steps:
            raise UserError(
                f"--resume: {folder.path} holds no saved step to continue from; leave out --resume to start"
            )
        if steps[-1] > training.train_steps:
            raise UserError(
                f"--train_steps {training.train_steps}: {folder.path} has reached step {steps[-1]} already; "
                "name a later one"
            )
        return steps[-1]
    if training.load_step:
        source = RunFolder(training.load_dir or settings.run.log_dir, root)
        step = source.pick_step(kind, training.load_step, "--load_step")
        if source.path != folder.path:
            _refuse_occupied(folder)
        elif folder.model_steps(kind)[-1] > step:
            raise UserError(
                f"--load_step {step}: {folder.path} goes on to step {folder.model_steps(kind)[-1]}, and would be mixed "
                "with the new run: use another --log_dir, and --load_dir for this one"
            )
        return step + 1 if _is_published(source, step) else step
    _refuse_occupied(folder)
    return 0


def _is_published(folder: RunFolder, step: int) -> bool:
    """Whether a step comes from the published code, which counts from 0: its file of step s holds s + 1 updates."""
    return not folder.hparams.exists() or any(folder.saved_models.glob(f"*_optim_{step}.th"))


def _refuse_occupied(folder: RunFolder) -> None:
    for kind in KINDS:
        if folder.model_steps(kind):
            article = "a" if kind == VQGAN else "an"
            raise UserError(
                f"{folder.path} already holds {article} {kind} run: use --resume to continue it, or another --log_dir"
            )
