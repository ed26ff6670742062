"""Where data sets lie: `datasets.yaml`, or the published code's `datasets.yml`.

Each entry is a data set's name with a `paths` attribute (`path` is read too): one folder, or for LSUN's data sets a
folder for each of `train` and `val`. `~` and environment variables are expanded; relative paths start at the file's own
folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hparams.errors import UserError


@dataclass(frozen=True)
class DatasetPaths:
    """The paths of one data set, not yet looked at."""

    dataset: str
    paths: str | Mapping[str, str]  # one path, or one for each split
    base: Path  # where relative paths start
    origin: str  # what to correct when nothing is there, for messages

    def folder(self, *, must_exist: bool = True) -> Path:
        """The one folder. UserError: it is not there, or there are several paths."""
        if not isinstance(self.paths, str):
            raise UserError(f"{self.dataset} needs a single folder: correct {self.origin}")
        folder = self._resolve(self.paths)
        if must_exist and not is_there(folder.is_dir):
            raise UserError(f"no folder {folder} for {self.dataset}: {self._remedy}")
        return folder

    def lmdb(self, split: str, stem: str) -> Path:
        """The LMDB folder of a split: as given for it, or `<stem>_<split>_lmdb` in (or beside) the one folder.

        Raises:
            UserError: it is not there.
        """
        if not isinstance(self.paths, str) and split not in self.paths:
            raise UserError(f"no {split} path for {self.dataset}: add it to {self.origin}")
        if isinstance(self.paths, str):
            folder, name = self._resolve(self.paths), f"{stem}_{split}_lmdb"
            candidates = [folder / name, folder.parent / name] if folder.name.endswith("_lmdb") else [folder / name]
        else:
            candidates = [self._resolve(self.paths[split])]
        for candidate in candidates:
            if is_there((candidate / "data.mdb").is_file):
                return candidate
        looked = " or ".join(map(str, candidates))
        raise UserError(f"no {split} LMDB of {self.dataset} at {looked}: {self._remedy}")

    @property
    def _remedy(self) -> str:
        where = "" if self.origin.startswith("--") else 'put it there (README, "Data sets") or '
        return f"{where}correct {self.origin}"

    def _resolve(self, path: str) -> Path:
        return self.base / _expand_home(os.path.expandvars(path))


def find_paths(dataset: str, datasets_file: str | Path, default: str | None = None) -> DatasetPaths:
    """The entry of a data set in the datasets file.

    Args:
        dataset: the entry's name.
        datasets_file: a YAML file. When a `.yaml` is absent, the `.yml` beside it is read.
        default: the path when the file or the entry is missing; relative to the file's folder.

    Raises:
        UserError: no such file or entry, or one that cannot be read.
    """
    file = _expand_home(datasets_file)
    if file.name and not is_there(file.is_file) and is_there(file.with_suffix(".yml").is_file):
        file = file.with_suffix(".yml")
    if is_there(file.is_file):
        entry = _read(file).get(dataset)
        origin, missing = f"{dataset} in {file}", f"{file} has no entry {dataset}: add `{dataset}: {{paths: FOLDER}}`"
    else:
        entry, origin = None, str(datasets_file)
        missing = f"no {origin}, which says where {dataset} lies: create it, or name another with --datasets_file"
    if entry is not None:
        return DatasetPaths(dataset, _paths_of(entry, dataset, file), file.parent, origin)
    if default is None:
        raise UserError(missing)
    return DatasetPaths(dataset, default, file.parent, origin)


def custom_paths(custom_dataset_path: str | Path | None, datasets_file: str | Path) -> DatasetPaths:
    """The folder of `--dataset custom`: the flag's (relative to the working directory), else the file's entry.

    Raises:
        UserError: neither is given.
    """
    if custom_dataset_path:
        return DatasetPaths("custom", str(custom_dataset_path), Path(), "--custom_dataset_path")
    try:
        return find_paths("custom", datasets_file)
    except UserError as error:
        raise UserError(f"--dataset custom needs --custom_dataset_path FOLDER ({error})") from error


def is_there(check: Callable[[], bool]) -> bool:
    """A path's `is_dir` or `is_file`. False, as from Python 3.14 on, also where this user may not look."""
    with suppress(PermissionError):
        return check()
    return False


def _expand_home(path: str | Path) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111 -- Path's raises where nobody has such a home


def _read(file: Path) -> Mapping[str, Any]:
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:  # ValueError: no UTF-8, or no date
        raise UserError(f"cannot read {file} ({' '.join(str(error).split())}): correct it") from None
    if not isinstance(entries, Mapping):
        raise UserError(f"{file} must map names of data sets to their paths, as in `churches: {{paths: data/lsun}}`")
    return entries


def _paths_of(entry: Any, dataset: str, file: Path) -> str | Mapping[str, str]:
    paths = (entry.get("paths") or entry.get("path")) if isinstance(entry, Mapping) else entry
    if isinstance(paths, str) and paths:
        return paths
    if isinstance(paths, Mapping) and paths:
        by_split = {split: path for split, path in paths.items() if split in ("train", "val") and isinstance(path, str)}
        if len(by_split) == len(paths):
            return by_split
    raise UserError(f"{file}: `paths` of {dataset} must be a folder, or a folder for each of `train` and `val`")
