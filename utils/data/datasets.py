"""Data sets by name: LSUN's LMDBs, folders of images, and the embedded toy churches, behind one `ImageData`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from hparams.errors import UserError
from hparams.presets import DATASETS
from utils.data.dataset_paths import DatasetPaths, custom_paths, find_paths, is_file
from utils.data.image_folders import IMAGE_SUFFIXES, FolderImages
from utils.data.images import decode_rgb, resize_and_crop
from utils.data.lmdb_images import LMDBImages
from utils.data.toy_churches import write_toy_churches

Split = Literal["train", "val", "all"]

_LMDB_STEMS = {"churches": "church_outdoor", "bedrooms": "bedroom"}


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

        Raises:
            BadImageError: the file or the LMDB's value is no readable image.
            UserError: the LMDB is damaged.
            OSError: the file system does not give it, which may pass.
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
        """Hash of the files behind the images (paths, sizes, times of change; LMDBs: number of entries too) and of S.

        Equal splits of one data set have equal fingerprints, whatever they are called.
        """
        lines = (self.name, str(self.img_size), *self._store.identity(self._part))
        return _hash(line.encode("utf-8", "surrogateescape") + b"\0" for line in lines)

    @cached_property
    def listing(self) -> str:
        """Hash of the images' names and sizes in bytes, in order (of an LMDB: its keys, and pages of large values).

        Copies of a data set have equal ones, wherever they lie and whenever they were made. UserError: a damaged LMDB,
        whose keys are listed for this.
        """
        return _hash(self._store.listing(self._part))


def _hash(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def open_images(
    dataset: str, *, split: Split, img_size: int, custom_dataset_path: str | Path | None = None,
    datasets_file: str | Path = "datasets.yaml", hold_out: bool, toy_images: int = 10_000, seed: int = 0,
) -> ImageData:
    """Opens one split of a data set. Cheap: nothing is decoded (but toy churches are drawn at their first use).

    Args:
        split: LSUN and toy churches have an LMDB each for train and val, and "all" is the training one, which is what
            the published FID compares with. Of a folder "all" is every image.
        custom_dataset_path: the folder of `custom`, before the entry of the datasets file.
        datasets_file: where the data sets lie, see `utils.data.dataset_paths`.
        hold_out: folders only. Train on the first 95% and validate on the rest; otherwise train on all.
        toy_images: scenes of toy_churches' training split. A tenth as many, at least 64, validate. `seed` is theirs.

    Raises:
        UserError: unknown data set, no entry, nothing at its path, an empty folder, or a damaged LMDB.
        ValueError: the val split of a folder of which nothing is held out.
    """
    if dataset not in DATASETS:
        raise UserError(f"no data set {dataset!r}: --dataset is one of {', '.join(DATASETS)}")
    lmdb_split = "val" if split == "val" else "train"
    if dataset in _LMDB_STEMS:
        lmdb = find_paths(dataset, datasets_file).lmdb(lmdb_split, _LMDB_STEMS[dataset])
    elif dataset == "toy_churches":
        folder = _toy_folder(datasets_file) / f"{img_size}px_{toy_images}_{seed}"
        val_images = max(64, toy_images // 10)
        write_toy_churches(folder, size=img_size, train_images=toy_images, val_images=val_images, seed=seed)
        lmdb = folder / f"toy_churches_{lmdb_split}_lmdb"
    else:
        is_custom = dataset == "custom"
        paths = custom_paths(custom_dataset_path, datasets_file) if is_custom else find_paths(dataset, datasets_file)
        return _open_split(dataset, paths, split, img_size, hold_out)
    images = LMDBImages(lmdb)
    return ImageData(dataset, images, img_size, range(len(images)))


def open_folder(folder: Path, *, img_size: int, flag: str) -> ImageData:
    """All images of a folder, as a data set. UserError: no such folder, or no images in it; correct `flag`."""
    return _open_split("images", DatasetPaths("images", str(folder), Path(), flag), "all", img_size, hold_out=False)


def check_images(
    dataset: str, *, custom_dataset_path: str | Path | None = None, datasets_file: str | Path = "datasets.yaml",
    hold_out: bool, split: Split | None = None,
) -> None:
    """Raises what `open_images` would raise for one split, but writes nothing.

    Without `split`: for the training split, and for val when held out.
    """
    if dataset == "toy_churches":
        _toy_folder(datasets_file)
        return
    splits: tuple[Split, ...] = (split,) if split else ("train", "val") if hold_out else ("train",)
    for each in splits:
        open_images(
            dataset, split=each, img_size=1, custom_dataset_path=custom_dataset_path, datasets_file=datasets_file,
            hold_out=hold_out,
        )


def _toy_folder(datasets_file: str | Path) -> Path:
    return find_paths("toy_churches", datasets_file, default="data/toy_churches").folder(must_exist=False)


def _open_split(name: str, paths: DatasetPaths, split: Split, img_size: int, hold_out: bool) -> ImageData:
    """A split of a folder of images, or of the LMDB that `utils.data.pack_images` made of one."""
    folder = paths.folder()
    store = LMDBImages(folder) if is_file(folder / "data.mdb") else FolderImages(folder)
    n = len(store)
    if n == 0:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"no images in {folder} (looked for {suffixes}): correct {paths.origin}")
    if split == "val" and not hold_out:
        raise ValueError("nothing of a folder is held out: its val split is empty")
    part, train = range(n), n * 95 // 100
    if split != "all" and hold_out:
        if train == 0:
            raise UserError(f"{folder} holds one image, too few to hold out a part: add some or correct {paths.origin}")
        part = part[:train] if split == "train" else part[train:]
    return ImageData(name, store, img_size, part)
