"""Names and places of run folders: what a name may be, and what may stand in its way."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from hparams.errors import UserError

LOGS = Path("logs")  # the folder that holds the run folders
_LONGEST_NAME = 255  # bytes, of most file systems


def run_folder(flag: str, name: str) -> str:
    """A run's name below ``logs/`` in its shortest spelling; UserError if it is empty or would leave ``logs/``."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or name.startswith("~") or not name.isprintable():
        raise UserError(f"{flag} {name!r}: give a name below logs/, without a leading / and without ..")
    if any(len(part.encode("utf-8", "surrogatepass")) > _LONGEST_NAME for part in path.parts):
        raise UserError(f"{flag} {name[:40]}…: too long, use names of at most {_LONGEST_NAME} bytes")
    return str(path)


def require_run(flag: str, logs: Path, folder: str, by: str = "") -> None:
    """UserError unless the run that a flag names is there; it says what to name instead, and `by` which other flag."""
    if (logs / folder).is_dir():
        return
    require_possible_folder(logs / folder)
    below = folder.removeprefix(f"{logs.name}/")
    if not logs.is_dir():
        fix = f"there is no {logs}/ here, run this in the folder that has it"
    elif below != folder and (logs / below).is_dir():
        fix = f"leave out {logs.name}/, and name {below}{by}"
    else:
        fix = f"name a folder under {logs}/{by}"
    raise UserError(f"{flag}: there is no run folder {logs / folder}; {fix}")


def require_possible_folder(folder: Path) -> None:
    """UserError if a folder, or one above it, is a file, or a link whose target is missing: it cannot be made."""
    for place in (folder, *folder.parents):
        if place.is_file():
            raise UserError(f"{place} is a file, where a folder belongs: move it away")
        if place.is_symlink() and not place.exists():
            target = place.readlink()
            raise UserError(f"{place} is a link to {target}, which is not there: make that folder, or the link anew")


def data_path_of_a_run(name: str, path: str, file: Path, logs: Path) -> None:
    """UserError unless a path that another run's settings `file` gives stays in this folder, and out of ``logs/``.

    In ``logs/`` may lie whatever came with the run; variables and ~ may lead anywhere.
    """
    pure = PurePosixPath(path)
    leaves = pure.is_absolute() or ".." in pure.parts or path.startswith("~") or "$" in path
    if leaves or pure.is_relative_to(logs):
        raise UserError(
            f"{file}: {name} {path!r} is not followed, as it leads out of this folder or into {logs}/: if the data are "
            f"there, say so by --{name}"
        )
