"""Where a training run begins. Imports no torch, so that a run without a beginning is refused at once."""

from __future__ import annotations

from pathlib import Path

from hparams import saved
from hparams.errors import UserError
from hparams.resolve import LOGS
from hparams.settings.stages import PriorStage, Stage, VQGANStage
from utils.runs.run_folder import KINDS, VQGAN, RunFolder


def first_step(settings: VQGANStage | PriorStage, kind: str, root: Path = LOGS) -> int:
    """Number of updates done before this run's first one.

    Raises:
        UserError: nothing to resume or to load, nothing left to do, or a fresh start would write over an earlier run.
    """
    training, folder = settings.training, RunFolder(settings.run.log_dir, root)
    steps = folder.state_steps(kind)
    # Interrupted before its first step was saved, it starts again as it did: maybe from weights.
    again = training.resume and not steps and folder.hparams.exists() and not folder.model_steps(kind)
    if training.resume and not again:
        if not steps:
            weights = folder.model_steps(kind)
            advice = f"--load_step {weights[-1]} starts from its weights" if weights else "leave out --resume to start"
            raise UserError(f"--resume: {folder.path} holds no saved step to continue from exactly; {advice}")
        if steps[-1] > training.train_steps:
            raise UserError(
                f"--train_steps {training.train_steps}: {folder.path} has reached step {steps[-1]} already; "
                "name a later one"
            )
        return steps[-1]
    if training.load_step:
        source = RunFolder(training.load_dir or settings.run.log_dir, root)
        step = source.pick_step(kind, training.load_step)
        if training.load_optim and step not in source.optimiser_steps(kind):
            known = ", ".join(map(str, source.optimiser_steps(kind))) or "none"
            raise UserError(
                f"--load_optim: {source.path} has no optimiser state of step {step}; steps with one: {known}"
            )
        if source.path != folder.path:
            _refuse_occupied(folder, kind)
        elif folder.model_steps(kind)[-1] > step:
            raise UserError(
                f"--load_step {step}: {folder.path} goes on to step {folder.model_steps(kind)[-1]}, and would be mixed "
                "with the new run: use another --log_dir, and --load_dir for this one"
            )
        done = step + 1 if _is_published(source, kind, step, type(settings)) else step
        if done >= training.train_steps:
            raise UserError(
                f"--train_steps {training.train_steps}: {source.path} has reached step {done} already; name a later one"
            )
        return done
    _refuse_occupied(folder, kind)
    return 0


def _is_published(folder: RunFolder, kind: str, step: int, stage_class: type[Stage]) -> bool:
    """Whether a step comes from the published code, which counts from 0: its file of step s holds s + 1 updates."""
    if folder.state_file(kind, step).exists():
        return False
    if not folder.hparams.exists() or any(file.exists() for file in folder.optimiser_files(kind, step).values()):
        return True
    settings = saved.load(folder.hparams, stage_class)
    # Settings of a run that went on from this step, in its folder, do not make the step ours.
    return (settings.get("load_step"), settings.get("load_dir")) == (step, folder.name)


def _refuse_occupied(folder: RunFolder, wanted: str) -> None:
    for kind in KINDS:
        steps = folder.model_steps(kind)
        if not steps:
            continue
        advice = "use another --log_dir"
        if kind == wanted:
            whole = bool(folder.state_steps(kind))
            advice = f"use {'--resume' if whole else f'--load_step {steps[-1]}'} to continue it, or another --log_dir"
        article = "a" if kind == VQGAN else "an"
        raise UserError(f"{folder.path} already holds {article} {kind} run: {advice}")
