"""The numbers of an experiment: `results.json`, one entry per set of conditions, and a line to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path

from hparams.errors import UserError
from utils.machine.files import locked, whole_file

Value = str | int | float | bool | None


def record_result(path: Path, conditions: Mapping[str, Value], values: Mapping[str, Value]) -> str:
    """Add an entry to a results file, in place of an earlier one under the same conditions, and say it in a line.

    path: `results.json` of a run folder, made when missing. conditions: everything that the numbers depend on
    (features, number of images, split, temperature, steps, checkpoints, seed …). values: the numbers, by name.
    UserError: the file holds something else. ValueError: a value is not finite, and must not pass for a result.
    """
    with locked(path):
        entries = [entry for entry in read_results(path) if entry["conditions"] != dict(conditions)]
        entries.append({"conditions": dict(conditions), "values": dict(values)})
        with whole_file(path) as file:
            file.write((json.dumps(entries, indent=2, allow_nan=False) + "\n").encode())
    return f"{_listed(values)} ({_listed(conditions)})"


def read_results(path: Path) -> list[dict[str, dict[str, Value]]]:
    """The entries of a results file, oldest first; none where there is no file. UserError: it holds something else."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list) or not all(map(_is_entry, entries)):
        raise UserError(f"{path} is damaged or no results file: move it away, or use another --log_dir")
    return entries


def results_table(path: Path) -> tuple[list[str], list[Sequence[Value]]]:
    """Columns and rows that show a results file: numbers, and conditions that differ; all of them of a single entry."""
    entries = read_results(path)
    if len(entries) == 1:
        named = {**entries[0]["values"], **entries[0]["conditions"]}
        return ["result", ""], [(name.replace("_", " "), value) for name, value in named.items() if value is not None]
    columns: dict[tuple[str, str], list[Value]] = {}  # numbers, then conditions, by name: those of each entry
    for part in ("values", "conditions"):
        for name in dict.fromkeys(name for entry in entries for name in entry[part]):
            column = [entry[part].get(name) for entry in entries]
            if part == "values" or len(set(map(repr, column))) > 1:
                columns[part, name] = column
    return [name.replace("_", " ") for _, name in columns], [list(row) for row in zip(*columns.values(), strict=True)]


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and entry.keys() == {"conditions", "values"}
        and all(isinstance(part, dict) and all(map(_is_value, part.values())) for part in entry.values())
    )


def _is_value(value: object) -> bool:
    return value is None or isinstance(value, str) or (isinstance(value, int | float) and -inf < value < inf)


def _listed(values: Mapping[str, Value]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
        if value is not None
    )
