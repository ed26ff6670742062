"""The settings of a training loop: how long, how fast, from where, and what it keeps and shows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from hparams.fields import Group, setting

_average = partial(setting, subject="moving average")
_start = partial(setting, subject="starting and resuming")
_shown = partial(setting, subject="logging, validation and pictures")
_checkpoints = partial(setting, subject="checkpoints")


@dataclass(frozen=True)
class TrainingSettings(Group, title="training"):
    lr: float = setting(None, "learning rate of Adam", "rate", above=0, none_means="base_lr * global_batch")
    train_steps: int = setting(
        2_000_000, "updates in all, those before --resume included; lengths are published for churches only", "steps"
    )
    global_batch: int = setting(
        None,
        "images per update; a resumed run keeps it",
        "images",
        none_means="batch_size * accumulate_steps * processes",
    )
    accumulate_steps: int = setting(1, "batches of a process per update; batch-norm sees each apart", "batches")
    compress_gradients: bool = setting(False, "send gradients as bfloat16, half the bytes", subject="several processes")
    ema: bool = _average(False, "keep an exponential moving average of the weights")
    ema_beta: float = _average(0.995, "decay of the moving average", "beta", minimum=0, below=1)
    ema_warmup: bool = _average(False, "after n updates decay by min(ema_beta, (1 + n)/(10 + n)): forgets the start")
    steps_per_update_ema: int = _average(10, "training steps between two updates of the moving average", "steps")
    load_dir: str | None = _start(None, "run of the starting weights, for --load_step", "run", none_means="this run")
    load_step: int = _start(0, "step of the starting weights; 0: start from random weights", "step", minimum=0)
    load_optim: bool = _start(False, "with --load_step, load the optimisers of that step too")
    resume: bool = _start(False, "go on with this run, by its saved settings and the typed flags", saved=False)
    steps_per_log: int = _shown(10, "steps between two log lines", "steps")
    steps_per_eval: int = _shown(0, "steps between validations; 0: none, and of a folder all train", "steps", minimum=0)
    steps_per_checkpoint: int = _checkpoints(25_000, "steps between checkpoints; 0: only the last", "steps", minimum=0)
    keep_states: int = _checkpoints(2, "newest saved steps that keep what --resume needs", "steps")
    keep_checkpoints: str = _checkpoints("all", "newest saved steps that keep their weights, or all", "n")
    max_skipped: int = setting(100, "end after so many updates in a row without finite gradients", "updates")
    steps_per_display_output: int = _shown(
        5_000, "steps between pictures for sinks and in images/; 0: none", "steps", minimum=0
    )
    steps_per_save_output: int = _shown(5_000, "steps between pictures in images/; 0: none", "steps", minimum=0)
    save_individually: bool = _shown(False, "write each image to a file of its own, and as grids only those shown")
    horizontal_flip: bool = setting(False, "train on mirrored images too")
