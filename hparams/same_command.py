"""A training command that is started again goes on with its run; one of other settings is refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from hparams import launch
from hparams.errors import UserError
from hparams.fields import Setting, as_text, settings_of, values_of
from hparams.settings.stages import PriorStage, Stage, VQGANStage

SHARES = frozenset({"global_batch", "batch_size", "accumulate_steps"})  # how processes divide an update


def is_of_machine(setting: Setting) -> bool:
    """Whether the processes of one run may differ in a setting, on which no weight depends: devices, what is shown."""
    return setting.name in ("device", "num_workers") or setting.subject == "dashboard and terminal"


def is_place(setting: Setting) -> bool:
    """Whether a setting says where files lie, which is a matter of each machine."""
    return setting.unit in ("file", "folder")


def begun_from(stage: VQGANStage | PriorStage) -> int:
    """The step in a run's own folder whose weights it began from, 0 if there is none: later ones are its own."""
    return stage.training.load_step if stage.training.load_dir == stage.run.log_dir else 0


def has_steps(stage: VQGANStage | PriorStage, logs: Path) -> bool:
    """Whether the folder of a stage holds training states of its own."""
    kind = stage.prior.sampler if isinstance(stage, PriorStage) else "vqgan"
    files = (logs / stage.run.log_dir / "saved_models").glob(f"{kind}_state_*.th")
    steps = (file.stem.rpartition("_")[2] for file in files)
    return any(step.isdecimal() and int(step) > begun_from(stage) for step in steps)


def processes_of(kept: Mapping[str, Any]) -> int:
    """How many processes shared an update of the run whose saved settings are `kept`."""
    if not kept.keys() >= SHARES:
        return 1
    return max(1, kept["global_batch"] // (kept["batch_size"] * kept["accumulate_steps"]))


def require_same(stage: Stage, kept: Mapping[str, Any], typed: Collection[str], folder: Path) -> None:
    """UserError, with the first difference, unless a command asks for the settings of the run in `folder`.

    `stage` is what the command resolves to, divided over as many processes as the run was, whose saved settings are
    `kept`. Flags that were `typed` are named first.
    """
    if not kept:
        raise UserError(f"{folder} has saved steps, and no settings to compare this command's with: add --resume")
    values, settings = values_of(stage), settings_of(type(stage))
    differ = []
    for name in sorted(kept, key=lambda name: name not in typed):
        free = is_of_machine(settings[name]) or (is_place(settings[name]) and launch.processes() > 1)
        newest = name == "ae_load_step" and values[name] is None  # the newest one when the run began
        if name != "log_dir" and not free and not newest and values[name] != kept[name]:
            differ.append(name)
    if differ:
        name, *others = differ
        too = f" ({', '.join(f'--{other}' for other in others)} too)" if others else ""
        raise UserError(
            f"--{name}: the run in {folder} has {as_text(kept[name])}, this command {as_text(values[name])}{too}: "
            "--resume goes on with the run's settings and the flags that are typed, another --log_dir starts anew"
        )
