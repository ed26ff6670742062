"""Data sets by name: LSUN's LMDBs, folders of images, and the embedded toy churches, behind one `ImageData`."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from hparams.errors import UserError
from hparams.presets import DATASETS
from utils.data.dataset_paths import DatasetPaths, custom_paths, find_paths, is_there
from utils.data.images import BadImageError, decode_rgb, read_regular, resize_and_crop
from utils.data.lmdb_images import LMDBImages
from utils.data.toy_churches import write_toy_churches

Split = Literal["train", "val", "all"]

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
)

# Errors of a file that was removed, or is not for this user; others may pass.
_OF_ONE_FILE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}

_LMDB_STEMS = {"churches": "church_outdoor", "bedrooms": "bedroom"}


class _Store(Protocol):
    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes: ...

    def describe(self, i: int) -> str: ...

    def in_reach(self, i: int) -> bool: ...

    def identity(self) -> Iterator[str]: ...

    def listing(self) -> Iterator[bytes]: ...


class ImageData:
    """Images of one split, decoded, resized and cropped on access. Can be pickled and read in several processes.

    Attributes:
        name: the data set's name.
        img_size: side of the images in pixels, S.
    """

    def __init__(self, name: str, store: _Store, img_size: int) -> None:
        self.name = name
        self.img_size = img_size
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i: uint8 [3, S, S], values 0..255.

        Raises:
            BadImageError: the file or the LMDB's value is no readable image.
            UserError: the LMDB is damaged.
            OSError: the file system does not give it, which may pass.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"index {i} is out of range for {len(self)} images")
        name = self._store.describe(i)
        return resize_and_crop(decode_rgb(self._store.read(i), name), self.img_size, name)

    def first(self, n: int | None) -> ImageData:
        """The first n images alone; all of them where n is None or there are no more."""
        return self if n is None or n >= len(self) else ImageData(self.name, _FirstOf(self._store, n), self.img_size)

    def source(self, i: int) -> str:
        """Where image i comes from: its file, or its LMDB and key."""
        return self._store.describe(i)

    def in_reach(self, i: int) -> bool:
        """Whether the place of image i can be read now: a network disk may be away for a while."""
        return self._store.in_reach(i)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the files behind the images (paths, sizes, times of change; LMDBs: number of entries too) and of S.

        Equal splits of one data set have equal fingerprints, whatever they are called.
        """
        digest = hashlib.sha256()
        for line in (self.name, str(self.img_size), *self._store.identity()):
            digest.update(line.encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()

    @cached_property
    def listing(self) -> str:
        """Hash of the images' names (below the data set's folder; of an LMDB: its keys) and sizes in bytes, in order.

        Copies of a data set have equal ones, wherever they lie and whenever they were made. Of an LMDB this lists its
        entries, 2 s a million, which reading images needs as well.

        Raises:
            UserError: the LMDB is damaged.
        """
        digest = hashlib.sha256()
        for part in self._store.listing():
            digest.update(part)
        return digest.hexdigest()


class _FirstOf:
    def __init__(self, store: _Store, n: int) -> None:
        self._all = store
        self._n = n

    def __len__(self) -> int:
        return self._n

    def read(self, i: int) -> bytes:
        return self._all.read(i)

    def describe(self, i: int) -> str:
        return self._all.describe(i)

    def in_reach(self, i: int) -> bool:
        return self._all.in_reach(i)

    def identity(self) -> Iterator[str]:
        yield f"the first {self._n} of"
        yield from self._all.identity()

    def listing(self) -> Iterator[bytes]:
        yield b"%d\0" % self._n
        yield from self._all.listing()


class _LMDBStore:
    """An LMDB's images from number `first` on, `count` of them (None: all)."""

    def __init__(self, path: Path, first: int = 0, count: int | None = None) -> None:
        self._images = LMDBImages(path)
        self._first = first
        self._count = len(self._images) if count is None else count

    def __len__(self) -> int:
        return self._count

    def read(self, i: int) -> bytes:
        return self._images.read(self._first + i)

    def describe(self, i: int) -> str:
        return f"{self._images.path}:{self._images.key(self._first + i).decode(errors='replace')}"

    def in_reach(self, i: int) -> bool:
        return self._images.in_reach()

    def identity(self) -> Iterator[str]:
        path = self._images.path.resolve()
        stat = (path / "data.mdb").stat()  # its size alone counts whole pages
        part = f"\0from {self._first}" if self._first else ""
        yield f"{path}\0{len(self)}\0{stat.st_size}\0{stat.st_mtime_ns}{part}"

    def listing(self) -> Iterator[bytes]:
        yield b"%d\0%d\0" % (self._first, self._count)
        yield from self._images.listing()


class _FolderStore:
    """Files below a folder."""

    def __init__(self, folder: Path, files: list[Path]) -> None:
        self._folder = folder
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def read(self, i: int) -> bytes:
        file = self._files[i]
        try:
            return read_regular(file, str(file))
        except OSError as error:
            target = Path(os.path.realpath(file))
            if error.errno not in _OF_ONE_FILE or not self.in_reach(i) or not _has_entries(target.parent):
                raise
        try:
            return read_regular(file, str(file))  # its disk may have come back since
        except OSError as error:
            raise BadImageError(f"cannot read {file} as an image ({error.strerror}): replace or remove it") from None

    def describe(self, i: int) -> str:
        return str(self._files[i])

    def in_reach(self, i: int) -> bool:
        return _has_entries(self._folder) and _has_entries(self._files[i].parent)

    def identity(self) -> Iterator[str]:
        resolved = cache(Path.resolve)  # a folder once: it takes far longer than all else here
        for file in self._files:
            try:
                stat = file.stat() if os.access(file, os.R_OK) else None
            except OSError:  # removed just now
                stat = None
            if not stat:  # a link to nowhere, or no right to read it: another image once that is mended
                yield f"{file.absolute()}\0cannot be read"
                continue
            path = file.resolve() if file.is_symlink() else resolved(file.parent) / file.name
            yield f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}"

    def listing(self) -> Iterator[bytes]:
        for file in self._files:
            try:
                size = file.stat().st_size
            except OSError:  # a link to nowhere
                size = -1
            yield b"%s\0%d\0" % (os.fsencode(file.relative_to(self._folder)), size)


