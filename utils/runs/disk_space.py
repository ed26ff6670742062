"""How much disk a training run is going to take, said before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from hparams.errors import UserError
from hparams.settings.training import TrainingSettings
from utils.machine.files import free_space, tell_bytes


def space_notes(
    folder: Path, models: Mapping[bool, nn.Module], training: TrainingSettings, steps_to_do: int
) -> list[str]:
    """A line on what the checkpoints to come take in the end, pictures and codes left aside, and what is free.

    Models are given by whether they are the average. A training state holds Adam's two moments of every weight.

    Raises:
        UserError: not even the next checkpoint fits.
    """
    weights = sum(_bytes(model) for model in models.values())
    state = 2 * sum(parameter.nbytes for parameter in models[False].parameters())
    every = training.steps_per_checkpoint or steps_to_do
    saves = -(-steps_to_do // max(1, every))
    kept = saves if training.keep_checkpoints == "all" else min(saves, int(training.keep_checkpoints))
    # While one more is written, the oldest is still there.
    needed = min(saves, kept + 1) * weights + min(saves, training.keep_states + 1) * state
    free = free_space(folder)
    if steps_to_do > 0 and weights + state > free:
        raise UserError(
            f"{folder}: a checkpoint takes {tell_bytes(weights + state)}, and {tell_bytes(free)} is free: make room"
        )
    line = f"checkpoints to come take {tell_bytes(needed)}, {tell_bytes(free)} is free"
    if needed > free:
        return [f"WARNING: {line}: make room, or use --keep_checkpoints or a larger --steps_per_checkpoint"]
    return [f"{'disk':<12}{line}"]


def _bytes(model: nn.Module) -> int:
    return sum(value.nbytes for value in model.state_dict().values())
