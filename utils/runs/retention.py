"""Which saved steps stay: files go once a whole newer step makes them useless. Knows names, and no torch."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from hparams.settings.training import TrainingSettings
from utils.machine.files import remove_remains
from utils.runs.run_folder import RunFolder


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


def _delete(files: Iterable[Path]) -> None:
    for file in files:
        with suppress(OSError):
            file.unlink(missing_ok=True)
