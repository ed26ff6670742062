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
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hparams import checks, folders, same_command, saved
from hparams.derived import derive, divide_batch
from hparams.errors import UserError
from hparams.fields import Setting, from_yaml, groups_of, settings_of
from hparams.presets import ADDED_TO_PRESETS, DATASETS, preset
from hparams.script import LOGS
from hparams.settings.models import AutoencoderSettings, PriorSettings
from hparams.settings.stages import AutoencoderSource, Plain, PriorStage, Stage, VQGANStage

PlainT = TypeVar("PlainT", bound=Plain)
StageT = TypeVar("StageT", bound=Stage)

_STARTING_POINT = frozenset({"load_dir", "load_step", "load_optim"})
_FOLDERS = ("log_dir", "load_dir", "ae_load_dir")
_IMAGE_SIZES = ("img_size", "ch_mult", "latent_shape")
_REBUILT = (PriorSettings, AutoencoderSettings, AutoencoderSource)
_DATA = frozenset({"dataset", "custom_dataset_path", "datasets_file", "toy_images"})
_DISCRIMINATOR = frozenset({"ndf", "disc_layers"})  # its architecture


def resolve(stage_class: type[PlainT], typed: Mapping[str, Any], *, logs: Path = LOGS, processes: int = 1) -> PlainT:
    """Settle every setting of a stage; of one without a data set no preset and no saved run has a say.

    Args:
        stage_class: which script's settings.
        typed: the flags that were typed, by name, with values of the declared types.
        logs: the folder that holds the run folders.
        processes: how many run the script together.

    Returns:
        The stage with every derived value filled in and all checks passed.

    Raises:
        UserError: a required flag is missing, a saved file is not usable, values do not fit together, or training would
            go on with other settings than the run has.
        TypeError: ``typed`` or a preset names no setting of the stage.
    """
    _require_known(typed, stage_class)
    typed = dict(typed)
    _shorten_folders(typed)
    if not issubclass(stage_class, Stage):
        return _build(stage_class, typed)
    stage = _resolve(stage_class, typed, logs, processes)
    if isinstance(stage, VQGANStage | PriorStage) and not typed.get("resume") and same_command.has_steps(stage, logs):
        return _going_on(stage_class, typed, logs, stage.run.log_dir, processes)
    return stage


def _resolve(stage_class: type[StageT], typed: dict[str, Any], logs: Path, processes: int) -> StageT:
    settings = settings_of(stage_class)
    kept = _saved_values(stage_class, typed, logs)
    chosen = {**kept, **typed}
    dataset = _dataset(chosen)
    sampler = _sampler(chosen, settings)

    defaults = {name: setting.default for name, setting in settings.items()}
    values = defaults | preset(stage_class.preset_tables, dataset, sampler) | chosen
    _require_known(values, stage_class)
    if values["log_dir"] is None:
        values["log_dir"] = default_log_dir(stage_class, dataset, sampler)
    if "resume" in values and values["load_step"] and values["load_dir"] is None:
        values["load_dir"] = values["log_dir"]
    _shorten_folders(values)
    if "global_batch" in values:
        divide_batch(values, typed, kept if typed.get("resume") else {}, processes)
    derive(values)

    stage = _build(stage_class, values)
    checks.check(stage)
    folders.require_possible_folder(logs / stage.run.log_dir / "saved_models")
    return stage


def _going_on(stage_class: type[StageT], typed: dict[str, Any], logs: Path, log_dir: str, processes: int) -> StageT:
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
    not_asked_to: Any = {"training": replace(vars(stage)["training"], resume=False)}
    return replace(stage, **not_asked_to)


def resolve_run(stage_class: type[StageT], folder: Path, given: Mapping[str, Any]) -> StageT:
    """The settings of a finished run, for programs: defaults < preset < the run's saved settings < `given`.

    A folder without saved settings counts as one of the published models, which have the same sizes for every data set.

    Args:
        stage_class: the stage that made the run.
        folder: the run folder.
        given: settings of either training stage by name, as YAML has them (lists or tuples); those that this stage
            does not have are ignored.

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
    values = {name: setting.default for name, setting in settings.items()}
    values |= preset(stage_class.preset_tables, chosen["dataset"], _sampler(chosen, settings)) | chosen
    derive(values)
    stage = _build(stage_class, values)
    checks.check_network(stage)
    return stage


def default_log_dir(stage_class: type[Stage], dataset: str, sampler: str = "") -> str:
    """The run folder's name where none was typed."""
    return stage_class.default_log_dir.format(dataset=dataset, sampler=sampler)


