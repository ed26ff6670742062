"""What is no error, and said in a line: flags that do nothing beside others, and runs too short for what they ask."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from hparams.fields import as_text
from hparams.settings.stages import PriorStage, VQGANStage

# Flags; another setting; the values of that with which alone the flags act (None: it is not given). Where the other
# setting has several values, one of these among them suffices.
CONDITIONS: tuple[tuple[tuple[str, ...], str, tuple[str | bool | None, ...]], ...] = (
    (("custom_dataset_path",), "dataset", ("custom",)),
    (("toy_images",), "dataset", ("toy_churches",)),
    (("beta", "beta_term", "codebook_init"), "quantizer", ("nearest",)),
    (("restart_dead_codes", "restart_dead_codes_until"), "quantizer", ("nearest",)),
    (("gumbel_kl_weight", "gumbel_straight_through"), "quantizer", ("gumbel",)),
    (("total_steps", "sample_steps", "sample_type"), "sampler", ("absorbing",)),
    (("loss_type", "mask_schedule", "reweighting"), "sampler", ("absorbing",)),
    (("sample_steps",), "order", ("random",)),
    (("reweighting",), "loss_type", ("reweighted_elbo",)),
    (("ema_beta", "ema_warmup", "steps_per_update_ema"), "ema", (True,)),
    (("amp_dtype",), "amp", (True,)),
    (("visdom_server", "visdom_port", "visdom_base_url"), "sinks", ("visdom",)),
    (("perceptual_weight", "lpips_input"), "perceptual", ("lpips",)),
    (("n_samples", "temp", "sample_steps"), "latents_path", (None,)),
    (("n_samples", "temp", "sample_steps", "save_images"), "fake_images_path", (None,)),
    (("n_samples", "temp", "sample_steps", "save_images"), "fake_feats", (None,)),
)


def idle_flags(typed: Collection[str], settings: Mapping[str, Any]) -> list[str]:
    """A line for each typed flag that does nothing, given the resolved values of a stage's settings, by name."""
    lines = []
    for names, other, allowed in CONDITIONS:
        value = settings.get(other, allowed[0])
        if not any(one in allowed for one in (value if isinstance(value, tuple) else (value,))):
            with_other = f"--no_{other}" if value is False else f"--{other} {as_text(value)}"
            lines += [f"--{name} does nothing with {with_other}" for name in names if name in typed]
    return lines


def notes_on_length(stage: VQGANStage | PriorStage) -> list[str]:
    """A line for whatever takes longer than the whole run. Published settings give none."""
    training = stage.training
    lines = []
    # An average that starts from trained weights has nothing to forget.
    if training.ema and not training.ema_warmup and not training.load_step:
        constant = round(training.steps_per_update_ema / (1 - training.ema_beta))  # e⁻⁵ of the start is left after five
        if training.train_steps < 5 * constant:
            lines.append(
                f"--train_steps {training.train_steps} is short for the moving average, which forgets its random start "
                f"over some 5 times {constant} steps: add --ema_warmup, or lower --ema_beta or "
                "--steps_per_update_ema"
            )
    length = f"--train_steps {training.train_steps}"
    if isinstance(stage, VQGANStage) and (start := stage.vqgan.disc_start_step) > training.train_steps:
        lines.append(f"--disc_start_step {start} is beyond {length}: the discriminator never takes part")
    if isinstance(stage, PriorStage) and (warmup := stage.prior.warmup_iters) > training.train_steps:
        lines.append(f"--warmup_iters {warmup} is beyond {length}: the learning rate never reaches --lr")
    return lines
