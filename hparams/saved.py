"""A run folder's ``hparams.yaml``: every setting of the run as one flat ``name: value``, grouped for the reader."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hparams.errors import UserError
from hparams.fields import Setting, as_text, from_yaml, nearest, settings_of, values_of
from hparams.settings.stages import PriorStage, Stage, VQGANStage

FILE_NAME = "hparams.yaml"
_RETIRED_SWITCHES = {"dashboard": "visdom", "summary": "summary"}  # switches of earlier versions, and the sink of each
_SCRIPTS: dict[type[Stage], str] = {VQGANStage: "train_vqgan.py", PriorStage: "train_sampler.py"}


def to_flat(stage: Stage) -> dict[str, Any]:
    """All settings by name, in plain types (tuples become lists), those of a single call left out."""
    values = values_of(stage)
    kept = ((name, values[name]) for name in _saved_settings(type(stage)))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in kept}


def as_yaml(stage: Stage) -> str:
    """The text of the file."""
    import yaml

    def line(name: str, value: Any) -> str:
        """Lists on one line, as None has those that hold no others."""
        return yaml.safe_dump({name: value}, default_flow_style=None if isinstance(value, list) else False)

    flat, blocks = to_flat(stage), []
    for group in vars(stage).values():
        lines = [line(name, flat[name]) for name in vars(group) if name in flat]
        blocks.append("".join([f"# {group.title}\n", *lines]))
    return f"# {len(flat)} settings\n" + "\n".join(blocks)


def load(path: Path, stage_class: type[Stage]) -> dict[str, Any]:
    """Saved settings by name, or {} where the file is missing (the authors' run folders have none).

    A null where the type does not allow None says nothing, so that the value is derived again.

    Raises:
        UserError: the file cannot be read, holds an unknown name or a value that is not allowed, or is that of a run of
            another stage than `stage_class`.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{place}: is not valid YAML; mend it or delete the file") from error
    except (RecursionError, ValueError) as error:  # ValueError: a date that does not exist
        raise UserError(f"{path}: is not a file of settings; mend it or delete the file") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: should hold one 'name: value' per line")
    count = re.match(r"# (\d+) settings\n", text)
    if count and len(content) < int(count[1]):
        held = f"{len(content)} of {count[1]} settings"
        raise UserError(f"{path}: is cut off, {held} are there; restore it, or correct its first line")
    if count and not text.endswith("\n"):  # and what is there of a value may look whole
        raise UserError(f"{path}: is cut off, or not ended, in its last line: check the value there, and end the line")

    known, values = _saved_settings(stage_class), {}
    if retired := {name: content.pop(name) for name in _RETIRED_SWITCHES if name in content}:
        content["sinks"] = [sink for name, sink in _RETIRED_SWITCHES.items() if retired.get(name, True)]
    for name, value in content.items():
        if name not in known:
            raise UserError(f"{path}: {_unknown(str(name), content, stage_class)}")
        try:
            values[name] = from_yaml(known[name], value)
        except ValueError as error:
            raise UserError(f"{path}: {name}: {error}") from None
    return {name: value for name, value in values.items() if value is not None or known[name].optional}


def describe(stage: Stage) -> str:
    """The settings as aligned text, for terminal and log."""
    width, lines = max(map(len, settings_of(type(stage)))), []
    for group in vars(stage).values():
        lines += [group.title, *(f"  {name:<{width}}  {as_text(value)}" for name, value in vars(group).items())]
    return "\n".join(lines)


def _saved_settings(stage_class: type[Stage]) -> dict[str, Setting]:
    return {name: setting for name, setting in settings_of(stage_class).items() if setting.saved}


def _unknown(name: str, content: dict[Any, Any], stage_class: type[Stage]) -> str:
    for other, script in _SCRIPTS.items():
        if other is not stage_class and content.keys() <= _saved_settings(other).keys():
            wanted = _SCRIPTS.get(stage_class, stage_class.__name__)
            return f"is a run of {script}, but a run of {wanted} is needed here; name that run's folder"
    close = nearest(name, _saved_settings(stage_class))
    return f"unknown setting {name!r}" + (f", did you mean {close!r}?" if close else "; remove it")
