"""Where data sets lie: `datasets.yaml`, or the published code's `datasets.yml`.

Each entry is a data set's name with a `paths` attribute (`path` is read too): one folder, or for LSUN's data sets a
folder for each of `train` and `val`. `~` and environment variables are expanded; relative paths start at the file's own
folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hparams.errors import UserError

# Before Python 3.14, Path's own methods raise where this user may not look.
is_file, is_folder = os.path.isfile, os.path.isdir


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
        if must_exist and not is_folder(folder):
            raise UserError(f"no folder {folder} for {self.dataset}: {self._remedy}")
        return folder

    def lmdb(self, split: str, stem: str) -> Path:
        """The LMDB folder of a split: as given for it, or `<stem>_<split>_lmdb` in (or beside) the one folder.

        UserError: it is not there.
        """
        if isinstance(self.paths, str):
            folder, name = self._resolve(self.paths), f"{stem}_{split}_lmdb"
            candidates = [folder / name, folder.parent / name] if folder.name.endswith("_lmdb") else [folder / name]
        elif split in self.paths:
            candidates = [self._resolve(self.paths[split])]
        else:
            raise UserError(f"no {split} path for {self.dataset}: add it to {self.origin}")
        for candidate in candidates:
            if is_file(candidate / "data.mdb"):
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
    """The entry of a data set in a YAML file; when a `.yaml` is absent, the `.yml` beside it is read.

    `default`: the path when the file or the entry is missing; relative to the file's folder.

    UserError: no such file or entry, or one that cannot be read.
    """
    file = _expand_home(datasets_file)
    if file.name and not is_file(file) and is_file(file.with_suffix(".yml")):
        file = file.with_suffix(".yml")
    if is_file(file):
        origin, missing = f"{dataset} in {file}", f"{file} has no entry {dataset}: add `{dataset}: {{paths: FOLDER}}`"
        entry = _read(file).get(dataset)
    else:
        entry, origin = None, str(datasets_file)
        missing = f"no {origin}, which says where {dataset} lies: create it, or name another with --datasets_file"
    paths = default if entry is None else _paths_of(entry, dataset, file)
    if paths is None:
        raise UserError(missing)
    return DatasetPaths(dataset, paths, file.parent, origin)


def custom_paths(custom_dataset_path: str | Path | None, datasets_file: str | Path) -> DatasetPaths:
    """The folder of `--dataset custom`: the flag's (relative to the working directory), else the file's entry.

    UserError: neither is given.
    """
    if custom_dataset_path:
        return DatasetPaths("custom", str(custom_dataset_path), Path(), "--custom_dataset_path")
    try:
        return find_paths("custom", datasets_file)
    except UserError as error:
        raise UserError(f"--dataset custom needs --custom_dataset_path FOLDER ({error})") from error


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
    by_split = paths.items() if isinstance(paths, Mapping) else [("train", paths)]
    if not paths or not all(split in ("train", "val") and isinstance(path, str) for split, path in by_split):
        raise UserError(f"{file}: `paths` of {dataset} must be a folder, or a folder for each of `train` and `val`")
    return paths