def _saved_values(stage_class: type[Stage], typed: dict[str, Any], logs: Path) -> dict[str, Any]:
    """What saved runs say, the stronger source winning."""
    groups, trains = groups_of(stage_class), "training" in groups_of(stage_class)
    values: dict[str, Any] = {}
    if typed.get("resume"):
        if typed.get("load_step") or typed.get("load_dir") or typed.get("load_optim"):
            raise UserError(
                "--resume continues from this run's newest step: leave out --load_dir, --load_step and --load_optim"
            )
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
        values = _of_other_run(logs, typed["load_dir"], PriorStage, stage_class, typed, _REBUILT)
    elif trains and typed.get("load_step"):
        folder = typed.get("load_dir") or _own_folder(stage_class, typed)
        values = _of_other_run(logs, folder, stage_class, stage_class, typed, _REBUILT, _DATA | _DISCRIMINATOR)

    ae_folder = typed.get("ae_load_dir", values.get("ae_load_dir"))
    if ae_folder != values.get("ae_load_dir"):
        values.pop("ae_load_step", None)  # a step of another run
    if ae_folder and "source" in groups:
        ae_folder = folders.run_folder("--ae_load_dir", ae_folder)
        names = frozenset() if values or trains else _DATA
        if names and not typed.get("dataset"):
            folders.require_run("--ae_load_dir", logs, ae_folder)
        values |= _of_other_run(logs, ae_folder, VQGANStage, stage_class, typed, (AutoencoderSettings,), names)
    return values


def _of_other_run(
    logs: Path,
    folder: str,
    made_by: type[Stage],
    stage_class: type[Stage],
    typed: Mapping[str, Any],
    groups: tuple[type, ...],
    names: frozenset[str] = _DATA,
) -> dict[str, Any]:
    """What a run that may come from anywhere says about the settings of `groups`, and about others by their `names`.

    Raises:
        UserError: it says that the data are somewhere that only a typed flag may lead to.
    """
    settings, file = settings_of(stage_class), logs / folder / saved.FILE_NAME
    values = {
        name: value
        for name, value in saved.load(file, made_by).items()
        if name in settings and (settings[name].group_class in groups or name in names)
    }
    chosen = {**values, **typed}
    custom = chosen.get("dataset") == "custom" and chosen.get("custom_dataset_path")
    where = "custom_dataset_path" if custom else "datasets_file"
    if stage_class.reads_data and where in values and where not in typed:
        folders.data_path_of_a_run(where, values[where], file, logs)
    return values


def _own_folder(stage_class: type[Stage], typed: dict[str, Any]) -> str:
    if "log_dir" in typed:
        return str(typed["log_dir"])
    if "dataset" not in typed:
        raise UserError("--log_dir is required to find the run (or --dataset, for its default name)")
    return default_log_dir(stage_class, _dataset(typed), _sampler(typed, settings_of(stage_class)))


def _require_known(values: Mapping[str, Any], stage_class: type[Plain]) -> None:
    if unknown := values.keys() - settings_of(stage_class).keys():
        raise TypeError(f"{stage_class.__name__} has no setting {', '.join(sorted(unknown))}")


def _dataset(chosen: Mapping[str, Any]) -> str:
    if not chosen.get("dataset"):
        raise UserError(f"--dataset is required: one of {', '.join(DATASETS)}")
    return str(chosen["dataset"])


def _sampler(chosen: Mapping[str, Any], settings: Mapping[str, Setting]) -> str:
    """The kind of prior, "" in a stage without one."""
    return str(chosen.get("sampler", settings["sampler"].default if "sampler" in settings else ""))


def _shorten_folders(values: dict[str, Any]) -> None:
    for name in _FOLDERS:
        if values.get(name) is not None:
            values[name] = folders.run_folder(f"--{name}", values[name])


def _build(stage_class: type[PlainT], values: Mapping[str, Any]) -> PlainT:
    groups: dict[str, dict[str, Any]] = {group: {} for group in groups_of(stage_class)}
    for name, setting in settings_of(stage_class).items():
        groups[setting.group][name] = values.get(name, setting.default)
    return stage_class(**{group: group_class(**groups[group]) for group, group_class in groups_of(stage_class).items()})
