"""The settings of a training loop: how long, how fast, from where, and what it keeps and shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hparams.fields import setting


@dataclass(frozen=True)
class TrainingSettings:
    """The training loop of either stage."""

    title: ClassVar[str] = "training"

    lr: float = setting(None, help="learning rate of Adam", unit="rate", above=0, none_means="base_lr * global_batch")
    train_steps: int = setting(
        2_000_000,
        help="updates in all, those before --resume included; lengths are published for churches only",
        unit="steps",
        minimum=1,
    )
    global_batch: int = setting(
        None,
        help="images per update, over all processes; a resumed run keeps it, whatever their number",
        unit="images",
        minimum=1,
        none_means="batch_size * accumulate_steps * processes",
    )
    accumulate_steps: int = setting(
        1,
        help="batches of each process per update; the same as one large batch, except that stage 1's discriminator "
        "takes batch-norm statistics from each",
        unit="batches",
        minimum=1,
    )
    compress_gradients: bool = setting(
        False, help="send gradients between processes as bfloat16, half the bytes", subject="several processes"
    )
    ema: bool = setting(False, help="keep an exponential moving average of the weights", subject="moving average")
    ema_beta: float = setting(
        0.995, help="decay of the moving average", unit="beta", minimum=0, below=1, subject="moving average"
    )
    ema_warmup: bool = setting(
        False,
        help="let the average's memory grow with its updates n, so that it forgets its start: decay "
        "min(ema_beta, (1 + n)/(10 + n))",
        subject="moving average",
    )
    steps_per_update_ema: int = setting(
        10,
        help="training steps between two updates of the moving average",
        unit="steps",
        minimum=1,
        subject="moving average",
    )
    load_dir: str | None = setting(
        None,
        help="run to take the starting weights from, with --load_step",
        unit="run",
        none_means="this run's own",
        subject="starting and resuming",
    )
    load_step: int = setting(
        0,
        help="step of the starting weights; 0: start from random weights",
        unit="step",
        minimum=0,
        subject="starting and resuming",
    )
    load_optim: bool = setting(
        False, help="with --load_step, load the optimisers of that step too", subject="starting and resuming"
    )
    resume: bool = setting(
        False,
        help="continue this run exactly, from its newest complete step and with its saved settings",
        saved=False,
        subject="starting and resuming",
    )
    steps_per_log: int = setting(
        10, help="steps between two log lines", unit="steps", minimum=1, subject="logging, validation and pictures"
    )
    steps_per_eval: int = setting(
        0,
        help="steps between two validations; 0: no validation, and of a folder all images train",
        unit="steps",
        minimum=0,
        subject="logging, validation and pictures",
    )
    steps_per_checkpoint: int = setting(
        25_000,
        help="steps between two checkpoints; the last step is always saved; 0: only that",
        unit="steps",
        minimum=0,
        subject="checkpoints",
    )
    keep_states: int = setting(
        2,
        help="how many of the newest saved steps keep what --resume needs; older ones keep weights only",
        unit="steps",
        minimum=1,
        subject="checkpoints",
    )
    keep_checkpoints: str = setting(
        "all",
        help="how many of the newest saved steps keep their weights: a number, or all",
        unit="n",
        subject="checkpoints",
    )
    max_skipped: int = setting(
        100, help="end the run after so many updates in a row whose gradients are not finite", unit="updates", minimum=1
    )
    steps_per_display_output: int = setting(
        5_000,
        help="steps between two pictures that sinks show, and that are written as well; 0 for none",
        unit="steps",
        minimum=0,
        subject="logging, validation and pictures",
    )
    steps_per_save_output: int = setting(
        5_000,
        help="steps between two pictures written to images/; 0 for none",
        unit="steps",
        minimum=0,
        subject="logging, validation and pictures",
    )
    save_individually: bool = setting(
        False,
        help="write each image to a file of its own, and as grids only those that sinks show",
        subject="logging, validation and pictures",
    )
    horizontal_flip: bool = setting(False, help="train on mirrored images too")
