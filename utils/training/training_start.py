"""Where a training run begins. Imports no torch, so that a run without a beginning is refused at once."""

from __future__ import annotations

from pathlib import Path

from hparams import launch, saved
from hparams.errors import UserError
from hparams.resolve import LOGS
from hparams.same_command import begun_from
from hparams.settings.stages import PriorStage, Stage, VQGANStage
from utils.machine.files import sole_writer
from utils.machine.progress import say
from utils.runs.retention import clean_up
from utils.runs.run_folder import KINDS, VQGAN, RunFolder


def own_steps(settings: VQGANStage | PriorStage, kind: str, root: Path = LOGS) -> list[int]:
    """Steps from which this run can go on exactly, in order: those with a training state, made by the run itself."""
    begin = begun_from(settings)
    return [step for step in RunFolder(settings.run.log_dir, root).state_steps(kind) if step > begin]


def first_step(settings: VQGANStage | PriorStage, kind: str, root: Path = LOGS) -> int:
    """Number of updates done before this run's first one.

    A run that has saved steps goes on: `hparams.resolve` refused other settings than it has.

    Raises:
        UserError: nothing to resume or to load, nothing left to do, or a fresh start would write over an earlier run.
    """
    training, folder = settings.training, RunFolder(settings.run.log_dir, root)
    if steps := own_steps(settings, kind, root):
        if steps[-1] > training.train_steps:
            raise UserError(
                f"--train_steps {training.train_steps}: {folder.path} has reached step {steps[-1]} already; "
                "name a later one"
            )
        return steps[-1]
    weights = folder.model_steps(kind)
    # Interrupted before its first step was saved, a run starts again as it did: maybe from weights.
    if training.resume and (weights or not folder.hparams.exists()):
        advice = f"--load_step {weights[-1]} starts from its weights" if weights else "leave out --resume to start"
        raise UserError(f"--resume: {folder.path} holds no saved step to continue from exactly; {advice}")
    if not training.load_step:
        _refuse_occupied(folder, kind)
        return 0
    source = RunFolder(training.load_dir or settings.run.log_dir, root)
    step = source.pick_step(kind, training.load_step)
    if training.load_optim and step not in source.optimiser_steps(kind):
        known = ", ".join(map(str, source.optimiser_steps(kind))) or "none"
        raise UserError(f"--load_optim: {source.path} has no optimiser state of step {step}; steps with one: {known}")
    if source.path != folder.path:
        _refuse_occupied(folder, kind)
    elif weights[-1] > step:
        raise UserError(
            f"--load_step {step}: {folder.path} goes on to step {weights[-1]}, and would be mixed with the new run: "
            "use another --log_dir, and --load_dir for this one"
        )
    done = step + 1 if _is_published(source, kind, step, type(settings)) else step
    if done >= training.train_steps:
        raise UserError(
            f"--train_steps {training.train_steps}: {source.path} has reached step {done} already; name a later one"
        )
    return done


def is_complete(settings: VQGANStage | PriorStage, kind: str, start: int) -> bool:
    """Whether a command was started again that has nothing left to do; says so, and deletes what a kill had left.

    `--resume` on a run that is done checks its files too, as it opens the run.
    """
    if start < settings.training.train_steps or settings.training.resume:
        return False
    folder = RunFolder(settings.run.log_dir)
    if launch.rank() == 0:
        with sole_writer(folder.path):
            clean_up(folder, kind, start, settings.training)
    say(
        f"{folder.path} is complete: {folder.model_file(kind, start).name} is its last step; --resume with a larger "
        "--train_steps goes on"
    )
    return True


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
        if steps := folder.model_steps(kind):
            start = f"--load_step {steps[-1]} to start from its weights, or " if kind == wanted else ""
            article = "a" if kind == VQGAN else "an"
            raise UserError(f"{folder.path} already holds {article} {kind} run: use {start}another --log_dir")
