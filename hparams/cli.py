"""The command line of a stage, made from its settings: `parse` reads the flags and resolves them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hparams import launch
from hparams.errors import UserError
from hparams.fields import Setting, as_text, from_text, nearest, settings_of, values_of
from hparams.folders import LOGS
from hparams.notes import idle_flags
from hparams.presets import DATASETS, preset
from hparams.resolve import resolve
from hparams.settings.stages import Stage

T = TypeVar("T")

_NONE = "none"  # typed for no value, where a flag may have none
# Flags of earlier versions, and what says the same.
_RETIRED_FLAGS = {
    "--dashboard": "--sinks visdom",
    "--no_dashboard": "--sinks summary, or --sinks none",
    "--summary": "--sinks summary",
    "--no_summary": "--sinks visdom, or --sinks none",
    "--summary_only": "--sinks summary",
}


def parse(
    stage_class: type[T],
    argv: list[str] | None = None,
    *,
    prog: str = "",
    description: str,
    example: str,
    logs: Path = LOGS,
) -> T:
    """Read a command line and resolve it, that of a stage against presets and the saved runs in `logs`.

    `argv`, the words after the script's name, and `prog`, that name in ``--help``, are this process's by default.
    ``--help`` begins with `description` and ends with `example`, a whole command.

    Raises:
        UserError: anything about the flags is wrong; the message names the flag and the fix.
        SystemExit: after ``--help``, with status 0.
    """
    words = sys.argv[1:] if argv is None else argv
    settings = settings_of(stage_class)
    parser = _build_parser(stage_class, prog, description, example)
    if {"-h", "--help"} & set(words):
        parser.parse_args(["--help"])
    found, unknown = parser.parse_known_args(words)
    if unknown:
        raise UserError(_slip(unknown[0], settings))
    typed = {name: _in_full(settings[name], value) for name, value in vars(found).items()}
    stage = resolve(stage_class, typed, logs=logs, processes=launch.processes())
    note(idle_flags(typed, values_of(stage)))
    return stage


def note(lines: Iterable[str]) -> None:
    """Print notes on stderr; of several processes the first alone does."""
    for line in lines if launch.rank() == 0 else ():
        print(f"{Path(sys.argv[0]).name}: note: {line}", file=sys.stderr)


def _in_full(setting: Setting, value: Any) -> Any:
    """A flag's value in its type; of a flag that takes any number of values, `none` alone is no value."""
    if not setting.many:
        return value
    if _NONE in value and len(value) > 1:
        raise UserError(f"{setting.flag}: give {_NONE}, or values, not both")
    return () if value == [_NONE] else tuple(value)


class _Parser(argparse.ArgumentParser):
    """Reports through UserError, and names the fix."""

    settings: Mapping[str, Setting] = {}

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        flags, _, what = message.partition(": ")
        if setting := self.settings.get(flags.partition("/")[0].removeprefix("--")):
            if what.startswith("expected"):
                message = f"{setting.flag} needs a value: {setting.allowed}"
            elif what.startswith("ignored explicit argument"):
                message = f"{setting.flag} takes no value: use {setting.flag} or --no_{setting.name}"
        raise UserError(message)


class _Switch(argparse.Action):
    """``--x`` stores True, ``--no_x`` False."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, option_string == f"--{self.dest}")


def _build_parser(stage_class: type, prog: str, description: str, example: str) -> _Parser:
    parser = _Parser(
        prog=prog or None,
        usage="%(prog)s [flags]",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    settings = parser.settings = settings_of(stage_class)
    differences = _preset_differences(stage_class) if issubclass(stage_class, Stage) else {}
    sections: dict[str, Any] = {}
    for setting in settings.values():
        if setting.subject not in sections:
            sections[setting.subject] = parser.add_argument_group(setting.subject)
        _add_flag(sections[setting.subject], setting, differences.get(setting.name, {}), settings)
    return parser


def _add_flag(section: Any, setting: Setting, differences: dict[str, Any], settings: Mapping[str, Setting]) -> None:
    default = differences.get("", setting.default)
    shown = as_text(default) if default is not None else setting.none_means or "none"
    notes = [f"default: {shown}", *(f"{where}: {as_text(value)}" for where, value in differences.items() if where)]
    text = f"{setting.help} ({'; '.join(notes)})".replace("%", "%%")
    if setting.kind is bool:
        section.add_argument(setting.flag, f"--no_{setting.name}", action=_Switch, nargs=0, help=text)
        return
    choices = "{" + ",".join((*setting.choices, *([_NONE] if setting.allow_empty else []))) + "}"
    metavar = choices if setting.choices else (setting.unit or setting.kind.__name__).upper()
    nargs = ("*" if setting.allow_empty else "+") if setting.many else None

    def convert(text: str) -> Any:
        if setting.many and setting.allow_empty and text == _NONE:
            return text
        try:
            return from_text(setting, text)
        except ValueError as error:
            if setting.many and _as_name(text) in _names(settings):  # the next flag, without its dashes
                raise UserError(_slip(text, settings)) from None
            raise argparse.ArgumentTypeError(str(error)) from None

    section.add_argument(setting.flag, type=convert, nargs=nargs, metavar=metavar, help=text)


def _preset_differences(stage_class: type[Stage]) -> dict[str, dict[str, Any]]:
    """By setting: under "" the first data set's value, shown as the default, then the others by data set."""
    first = preset(stage_class.preset_tables, DATASETS[0])
    found: dict[str, dict[str, Any]] = {name: {"": value} for name, value in first.items()}
    for dataset in DATASETS:
        for name, value in preset(stage_class.preset_tables, dataset).items():
            if name not in first or value != first[name]:
                found.setdefault(name, {})[dataset] = value
    log_dir = stage_class.default_log_dir.format(dataset="<dataset>", sampler="<sampler>")
    return found | {"log_dir": {"": log_dir}}


def _slip(word: str, settings: Mapping[str, Setting]) -> str:
    """What to say of a word that is neither a flag nor a flag's value."""
    flag, name = word.partition("=")[0], _as_name(word)
    if flag in _RETIRED_FLAGS:
        return f"unknown flag {flag}: use {_RETIRED_FLAGS[flag]}"
    if flag.startswith("-"):
        close = nearest(flag.strip("-"), _names(settings))
        return f"unknown flag {flag}" + (f", did you mean --{close}?" if close else ": see --help")
    if name in _names(settings):
        return f"{word!r} is a flag without its dashes, did you mean --{name}?"
    return f"{word!r} belongs to no flag: see --help"


def _names(settings: Mapping[str, Setting]) -> list[str]:
    """Of all flags, without their dashes."""
    return [*settings, *(f"no_{name}" for name, setting in settings.items() if setting.kind is bool)]


def _as_name(word: str) -> str:
    return word.partition("=")[0].strip("-").replace("-", "_")
