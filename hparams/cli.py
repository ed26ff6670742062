"""The command line of a stage, made from its settings.

``parse`` reads the flags and resolves them; ``run_script`` runs a script's main and turns the user's mistakes into one
line and exit status 2.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hparams import launch
from hparams.errors import RunError, UserError
from hparams.fields import Setting, as_text, from_text, nearest, settings_of, values_of
from hparams.idle import idle_flags
from hparams.memory import keep_freed_memory
from hparams.output import lasting_output
from hparams.presets import DATASETS, preset
from hparams.resolve import LOGS, default_log_dir, resolve, resolve_plain, resume_after_restart
from hparams.settings.stages import Plain, Stage
from hparams.user import name_nameless_user

PlainT = TypeVar("PlainT", bound=Plain)
StageT = TypeVar("StageT", bound=Stage)

# PyTorch's own words, so that torch need not be imported.
_NO_MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED", "can't allocate memory")
# Words of Python and of the system, which a worker's error passes on.
_NO_THREAD, _NO_FILE = "can't start new thread", os.strerror(errno.EMFILE)
_LET_OTHERS_SPEAK_S = 3.0
_NONE = "none"  # typed for no value, where a flag may have none
# Flags of earlier versions, and what says the same.
_RETIRED = {
    "--dashboard": "--sinks visdom",
    "--no_dashboard": "--sinks summary, or --sinks none",
    "--summary": "--sinks summary",
    "--no_summary": "--sinks visdom, or --sinks none",
    "--summary_only": "--sinks summary",
}
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}
# Errors about paths that the user can mend, and how.
_PATH_FIXES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give this user access to it, or name another folder"),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
        "use another --log_dir, or move what is in the way",
    ),
    errno.ENOENT: "it was moved or deleted while this ran, or was never there",
}


def parse(
    stage_class: type[StageT],
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    description: str,
    example: str,
    logs: Path = LOGS,
) -> StageT:
    """Read a command line and resolve it against presets and saved runs.

    Args:
        stage_class: which script's settings.
        argv: the words after the script's name; by default those of this process.
        prog: the script's name in ``--help``; by default that of this process.
        description: first paragraph of ``--help``.
        example: a whole command, printed at the end of ``--help``.
        logs: the folder that holds the run folders.

    Raises:
        UserError: anything about the flags is wrong; the message names the flag and the fix.
        SystemExit: after ``--help``, with status 0.
    """
    typed = _typed(stage_class, argv, prog, description, example)
    typed = resume_after_restart(stage_class, typed, logs=logs)
    stage = resolve(stage_class, typed, logs=logs, processes=launch.processes())
    note(idle_flags(typed, values_of(stage)), prog)
    return stage


def note(lines: Iterable[str], prog: str | None = None) -> None:
    """Print notes on stderr; of several processes the first alone does."""
    for line in lines if launch.rank() == 0 else ():
        print(f"{prog or Path(sys.argv[0]).name}: note: {line}", file=sys.stderr)


def parse_plain(
    stage_class: type[PlainT],
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    description: str,
    example: str,
) -> PlainT:
    """As `parse`, for a script whose settings no preset and no saved run has a say in."""
    return resolve_plain(stage_class, _typed(stage_class, argv, prog, description, example))


def _typed(
    stage_class: type[Plain], argv: Sequence[str] | None, prog: str | None, description: str, example: str
) -> dict[str, Any]:
    """The flags that were typed, by name, as values of their types."""
    words = sys.argv[1:] if argv is None else list(argv)
    settings = settings_of(stage_class)
    parser = _build_parser(stage_class, prog, description, example)
    if {"-h", "--help"} & set(words):
        parser.parse_args(["--help"])
    _refuse_slips(words, settings)
    typed = vars(parser.parse_args(words))
    return {name: _in_full(settings[name], value) for name, value in typed.items()}


def _in_full(setting: Setting, value: Any) -> Any:
    """A flag's value in its type; of a flag that takes any number of values, `none` alone is no value."""
    if not setting.many:
        return value
    if _NONE in value and len(value) > 1:
        raise UserError(f"{setting.flag}: give {_NONE}, or values, not both")
    return () if value == [_NONE] else tuple(value)


