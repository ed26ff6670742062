"""Which saved steps stay, as a whole newer one makes older files useless, and the disk they take. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hparams.errors import UserError
from hparams.settings.training import TrainingSettings
from utils.machine.files import free_space, remove_remains, tell_bytes
from utils.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import nn


def clean_up(folder: RunFolder, kind: str, done: int, training: TrainingSettings) -> None:
    """After step `done` was saved whole: delete older training states, unfinished steps, and remains of writing.

    Weights go only where `keep_checkpoints` is a number. Newer steps than `done` (those that the run could not resume
    from, when they are damaged) neither count nor go. What cannot be deleted is left for the next time.
    """
    weights = None if training.keep_checkpoints == "all" else int(training.keep_checkpoints)
    states = training.keep_states if weights is None else min(training.keep_states, weights)
    whole = [step for step in folder.state_steps(kind) if step <= done]
    old = [step for step in folder.unfinished_steps(kind) if step < done]
    if weights is not None:
        own = [step for step in folder.model_steps(kind) if training.load_step < step <= done]
        old += [step for step in own[:-weights] if step not in whole[-states:]]
    # A mark that outlived its saving goes before the state that tells so.
    _delete(folder.saving_mark(kind, step) for step in whole)
    _delete(folder.state_file(kind, step) for step in whole[:-states])
    for step in old:
        drop_weights(folder, kind, step)
    remove_remains(folder.saved_models)
    remove_remains(folder.images)


def drop_weights(folder: RunFolder, kind: str, step: int) -> None:
    """Delete the files of a step that has no state; the mark of an unfinished one goes last."""
    _delete([*(folder.model_file(kind, step, ema=ema) for ema in (False, True)), folder.saving_mark(kind, step)])


def space_note(folder: Path, models: Mapping[bool, nn.Module], training: TrainingSettings, steps_to_do: int) -> str:
    """A line on what the checkpoints to come take in the end, pictures and codes left aside, and what is free.

    Models are given by whether they are the average. A training state holds Adam's two moments of every weight.
    UserError: not even the next checkpoint fits.
    """
    weights = sum(value.nbytes for model in models.values() for value in model.state_dict().values())
    state = 2 * sum(parameter.nbytes for parameter in models[False].parameters())
    every = training.steps_per_checkpoint or steps_to_do
    saves = -(-steps_to_do // max(1, every))
    kept = saves if training.keep_checkpoints == "all" else min(saves, int(training.keep_checkpoints))
    # While one more is written, the oldest is still there.
    needed = min(saves, kept + 1) * weights + min(saves, training.keep_states + 1) * state
    free = free_space(folder)
    if steps_to_do > 0 and weights + state > free:
        takes = f"a checkpoint takes {tell_bytes(weights + state)}"
        raise UserError(f"{folder}: {takes}, and {tell_bytes(free)} is free: make room")
    line = f"checkpoints to come take {tell_bytes(needed)}, {tell_bytes(free)} is free"
    advice = "make room, or use --keep_checkpoints or a larger --steps_per_checkpoint"
    return f"WARNING: {line}: {advice}" if needed > free else f"{'disk':<12}{line}"


def _delete(files: Iterable[Path]) -> None:
    for file in files:
        with suppress(OSError):
            file.unlink(missing_ok=True)
