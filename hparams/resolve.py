"""From typed flags to a checked stage: defaults < data set's preset < saved runs < typed flags.

A flag that was not typed never overrides anything. Which saved run feeds what:

- training that goes on: the run's own folder feeds everything but its own name.
- training with ``--load_step``: ``load_dir`` feeds the architecture that it trains and the data set.
- experiments: ``load_dir`` feeds prior, autoencoder, data set and which autoencoder to load.
- ``ae_load_dir`` feeds the autoencoder, and wins over the others there; for an experiment without ``load_dir`` it feeds
  the data set too.

Training goes on where its folder has saved steps: with ``--resume``, or by the same command as before.

A run folder may come from anywhere, so that its file cannot lead out of this folder: runs lie below ``logs/``, and data
that lie elsewhere are read only where a typed flag says so. ``--resume`` alone, which is for one's own runs, takes all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from hparams import checks, folders, same_command, saved
from hparams.derived import derive, divide_batch
from hparams.errors import UserError
from hparams.fields import from_yaml, groups_of, settings_of
from hparams.folders import LOGS
from hparams.presets import ADDED_TO_PRESETS, DATASETS, preset
from hparams.settings.data import DataSettings
from hparams.settings.models import AutoencoderSettings, PriorSettings
from hparams.settings.stages import AutoencoderSource, PriorStage, Stage, VQGANStage

T = TypeVar("T")
StageT = TypeVar("StageT", bound=Stage)

_STARTING_POINT = {"load_dir", "load_step", "load_optim"}
_IMAGE_SIZES = {"img_size", "ch_mult", "latent_shape"}
_AUTOENCODER = {item.name for item in fields(AutoencoderSettings)}
_REBUILT = _AUTOENCODER | {item.name for group in (PriorSettings, AutoencoderSource) for item in fields(group)}
_DATA = {field.name for field in fields(DataSettings)}
_DISCRIMINATOR = {"ndf", "disc_layers"}  # its architecture


def resolve(stage_class: type[T], typed: Mapping[str, Any], *, logs: Path = LOGS, processes: int = 1) -> T:
    """Settle every setting of a script: the stage with every derived value filled in and all checks passed.

    `typed` are the flags by name, with values of the declared types; `logs` holds the run folders; so many `processes`
    run the script together. Where the script is no `Stage`, no preset and no saved run has a say.

    Raises:
        UserError: a required flag is missing, a saved file is not usable, values do not fit together, or training would
            go on with other settings than the run has.
        TypeError: ``typed`` names no setting of the stage.
    """
    if unknown := typed.keys() - settings_of(stage_class).keys():
        raise TypeError(f"{stage_class.__name__} has no setting {', '.join(sorted(unknown))}")
    typed = _with_short_folders(typed)
    if not issubclass(stage_class, Stage):
        return _build(stage_class, typed)
    stage = _resolve(stage_class, typed, logs, processes)
    if isinstance(stage, VQGANStage | PriorStage) and not typed.get("resume") and same_command.has_steps(stage, logs):
        return _going_on(stage_class, typed, logs, stage.run.log_dir, processes)
    return stage


def _resolve(stage_class: type[StageT], typed: Mapping[str, Any], logs: Path, processes: int) -> StageT:
    kept = _saved_values(stage_class, typed, logs)
    chosen = {**kept, **typed}
    values = _with_defaults(stage_class, chosen)
    values["log_dir"] = values["log_dir"] or stage_class.default_log_dir.format_map(values)
    if "resume" in values and values["load_step"] and values["load_dir"] is None:
        values["load_dir"] = values["log_dir"]
    values = _with_short_folders(values)
    if "global_batch" in values:
        divide_batch(values, typed, kept if typed.get("resume") else {}, processes)
    derive(values)
    stage = _build(stage_class, values)
    checks.check(stage)
    folders.require_possible_folder(logs / stage.run.log_dir / "saved_models")
    return stage


def _going_on(stage_class: type[StageT], typed: Mapping[str, Any], logs: Path, log_dir: str, processes: int) -> StageT:
    """The settings of the run in `log_dir`, whose command was started again, on as many processes as there are now."""
    kept = saved.load(logs / log_dir / saved.FILE_NAME, stage_class)
    asked = _resolve(stage_class, typed, logs, same_command.processes_of(kept))
    same_command.require_same(asked, kept, typed, logs / log_dir)
    settled = same_command.SHARES | _STARTING_POINT
    again = {name: value for name, value in typed.items() if name not in settled} | {"log_dir": log_dir, "resume": True}
    global_batch = vars(asked)["training"].global_batch
    if "batch_size" in typed and global_batch % (typed["batch_size"] * processes) == 0:
        again["batch_size"] = typed["batch_size"]  # what fits into memory: fewer processes take more passes
    stage = _resolve(stage_class, again, logs, processes)
    # --resume was not typed: it is set above to have the saved settings read.
    as_typed: Any = {"training": replace(vars(stage)["training"], resume=False)}
    return replace(stage, **as_typed)


def resolve_run(stage_class: type[StageT], folder: Path, given: Mapping[str, Any]) -> StageT:
    """The settings of a finished run, for programs: defaults < preset < the run's saved settings < `given`.

    A `folder` without saved settings counts as one of the published models, which have the same sizes for every data
    set. `given` are settings of either training stage by name, as YAML has them (lists or tuples); those that this
    stage does not have are ignored.

    Raises:
        TypeError: `given` names no setting.
        UserError: the saved file is not usable, or values are not allowed or do not fit together.
    """
    settings = settings_of(stage_class)
    if unknown := given.keys() - settings.keys() - settings_of(VQGANStage).keys() - settings_of(PriorStage).keys():
        raise TypeError(f"no flag is named {', '.join(sorted(unknown))}")
    chosen = saved.load(folder / saved.FILE_NAME, stage_class)
    for name in settings.keys() & given.keys():
        value = given[name]
        try:
            chosen[name] = from_yaml(settings[name], list(value) if isinstance(value, tuple) else value)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
    chosen["dataset"] = chosen.get("dataset") or "churches"
    if chosen.get("block_size"):  # says all that a prior needs to know of the images' size
        chosen = {name: value for name, value in chosen.items() if name not in _IMAGE_SIZES}
    values = _with_defaults(stage_class, chosen)
    derive(values)
    stage = _build(stage_class, values)
    if isinstance(stage, PriorStage):
        checks.heads_fit(stage.prior)
    else:
        checks.autoencoder_fits(vars(stage)["autoencoder"])
    return stage


def _saved_values(stage_class: type[Stage], typed: Mapping[str, Any], logs: Path) -> dict[str, Any]:
    """What saved runs say, the stronger source winning."""
    groups = groups_of(stage_class)
    trains = "training" in groups
    values: dict[str, Any] = {}
    if typed.get("resume"):
        if any(typed.get(name) for name in _STARTING_POINT):
            fix = "leave out --load_dir, --load_step and --load_optim"
            raise UserError(f"--resume continues from this run's newest step: {fix}")
        folder = _own_folder(stage_class, typed)
        folders.require_run("--resume", logs, folder, by=" by --log_dir")
        values = saved.load(logs / folder / saved.FILE_NAME, stage_class)
        if not values and "dataset" not in typed:
            raise UserError(f"--resume: {logs / folder} has no {saved.FILE_NAME}: give all flags of the run again")
        if values:
            values = {name: settings_of(stage_class)[name].default for name in ADDED_TO_PRESETS} | values
        values.pop("log_dir", None)  # the folder may have been renamed since
    elif "checkpoint" in groups and typed.get("load_dir"):
        if not (typed.get("ae_load_dir") and typed.get("dataset")):
            folders.require_run("--load_dir", logs, typed["load_dir"])
        values = _of_other_run(stage_class, typed, logs, typed["load_dir"], PriorStage, _REBUILT | _DATA)
    elif trains and typed.get("load_step"):
        folder = typed.get("load_dir") or _own_folder(stage_class, typed)
        values = _of_other_run(stage_class, typed, logs, folder, stage_class, _REBUILT | _DATA | _DISCRIMINATOR)

    ae_folder = typed.get("ae_load_dir", values.get("ae_load_dir"))
    if ae_folder != values.get("ae_load_dir"):
        values.pop("ae_load_step", None)  # a step of another run
    if ae_folder and "source" in groups:
        ae_folder = folders.run_folder("--ae_load_dir", ae_folder)
        feeds_data = not values and not trains
        if feeds_data and not typed.get("dataset"):
            folders.require_run("--ae_load_dir", logs, ae_folder)
        names = _AUTOENCODER | _DATA if feeds_data else _AUTOENCODER
        values |= _of_other_run(stage_class, typed, logs, ae_folder, VQGANStage, names)
    return values


def _of_other_run(
    stage_class: type[Stage], typed: Mapping[str, Any], logs: Path, folder: str, made_by: type[Stage], names: set[str]
) -> dict[str, Any]:
    """What a run that may come from anywhere says about the settings of these names.

    UserError if it says that the data are somewhere that only a typed flag may lead to.
    """
    file, names = logs / folder / saved.FILE_NAME, names & settings_of(stage_class).keys()
    values = {name: value for name, value in saved.load(file, made_by).items() if name in names}
    chosen = {**values, **typed}
    own = (name for name in _DATA if name.startswith(f"{chosen.get('dataset')}_") and chosen.get(name))
    where = next(own, "datasets_file")
    if stage_class.reads_data and where in values and where not in typed:
        folders.data_path_of_a_run(where, values[where], file, logs)
    return values


def _own_folder(stage_class: type[Stage], typed: Mapping[str, Any]) -> str:
    if "log_dir" in typed:
        return str(typed["log_dir"])
    if "dataset" not in typed:
        raise UserError("--log_dir is required to find the run (or --dataset, for its default name)")
    return stage_class.default_log_dir.format_map(_with_defaults(stage_class, typed))


def _with_defaults(stage_class: type[Stage], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults < the data set's preset < what was chosen."""
    if not chosen.get("dataset"):
        raise UserError(f"--dataset is required: one of {', '.join(DATASETS)}")
    defaults = {name: setting.default for name, setting in settings_of(stage_class).items()}
    return {**defaults, **preset(stage_class.preset_tables, chosen["dataset"]), **chosen}


def _with_short_folders(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the names of run folders in their shortest spelling."""
    named = [name for name in ("log_dir", "load_dir", "ae_load_dir") if values.get(name) is not None]
    return {**values, **{name: folders.run_folder(f"--{name}", values[name]) for name in named}}


def _build(stage_class: type[T], values: Mapping[str, Any]) -> T:
    groups: dict[str, Any] = {group: {} for group in groups_of(stage_class)}
    for name, setting in settings_of(stage_class).items():
        groups[setting.group][name] = values.get(name, setting.default)
    return stage_class(**{name: made(**groups[name]) for name, made in groups_of(stage_class).items()})
