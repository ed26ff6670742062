"""The numbers of an experiment: `results.json`, one entry per set of conditions, and a line to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import inf
from pathlib import Path

from hparams.errors import UserError
from utils.machine.files import locked, make_folder, whole_file

Value = str | int | float | bool | None


def record_result(path: Path, conditions: Mapping[str, Value], values: Mapping[str, Value]) -> str:
    """Add an entry to a results file, in place of an earlier one under the same conditions, and say it in a line.

    path: `results.json` of a run folder, made when missing. conditions: everything that the numbers depend on
    (features, number of images, split, temperature, steps, checkpoints, seed …). values: the numbers, by name.

    Raises:
        UserError: the file holds something else.
        ValueError: a value is not finite: it must not pass for a result.
    """
    make_folder(path.parent)
    with locked(path):
        entries = [entry for entry in read_results(path) if entry["conditions"] != dict(conditions)]
        entries.append({"conditions": dict(conditions), "values": dict(values)})
        with whole_file(path) as file:
            file.write((json.dumps(entries, indent=2, allow_nan=False) + "\n").encode())
    return f"{_listed(values)} ({_listed(conditions)})"


def read_results(path: Path) -> list[dict[str, dict[str, Value]]]:
    """The entries of a results file, oldest first; none where there is no file.

    Raises:
        UserError: the file holds something else.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict)
        and entry.keys() == {"conditions", "values"}
        and all(isinstance(part, dict) and all(map(_is_value, part.values())) for part in entry.values())
        for entry in entries
    ):
        raise UserError(f"{path} is damaged or no results file: move it away, or use another --log_dir")
    return entries


def _is_value(value: object) -> bool:
    return value is None or isinstance(value, str) or (isinstance(value, int | float) and -inf < value < inf)


def _listed(values: Mapping[str, Value]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
        if value is not None
    )
