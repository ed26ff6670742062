"""What a training run is too short for: said in a line at its start, as nothing else would show it."""

from __future__ import annotations

from collections.abc import Iterator

from hparams.settings.stages import PriorStage, VQGANStage
from hparams.settings.training import TrainingSettings

TIME_CONSTANTS = 5  # of its average that a run should last: e⁻⁵ of the start is left then


def notes_on_length(stage: VQGANStage | PriorStage) -> list[str]:
    """A line for whatever takes longer than the whole run. Published settings give none."""
    training = stage.training
    lines = [*_of_average(training)]
    length = f"--train_steps {training.train_steps}"
    if isinstance(stage, VQGANStage) and (start := stage.vqgan.disc_start_step) > training.train_steps:
        lines.append(f"--disc_start_step {start} is beyond {length}: the discriminator never takes part")
    if isinstance(stage, PriorStage) and (warmup := stage.prior.warmup_iters) > training.train_steps:
        lines.append(f"--warmup_iters {warmup} is beyond {length}: the learning rate never reaches --lr")
    return lines


def _of_average(training: TrainingSettings) -> Iterator[str]:
    if not training.ema or training.ema_warmup or training.load_step:  # it starts from trained weights
        return
    constant = round(training.steps_per_update_ema / (1 - training.ema_beta))
    if training.train_steps < TIME_CONSTANTS * constant:
        yield (
            f"--train_steps {training.train_steps} is short for the moving average, which forgets its random start "
            f"over some {TIME_CONSTANTS} times {constant} steps: add --ema_warmup, or lower --ema_beta or "
            "--steps_per_update_ema"
        )
