"""What is no error, and said in a line: flags that do nothing beside others, and runs too short for what they ask."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from hparams.fields import as_text
from hparams.settings.stages import PriorStage, VQGANStage

TIME_CONSTANTS = 5  # of its average that a run should last: e⁻⁵ of the start is left then


class Condition(NamedTuple):
    """`names` act only where the setting `other` has one of `values`, or one among its own; None: is not given."""

    names: tuple[str, ...]
    other: str
    values: tuple[str | bool | None, ...]


CONDITIONS = (
    Condition(("custom_dataset_path",), "dataset", ("custom",)),
    Condition(("toy_images",), "dataset", ("toy_churches",)),
    Condition(("beta", "beta_term", "codebook_init"), "quantizer", ("nearest",)),
    Condition(("restart_dead_codes", "restart_dead_codes_until"), "quantizer", ("nearest",)),
    Condition(("gumbel_kl_weight", "gumbel_straight_through"), "quantizer", ("gumbel",)),
    Condition(("total_steps", "sample_steps", "sample_type"), "sampler", ("absorbing",)),
    Condition(("loss_type", "mask_schedule", "reweighting"), "sampler", ("absorbing",)),
    Condition(("sample_steps",), "order", ("random",)),
    Condition(("reweighting",), "loss_type", ("reweighted_elbo",)),
    Condition(("ema_beta", "ema_warmup", "steps_per_update_ema"), "ema", (True,)),
    Condition(("amp_dtype",), "amp", (True,)),
    Condition(("visdom_server", "visdom_port", "visdom_base_url"), "sinks", ("visdom",)),
    Condition(("perceptual_weight", "lpips_input"), "perceptual", ("lpips",)),
    *(Condition(("save_images",), given, (None,)) for given in ("fake_images_path", "fake_feats")),
    *(
        Condition(("n_samples", "temp", "sample_steps"), given, (None,))
        for given in ("latents_path", "fake_images_path", "fake_feats")
    ),
)


def idle_flags(typed: Collection[str], settings: Mapping[str, Any]) -> list[str]:
    """A line for each typed flag that does nothing.

    Args:
        typed: the names of the flags.
        settings: the resolved values of the stage's settings, by name.
    """
    return [
        f"--{name} does nothing with {_as_flag(condition.other, settings[condition.other])}"
        for condition in CONDITIONS
        for name in condition.names
        if name in typed and condition.other in settings and not _holds(settings[condition.other], condition.values)
    ]


def _holds(value: Any, values: Collection[Any]) -> bool:
    return any(one in values for one in (value if isinstance(value, tuple) else (value,)))


def _as_flag(name: str, value: Any) -> str:
    return f"--no_{name}" if value is False else f"--{name} {as_text(value)}"


def notes_on_length(stage: VQGANStage | PriorStage) -> list[str]:
    """A line for whatever takes longer than the whole run. Published settings give none."""
    training = stage.training
    lines = []
    # An average that starts from trained weights has nothing to forget.
    if training.ema and not training.ema_warmup and not training.load_step:
        constant = round(training.steps_per_update_ema / (1 - training.ema_beta))
        if training.train_steps < TIME_CONSTANTS * constant:
            lines.append(
                f"--train_steps {training.train_steps} is short for the moving average, which forgets its random start "
                f"over some {TIME_CONSTANTS} times {constant} steps: add --ema_warmup, or lower --ema_beta or "
                "--steps_per_update_ema"
            )
    length = f"--train_steps {training.train_steps}"
    if isinstance(stage, VQGANStage) and (start := stage.vqgan.disc_start_step) > training.train_steps:
        lines.append(f"--disc_start_step {start} is beyond {length}: the discriminator never takes part")
    if isinstance(stage, PriorStage) and (warmup := stage.prior.warmup_iters) > training.train_steps:
        lines.append(f"--warmup_iters {warmup} is beyond {length}: the learning rate never reaches --lr")
    return lines