def _has_entries(folder: Path) -> bool:
    """Whether a folder can be read and holds something: where a disk is not mounted there is an empty folder."""
    try:
        with os.scandir(folder) as entries:
            return any(True for _ in entries)
    except OSError:
        return False


def open_images(
    dataset: str,
    *,
    split: Split,
    img_size: int,
    custom_dataset_path: str | Path | None = None,
    datasets_file: str | Path = "datasets.yaml",
    hold_out: bool,
    toy_images: int = 10_000,
    seed: int = 0,
) -> ImageData:
    """Opens one split of a data set. Cheap: nothing is decoded (but toy churches are drawn at their first use).

    Args:
        dataset: one of `hparams.presets.DATASETS`.
        split: LSUN and toy churches have an LMDB each for train and val, and "all" is the training one, which is what
            the published FID compares with. Of a folder "all" is every image.
        img_size: side in pixels.
        custom_dataset_path: the folder of `custom`, before the entry of the datasets file.
        datasets_file: where the data sets lie; see `utils.data.dataset_paths`.
        hold_out: folders only. Train on the first 95% and validate on the rest; otherwise train on all.
        toy_images: scenes of toy_churches' training split. A tenth as many, at least 64, validate.
        seed: of toy_churches' scenes.

    Raises:
        UserError: unknown data set, no entry, nothing at its path, an empty folder, or a damaged LMDB.
        ValueError: the val split of a folder of which nothing is held out.
    """
    _check_name(dataset)
    if dataset in _LMDB_STEMS:
        path = find_paths(dataset, datasets_file).lmdb(_lmdb_split(split), _LMDB_STEMS[dataset])
        return ImageData(dataset, _LMDBStore(path), img_size)
    if dataset == "toy_churches":
        folder = _toy_folder(datasets_file) / f"{img_size}px_{toy_images}_{seed}"
        val_images = max(64, toy_images // 10)
        write_toy_churches(folder, size=img_size, train_images=toy_images, val_images=val_images, seed=seed)
        return ImageData(dataset, _LMDBStore(folder / f"toy_churches_{_lmdb_split(split)}_lmdb"), img_size)
    paths = (
        custom_paths(custom_dataset_path, datasets_file) if dataset == "custom" else find_paths(dataset, datasets_file)
    )
    return ImageData(dataset, _folder_split(paths, split, hold_out), img_size)


def open_folder(folder: Path, *, img_size: int, flag: str) -> ImageData:
    """All images of a folder, as a data set.

    Raises:
        UserError: no such folder, or no images in it; `flag` is what to correct.
    """
    paths = DatasetPaths("images", str(folder), Path(), flag)
    return ImageData("images", _folder_split(paths, "all", hold_out=False), img_size)


def check_images(
    dataset: str,
    *,
    custom_dataset_path: str | Path | None = None,
    datasets_file: str | Path = "datasets.yaml",
    hold_out: bool,
    split: Split | None = None,
) -> None:
    """Raises what `open_images` would raise for one split, but writes nothing.

    Without `split`: for the training split, and for val when held out.
    """
    _check_name(dataset)
    if dataset == "toy_churches":
        _toy_folder(datasets_file)
        return
    splits: tuple[Split, ...] = (split,) if split else ("train", "val") if hold_out else ("train",)
    for part in splits:
        open_images(
            dataset,
            split=part,
            img_size=1,
            custom_dataset_path=custom_dataset_path,
            datasets_file=datasets_file,
            hold_out=hold_out,
        )


def list_images(folder: Path) -> list[Path]:
    """Image files under a folder, in the order of torchvision's `ImageFolder`.

    Subfolders come first, by name, each with all that lies below it; then the folder's own files, by name, which
    `ImageFolder` would leave out. Suffixes count in any case. Names that begin with a dot are left out, and links to a
    folder above. Each folder is entered once, whatever links lead to it: by its own name if it lies below `folder`,
    else by the link that comes first by name (links of linked folders come after all others).

    Raises:
        UserError: a folder that cannot be read.
    """
    found: list[tuple[str, list[str]]] = []
    entered, links = set(folder.resolve().parents), [folder]
    while links:
        starts, links = sorted(links), []
        for start in starts:
            real_start = start.resolve()
            for root, folders, names in os.walk(start, onerror=_refuse):
                real = real_start / Path(root).relative_to(start)
                if real in entered:
                    folders.clear()
                    continue
                entered.add(real)
                folders[:] = [name for name in folders if not name.startswith(".")]
                linked = [path for name in folders if (path := Path(root, name)).is_symlink()]
                links += [path for path in linked if not real.is_relative_to(path.resolve())]
                found.append((root, sorted(name for name in names if _is_image(name))))
    own, nested = found[0], found[1:]
    nested.sort(key=lambda walked: (Path(walked[0]).relative_to(folder).parts[0], walked[0]))
    return [Path(root, name) for root, names in [*nested, own] for name in names]


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def _refuse(error: OSError) -> None:
    raise UserError(f"cannot read the folder {error.filename} ({error.strerror}): make it readable") from error


def _check_name(dataset: str) -> None:
    if dataset not in DATASETS:
        raise UserError(f"no data set {dataset!r}: --dataset is one of {', '.join(DATASETS)}")


def _lmdb_split(split: Split) -> str:
    return "val" if split == "val" else "train"


def _toy_folder(datasets_file: str | Path) -> Path:
    return find_paths("toy_churches", datasets_file, default="data/toy_churches").folder(must_exist=False)


def _folder_split(paths: DatasetPaths, split: Split, hold_out: bool) -> _Store:
    """A split of a folder of images, or of the LMDB that `utils.data.pack_images` made of one."""
    folder = paths.folder()
    if is_there((folder / "data.mdb").is_file):
        first, count = _part(len(LMDBImages(folder)), paths, split, hold_out)
        return _LMDBStore(folder, first, count)
    files = list_images(folder)
    if not files:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"no images in {folder} (looked for {suffixes}): correct {paths.origin}")
    first, count = _part(len(files), paths, split, hold_out)
    return _FolderStore(folder, files[first : first + count])


def _part(n: int, paths: DatasetPaths, split: Split, hold_out: bool) -> tuple[int, int]:
    """First image and number of images of a split of n."""
    if split == "all":
        return 0, n
    if not hold_out:
        if split == "val":
            raise ValueError("nothing of a folder is held out: its val split is empty")
        return 0, n
    train = n * 95 // 100
    if train == 0:
        raise UserError(
            f"{paths.folder()} holds one image, too few to validate on a part: add images or correct {paths.origin}"
        )
    return (0, train) if split == "train" else (train, n - train)
