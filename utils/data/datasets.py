"""Data sets by name: LSUN's LMDBs, folders of images, and the embedded toy churches, behind one `ImageData`.

`datasets.yaml`, or the published code's `datasets.yml`, says where they lie. Each entry is a data set's name with a
`paths` attribute (`path` is read too): one folder, or for LSUN's data sets a folder for each of `train` and `val`. `~`
and environment variables are expanded; relative paths start at the file's own folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from hparams.errors import UserError
from hparams.presets import DATASETS
from hparams.settings.data import DataSettings
from utils.data.image_folders import IMAGE_SUFFIXES, FolderImages
from utils.data.images import decode_rgb, resize_and_crop
from utils.data.lmdb_images import LMDBImages
from utils.data.toy_churches import write_toy_churches

Split = Literal["train", "val", "all"]
_LMDB_STEMS = {"churches": "church_outdoor", "bedrooms": "bedroom"}

# Before Python 3.14, Path's own methods raise where this user may not look.
is_file, is_folder = os.path.isfile, os.path.isdir


class ImageData:
    """Images of one split, decoded, resized and cropped on access. Can be pickled and read in several processes.

    `store` holds encoded images; another kind of store has the methods that `FolderImages` and `LMDBImages` share, and
    is opened in `_open_split`. `part`: which of its images these are; `img_size`: their side S in pixels.
    """

    def __init__(self, name: str, store: FolderImages | LMDBImages, img_size: int, part: range) -> None:
        self.name, self.img_size = name, img_size
        self._store, self._part = store, part

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i: uint8 [3, S, S], values 0..255.

        BadImageError: the file or the LMDB's value is no readable image; UserError: the LMDB is damaged; OSError: the
        file system does not give it, which may pass.
        """
        name = self.source(i)
        return resize_and_crop(decode_rgb(self._store.read(self._part[i]), name), self.img_size, name)

    def first(self, n: int | None) -> ImageData:
        """The first n images alone; all of them where n is None or there are no more."""
        return ImageData(self.name, self._store, self.img_size, self._part[:n])

    def source(self, i: int) -> str:
        """Where image i comes from: its file, or its LMDB and key."""
        return self._store.source(self._part[i])

    def in_reach(self, i: int) -> bool:
        """Whether the place of image i can be read now: a network disk may be away for a while."""
        return self._store.in_reach(self._part[i])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of S and of the files behind the images: paths, sizes, times of change; LMDBs: number of entries too."""
        lines = (self.name, str(self.img_size), *self._store.identity(self._part))
        return hashlib.sha256("".join(f"{line}\0" for line in lines).encode("utf-8", "surrogateescape")).hexdigest()

    @cached_property
    def listing(self) -> str:
        """Hash of the images' names and sizes in bytes, in order (of an LMDB: its keys, and pages of large values).

        Copies of a data set have equal ones, wherever they lie and whenever they were made. UserError: a damaged LMDB,
        whose keys are listed for this.
        """
        return hashlib.sha256(b"".join(self._store.listing(self._part))).hexdigest()


def open_images(data: DataSettings, *, split: Split, img_size: int, hold_out: bool, seed: int = 0) -> ImageData:
    """Opens one split of a data set. Cheap: nothing is decoded (but toy churches are drawn at their first use).

    Args:
        split: LSUN and toy churches have an LMDB each for train and val, and "all" is the training one, which is what
            the published FID compares with. Of a folder "all" is every image.
        hold_out: folders only. Train on the first 95% and validate on the rest; otherwise train on all.
        seed: of the scenes of toy_churches, whatever the run's. A tenth as many as train, at least 64, validate.

    UserError: unknown data set, no entry, nothing at its path, an empty folder, or a damaged LMDB. ValueError: the val
    split of a folder of which nothing is held out.
    """
    dataset, toy_images = data.dataset, data.toy_images
    if dataset not in DATASETS:
        raise UserError(f"no data set {dataset!r}: --dataset is one of {', '.join(DATASETS)}")
    lmdb_split = "val" if split == "val" else "train"
    if dataset in _LMDB_STEMS:
        images = LMDBImages(find_paths(dataset, data.datasets_file).lmdb(lmdb_split, _LMDB_STEMS[dataset]))
    elif dataset == "toy_churches":
        folder = _toy_folder(data.datasets_file) / f"{img_size}px_{toy_images}_{seed}"
        val_images = max(64, toy_images // 10)
        write_toy_churches(folder, size=img_size, train_images=toy_images, val_images=val_images, seed=seed)
        images = LMDBImages(folder / f"toy_churches_{lmdb_split}_lmdb")
    else:
        paths = custom_paths(data) if dataset == "custom" else find_paths(dataset, data.datasets_file)
        return _open_split(dataset, paths, split, img_size, hold_out)
    return ImageData(dataset, images, img_size, range(len(images)))


def open_folder(folder: Path, *, img_size: int, flag: str) -> ImageData:
    """All images of a folder, as a data set. UserError: no such folder, or no images in it; correct `flag`."""
    return _open_split("images", DatasetPaths("images", str(folder), Path(), flag), "all", img_size, hold_out=False)


def check_images(data: DataSettings, *, hold_out: bool = True, split: Split | None = None) -> None:
    """Raises what `open_images` would for `split`, else for train, and for val when held out. Writes nothing."""
    splits: tuple[Split, ...] = (split,) if split else ("train", "val") if hold_out else ("train",)
    if data.dataset == "toy_churches":
        _toy_folder(data.datasets_file)
        return
    for each in splits:
        open_images(data, split=each, img_size=1, hold_out=hold_out)


def _toy_folder(datasets_file: str | Path) -> Path:
    return find_paths("toy_churches", datasets_file, default="data/toy_churches").folder(must_exist=False)


def _open_split(name: str, paths: DatasetPaths, split: Split, img_size: int, hold_out: bool) -> ImageData:
    """A split of a folder of images, or of the LMDB that `utils.data.pack_images` made of one."""
    folder = paths.folder()
    store = LMDBImages(folder) if is_file(folder / "data.mdb") else FolderImages(folder)
    if (n := len(store)) == 0:
        looked = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"no images in {folder} (looked for {looked}): correct {paths.origin}")
    if split == "val" and not hold_out:
        raise ValueError("nothing of a folder is held out: its val split is empty")
    part, train = range(n), n * 95 // 100
    if split != "all" and hold_out:
        if train == 0:
            raise UserError(f"{folder} holds one image, too few to hold out a part: add some or correct {paths.origin}")
        part = part[:train] if split == "train" else part[train:]
    return ImageData(name, store, img_size, part)


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
        folder = self.base / _expanded(self.paths)
        if must_exist and not is_folder(folder):
            raise self._missing(f"no folder {folder} for {self.dataset}")
        return folder

    def lmdb(self, split: str, stem: str) -> Path:
        """The LMDB folder of a split: as given for it, or `<stem>_<split>_lmdb` in (or beside) the one folder."""
        if isinstance(self.paths, str):
            folder, name = self.base / _expanded(self.paths), f"{stem}_{split}_lmdb"
            candidates = [folder / name, folder.parent / name] if folder.name.endswith("_lmdb") else [folder / name]
        elif split in self.paths:
            candidates = [self.base / _expanded(self.paths[split])]
        else:
            raise UserError(f"no {split} path for {self.dataset}: add it to {self.origin}")
        for candidate in candidates:
            if is_file(candidate / "data.mdb"):
                return candidate
        raise self._missing(f"no {split} LMDB of {self.dataset} at {' or '.join(map(str, candidates))}")

    def _missing(self, what: str) -> UserError:
        where = "" if self.origin.startswith("--") else 'put it there (README, "Data sets") or '
        return UserError(f"{what}: {where}correct {self.origin}")


def find_paths(dataset: str, datasets_file: str | Path, default: str | None = None) -> DatasetPaths:
    """The entry of a data set in a YAML file; when a `.yaml` is absent, the `.yml` beside it is read.

    `default`: the path without file or entry, from the file's folder. UserError: there is none, or it cannot be read.
    """
    file, paths = _expanded(datasets_file), default
    if file.name and not is_file(file) and is_file(file.with_suffix(".yml")):
        file = file.with_suffix(".yml")
    if is_file(file):
        origin, missing = f"{dataset} in {file}", f"{file} has no entry {dataset}: add `{dataset}: {{paths: FOLDER}}`"
        if (entry := _read(file).get(dataset)) is not None:
            paths = (entry.get("paths") or entry.get("path")) if isinstance(entry, Mapping) else entry
            by_split = paths.items() if isinstance(paths, Mapping) else [("train", paths)]
            if not paths or not all(split in ("train", "val") and isinstance(path, str) for split, path in by_split):
                form = "must be a folder, or a folder for each of `train` and `val`"
                raise UserError(f"{file}: `paths` of {dataset} {form}")
    else:
        origin = str(datasets_file)
        missing = f"no {origin}, which says where {dataset} lies: create it, or name another with --datasets_file"
    if paths is None:
        raise UserError(missing)
    return DatasetPaths(dataset, paths, file.parent, origin)


def custom_paths(data: DataSettings) -> DatasetPaths:
    """The folder of `--dataset custom`: the flag's (relative to the working directory), else the file's entry."""
    if data.custom_dataset_path:
        return DatasetPaths("custom", str(data.custom_dataset_path), Path(), "--custom_dataset_path")
    try:
        return find_paths("custom", data.datasets_file)
    except UserError as error:
        raise UserError(f"--dataset custom needs --custom_dataset_path FOLDER ({error})") from error


def _expanded(path: str | Path) -> Path:
    return Path(os.path.expanduser(os.path.expandvars(path)))  # noqa: PTH111 -- Path's raises where nobody has such a home


def _read(file: Path) -> Mapping[str, Any]:
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:  # ValueError: no UTF-8, or no date
        raise UserError(f"cannot read {file} ({' '.join(str(error).split())}): correct it") from None
    if not isinstance(entries, Mapping):
        raise UserError(f"{file} must map names of data sets to their paths, as in `churches: {{paths: data/lsun}}`")
    return entries