def run_script(main: Callable[[], None]) -> NoReturn:
    """Run a script's main and exit, with one line on stderr if it failed.

    Status 0; 2 for a UserError or a path that the user named and that cannot be used; 1 for a RunError, a disk that
    takes or gives no data, too little memory, or a bug, whose traceback is shown; 130 when interrupted. With
    `--traceback` the traceback of the others is shown above their line.

    Of several processes, the line names the one that failed. Mistakes and bugs mostly fail all processes of a machine
    alike: torchrun ends the others while they wait for the first to say so. What the machine does to one process, that
    process says at once.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # asks to save: where nothing listens, nothing is there to save
    keep_freed_memory()
    name_nameless_user()
    with lasting_output():
        sys.exit(_status_of(main))


def _status_of(main: Callable[[], None]) -> int:
    prefix, together = f"{Path(sys.argv[0]).name}: error: ", False
    try:
        launch.check()
        if together := launch.processes() > 1:
            prefix += f"{launch.described()}: "
        main()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        line = _as_line(error)
        status = 2 if isinstance(error, UserError) or getattr(error, "errno", None) in _PATH_FIXES else 1
        if together and launch.local_rank() and (line is None or status == 2):
            time.sleep(_LET_OTHERS_SPEAK_S)
        if together and line is None:
            print(f"{prefix}{type(error).__name__}", file=sys.stderr)
        if line is None:
            raise
        if _wants_traceback(sys.argv[1:]):
            _print_traceback(error)
        print(f"{prefix}{' '.join(line.split())}", file=sys.stderr)
        return status
    return 0


def _wants_traceback(words: Sequence[str]) -> bool:
    """Whether `--traceback` was typed; not by parsing, which may be what failed."""
    return [word for word in words if word in ("--traceback", "--no_traceback")][-1:] == ["--traceback"]


def _print_traceback(error: Exception) -> None:
    """With the errors that it stands for, which `raise … from None` hides."""
    link: BaseException | None = error
    seen: set[int] = set()
    while link and id(link) not in seen:
        seen.add(id(link))
        link.__suppress_context__ = False
        link = link.__cause__ or link.__context__
    traceback.print_exception(error)


def _as_line(error: Exception) -> str | None:
    """What to say in place of a traceback; None for what only a programmer can mend."""
    if isinstance(error, (UserError, RunError)):
        return str(error)
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return f"{error.filename or 'a file'}: {error.strerror}; what was saved before is whole"
    line = _about_machine(error)
    if line is None and isinstance(error, OSError) and (path := _path_of_the_user(error, sys.argv[1:])):
        fix = _PATH_FIXES.get(error.errno or 0)
        return f"{path}: {error.strerror}{f': {fix}' if fix else '; what was saved before is whole'}"
    return line


def _path_of_the_user(error: OSError, words: Sequence[str]) -> str | None:
    """The path that an error is about, if the user named it: run folders, and what was typed, with all below it."""
    named = [str(LOGS), *(word.partition("=")[2] if word.startswith("-") else word for word in words)]
    for path in (error.filename2, error.filename):  # of a rename, first the name that was to be
        if isinstance(path, str | bytes | os.PathLike):
            text = os.fsdecode(path)
            if any(_lies_in(text, place) for place in named if place):
                return text
    return None


def _lies_in(path: str, place: str) -> bool:
    """Whether a path is a place or below it, by its name or once links are followed."""
    ways: tuple[Callable[[str], str], ...] = (os.path.abspath, os.path.realpath)
    return any(Path(way(path)).is_relative_to(way(place)) for way in ways)


def _about_machine(error: Exception) -> str | None:
    """What the machine lacks; None for anything else."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:  # as when a worker cannot start
        return "out of memory: lower --num_workers or --batch_size"
    text = " ".join(str(error).split())
    if (isinstance(error, OSError) and error.errno == errno.EAGAIN) or _NO_THREAD in text:
        return "no more processes or threads may be started here: lower --num_workers, or raise the limit (ulimit -u)"
    if _NO_FILE in text:
        return "no more files may be opened here: lower --num_workers, or raise the limit (ulimit -n)"
    if isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY):
        return "out of memory: lower --batch_size, or use --amp"
    if isinstance(error, RuntimeError) and (
        death := re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", text)
    ):
        return (
            f"process {death[1]}, which read images, {death[2].partition('. ')[0].rstrip('.')}; too little memory "
            "may be why: lower --num_workers or --batch_size; training goes on from its newest saved step with --resume"
        )
    return None


