"""Folders of image files: which files they hold, in which order, and reading them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from hparams.errors import UserError
from utils.data.images import BadImageError, read_regular

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
# A file that was removed, or that this user may not read. Other errors may pass.
_OF_ONE_FILE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


class FolderImages:
    """The image files below a folder, in the order of `list_images`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._files = folder, list_images(folder)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, i: int) -> bytes:
        """A file's content. OSError may pass; BadImageError: no regular file, or the folder is there without it."""
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

    def source(self, i: int) -> str:
        return str(self._files[i])

    def in_reach(self, i: int) -> bool:
        return _has_entries(self._folder) and _has_entries(self._files[i].parent)

    def identity(self, part: range) -> Iterator[str]:
        """What tells the images of a part from others, or from what they were: paths, sizes, times of change."""
        resolved = cache(Path.resolve)  # a folder once: it takes far longer than all else here
        for file in self._files[part.start : part.stop]:
            line = f"{file.absolute()}\0cannot be read"  # another image once that is mended
            if os.access(file, os.R_OK):
                with suppress(OSError):  # removed just now
                    stat = file.stat()
                    path = file.resolve() if file.is_symlink() else resolved(file.parent) / file.name
                    line = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}"
            yield line

    def listing(self, part: range) -> Iterator[bytes]:
        """What the images of a part have in common with copies elsewhere: names and sizes (-1: a link to nowhere)."""
        for file in self._files[part.start : part.stop]:
            size = -1
            with suppress(OSError):
                size = file.stat().st_size
            yield b"%s\0%d\0" % (os.fsencode(file.relative_to(self._folder)), size)


def _has_entries(folder: Path) -> bool:
    """Whether a folder can be read and holds something: where a disk is not mounted there is an empty folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        return any(entries)
    return False


def list_images(folder: Path) -> list[Path]:
    """Image files under a folder, in the order of torchvision's `ImageFolder`.

    Subfolders come first, by name, each with all that lies below it; then the folder's own files, by name, which
    `ImageFolder` would leave out. Suffixes count in any case. Names that begin with a dot are left out, and links to a
    folder above. Each folder is entered once, whatever links lead to it: by its own name if it lies below `folder`,
    else by the link that comes first by name (links of linked folders come last). UserError: one cannot be read.
    """
    walked: list[tuple[str, list[str]]] = []
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
                images = (name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES)
                walked.append((root, sorted(name for name in images if not name.startswith("."))))
    top, *nested = walked
    nested.sort(key=lambda entry: (Path(entry[0]).relative_to(folder).parts[0], entry[0]))
    return [Path(root, name) for root, names in [*nested, top] for name in names]


def _refuse(error: OSError) -> None:
    raise UserError(f"cannot read the folder {error.filename} ({error.strerror}): make it readable") from error