class _Parser(argparse.ArgumentParser):
    """Reports through UserError instead of printing usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


class _Switch(argparse.Action):
    """``--x`` stores True, ``--no_x`` False."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, option_string == f"--{self.dest}")


def _build_parser(stage_class: type[Plain], prog: str | None, description: str, example: str) -> _Parser:
    parser = _Parser(
        prog=prog,
        usage="%(prog)s [flags]",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    settings = settings_of(stage_class)
    differences = _preset_differences(stage_class)
    if issubclass(stage_class, Stage):
        differences["log_dir"] = {"": default_log_dir(stage_class, "<dataset>", "<sampler>")}
    sections: dict[str, Any] = {}
    for setting in settings.values():
        subject = setting.subject or setting.group_class.title
        if subject not in sections:
            sections[subject] = parser.add_argument_group(subject)
        _add_flag(sections[subject], setting, differences.get(setting.name, {}))
    return parser


def _add_flag(section: Any, setting: Setting, differences: dict[str, Any]) -> None:
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
    section.add_argument(setting.flag, type=_converter(setting), nargs=nargs, metavar=metavar, help=text)


def _converter(setting: Setting) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        if setting.many and setting.allow_empty and text == _NONE:
            return text
        try:
            return from_text(setting, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _preset_differences(stage_class: type[Plain]) -> dict[str, dict[str, Any]]:
    """By setting: under "" the first data set's value, shown as the default, then the others by where they hold."""
    sampler = settings_of(stage_class).get("sampler")
    tables = stage_class.preset_tables
    first = preset(tables, DATASETS[0])
    found: dict[str, dict[str, Any]] = {name: {"": value} for name, value in first.items()}
    for kind in sampler.choices if sampler else ("absorbing",):
        for dataset in DATASETS:
            usual = first if kind == "absorbing" else preset(tables, dataset)
            label = dataset if kind == "absorbing" else f"{kind} {dataset}"
            for name, value in preset(tables, dataset, kind).items():
                if name not in usual or value != usual[name]:
                    found.setdefault(name, {})[label] = value
    return found


def _refuse_slips(words: Sequence[str], settings: dict[str, Setting]) -> None:
    """Raise UserError for what argparse would report without naming the fix.

    These are unknown flags, flags without their value, values of switches, and bare words where no value belongs.
    """
    flags = {setting.flag: setting for setting in settings.values()}
    flags |= {f"--no_{name}": setting for name, setting in settings.items() if setting.kind is bool}
    hungry: Setting | None = None  # the flag before, while it has no value yet
    open_ended = False  # the flag before takes any number of values
    for word in words:
        flag, equals, _ = word.partition("=")
        is_flag = flag.startswith("-") and not _is_number(word)
        if is_flag and hungry:
            break
        if is_flag and flag not in flags and flag in _RETIRED:
            raise UserError(f"unknown flag {flag}: use {_RETIRED[flag]}")
        if is_flag and flag not in flags:
            close = nearest(flag.strip("-"), (name.strip("-") for name in flags))
            raise UserError(f"unknown flag {flag}" + (f", did you mean --{close}?" if close else ": see --help"))
        if is_flag:
            setting = flags[flag]
            if setting.kind is bool and equals:
                raise UserError(f"{flag} takes no value: use --{setting.name} or --no_{setting.name}")
            takes_more = setting.kind is not bool and not equals
            open_ended = takes_more and setting.many
            hungry = setting if takes_more and not setting.allow_empty else None
        elif hungry:
            hungry = None
        elif _as_flag(flag) in flags:
            raise UserError(f"{word!r} is a flag without its dashes, did you mean {_as_flag(flag)}?")
        elif not open_ended:
            raise UserError(f"{word!r} belongs to no flag: see --help")
    if hungry:
        raise UserError(f"{hungry.flag} needs a value: {hungry.allowed}")


def _as_flag(word: str) -> str:
    return "--" + word.strip("-").replace("-", "_")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
