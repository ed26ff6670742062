"""Arrays on disk that take long to fill: whole or absent under their name, and continued after an interruption.

Beside a finished `<name>.npy`, `<name>.json` holds its checksum and which images could not be read.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from hparams.errors import UserError
from utils.machine.distributed import ALONE, Ranks
from utils.machine.files import (
    can_be_written,
    exclusive,
    make_folder,
    naming,
    remove_remains,
    sha256_of,
    sync,
    whole_file,
)
from utils.machine.limits import free_space, tell_bytes
from utils.machine.progress import say
from utils.machine.signals import ending_politely

SECONDS_PER_NOTE = 5.0  # between two notes of how far the filling has come
# Of file systems that cannot, where the C library does not write the zeros itself; macOS lacks the call.
_NO_FALLOCATE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


class GrowingArray:
    """An array [n,…] that is filled front to back, by pwrite: some file systems refuse writable shared mappings.

    Attributes:
        done: how much is filled, counted as its user likes.
        bad: images that could not be read, name → what is wrong; kept with the array.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: Any,
        check: Callable[[], None] = lambda: None,
        warn: Callable[[str], None] = say,
    ) -> None:
        self._check = check
        self._partial, self._progress = path.with_suffix(".partial"), path.with_suffix(".progress.json")
        like = np.broadcast_to(np.zeros((), dtype), shape)
        note = self._noted_progress(like, warn)
        self.done: int = note["done"] if note else 0
        self.bad: dict[str, str] = note["bad"] if note else {}
        if not note:
            _forget(self._progress)  # first: it would declare the fresh, zero-filled file partly done
            _reserve(self._partial, like)
        self._dtype, self._row_bytes = like.dtype, math.prod(shape[1:]) * like.itemsize
        self._file = self._partial.open("r+b", buffering=0)
        self._first_byte = len(_header(like))
        self._noted = time.monotonic()

    def _noted_progress(self, like: np.ndarray, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """What an interrupted call noted of an array as `like`; None where there is nothing to continue."""
        if not (self._partial.exists() and self._progress.exists()):  # killed before its first note, or as it finished
            return None
        note, fits = _read_note(self._progress, done=0, bad={}), _fits(self._partial, like)
        if note and fits:
            return note
        warn(f"WARNING: {self._progress if fits else self._partial} is damaged: {self._partial.stem} is computed anew")
        return None

    def write(self, start: int, rows: np.ndarray) -> None:
        """Put rows [b,…] at place `start`, cast to the array's type.

        Raises:
            OSError: the disk does not take them; the error names the file.
        """
        data, at = rows.astype(self._dtype, copy=False).tobytes(), self._first_byte + start * self._row_bytes
        with naming(self._partial):
            while data:
                written = os.pwrite(self._file.fileno(), data, at)
                data, at = data[written:], at + written

    def advance(self, count: int) -> None:
        """Say that `count` more are filled; `check` may raise after that."""
        self.done += count
        if time.monotonic() - self._noted >= SECONDS_PER_NOTE:
            self.note()
        self._check()

    def note(self) -> None:
        """Make what is done safe, for a later run to go on from."""
        self._sync()
        _write_note(self._progress, done=self.done, bad=self.bad)
        self._noted = time.monotonic()

    def finish(self, path: Path) -> None:
        """Let the array appear under its name."""
        self._sync()
        self.close()
        _write_note(path.with_suffix(".json"), sha256=sha256_of(self._partial), bad=self.bad)
        self._partial.replace(path)
        sync(path.parent)
        self._progress.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; nothing can be written any more."""
        self._file.close()

    def _sync(self) -> None:
        with naming(self._partial):
            os.fsync(self._file.fileno())


@contextmanager
def growing_array(
    path: Path, shape: tuple[int, ...], dtype: Any, warn: Callable[[str], None] = say
) -> Iterator[GrowingArray]:
    """Fill the array `path`, an .npy, from where an interrupted call stopped; it appears when the block ends.

    When the block raises, what is done is kept beside it for the next call; `warn` takes a line if what was kept is
    damaged, and the array is filled from its start. One writer at a time. A signal to
    stop ends the process at the next `advance`, unless something around this block waits for it.

    Raises:
        UserError: there is not enough room.
        SystemExit: a signal asked for it.
    """
    make_folder(path.parent)
    remove_remains(path.parent)
    with ending_politely() as check:
        growing = GrowingArray(path, shape, dtype, check, warn)
        try:
            yield growing
        except BaseException:
            with suppress(OSError):
                growing.note()
            growing.close()
            raise
        growing.finish(path)


def read_array(
    path: Path, ranks: Ranks = ALONE, otherwise: Path | None = None
) -> tuple[np.ndarray, dict[str, str]] | None:
    """A finished array, read-only, and its unreadable images; None if it is missing or damaged.

    It is memory-mapped where the file system can do that, else read as a whole. Nothing is locked: its folder may be
    read-only. otherwise: a folder that may hold the file, too. Of several `ranks` the first one looks, for all, and its
    path counts: names hold what differs between machines with data of their own, such as times of change.
    """

    def look() -> tuple[Path, dict[str, str]] | None:
        for file in (path, otherwise / path.name) if otherwise else (path,):
            bad = _unharmed(file)
            if bad is not None:
                return file, bad
        return None

    whole = ranks.from_first(look)
    return (_loaded(whole[0]), whole[1]) if whole else None


def made_array(
    path: Path,
    make: Callable[[Path], None],
    ranks: Ranks = ALONE,
    *,
    otherwise: Path | None = None,
    warn: Callable[[str], None] = say,
) -> tuple[np.ndarray, dict[str, str]]:
    """The array `path` and its unreadable images, as `read_array`; `make` fills it where it is missing or damaged.

    Of several processes that need it at once, one makes it and the others wait. Several `ranks` make it together.

    Args:
        path: its file.
        make: takes the file to fill.
        ranks: the processes that call this together.
        otherwise: the folder where it is kept if that of `path` cannot be written.
        warn: takes a line if the file is damaged, or its folder cannot be written.

    Raises:
        UserError: what was made cannot be read back.
    """
    found = read_array(path, ranks, otherwise)
    if not found and otherwise and not ranks.from_first(lambda: can_be_written(path.parent)):
        warn_of_damage(path, warn)
        warn(f"{path.parent} cannot be written: {otherwise} is used in its place")
        path = otherwise / path.name
    if not found:
        make_folder(path.parent)
        with exclusive(path.parent, ranks.from_first):
            found = read_array(path, ranks)
            if not found:
                warn_of_damage(path, warn)
                make(path)
                found = read_array(path, ranks)
    if not found:
        raise UserError(f"{path} cannot be read back: its disk is damaged or full")
    return found


def warn_of_damage(path: Path, warn: Callable[[str], None] = say) -> None:
    """Say that an array, which `read_array` has not found whole, is there all the same."""
    if path.exists():
        warn(f"WARNING: {path} is damaged, or {path.with_suffix('.json').name} beside it: it is computed anew")


def _unharmed(path: Path) -> dict[str, str] | None:
    """What is noted as unreadable beside an array that is whole; None where there is none."""
    note = _read_note(path.with_suffix(".json"), sha256="", bad={})
    try:
        if note and sha256_of(path) == note["sha256"]:
            _loaded(path)
            with suppress(OSError):
                _forget(path.with_suffix(".progress.json"))  # left by a process that was killed as it finished
            return note["bad"]
    except (OSError, ValueError):  # ValueError: Python objects, which are not read
        pass
    return None


def _loaded(path: Path) -> np.ndarray:
    """An array file, read-only: mapped shared, or privately where a FUSE file system refuses that, or read whole.

    Raises:
        OSError, ValueError: it cannot be read, or is no array.
    """
    modes: tuple[Literal["r", "c"], ...] = ("r", "c")
    for mode in modes:
        with suppress(OSError):
            return _read_only(np.load(path, mmap_mode=mode, allow_pickle=False))
    return _read_only(np.load(path, allow_pickle=False))


def _read_only(array: Any) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise ValueError("an archive of arrays, where one array belongs")
    array.flags.writeable = False
    return array


def _reserve(path: Path, like: np.ndarray) -> None:
    """An array file of zeros with its room taken, so that a full disk is met before the work and not half way."""
    if like.nbytes > (free := free_space(path.parent)):
        raise UserError(
            f"{path.parent}: {tell_bytes(like.nbytes)} more is needed, {tell_bytes(free)} is free: make room"
        )
    with naming(path), path.open("wb") as file:
        file.write(_header(like))
        file.flush()
        _take_room(file, like.nbytes)
        os.fsync(file.fileno())


def _take_room(file: BinaryIO, size: int) -> None:
    """Append `size` zeros whose room on the disk is taken."""
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), file.tell(), size)
            return
        except OSError as error:
            if error.errno not in _NO_FALLOCATE:
                raise
    zeros = bytes(1 << 20)
    while size > 0:
        size -= file.write(zeros[:size])
    file.flush()


def _forget(progress: Path) -> None:
    """Delete a note of progress, durably."""
    if progress.exists():
        progress.unlink()
        sync(progress.parent)


def _fits(path: Path, like: np.ndarray) -> bool:
    """Whether a file is what `_reserve` makes of this shape and type: header and length."""
    header = _header(like)
    with naming(path), path.open("rb") as file:
        return file.read(len(header)) == header and path.stat().st_size == len(header) + like.nbytes


def _header(like: np.ndarray) -> bytes:
    """The first bytes of an .npy of this shape and type."""
    description = {"descr": np.lib.format.dtype_to_descr(like.dtype), "fortran_order": False, "shape": like.shape}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def _write_note(path: Path, **note: Any) -> None:
    text = json.dumps(note)
    with whole_file(path) as out:
        out.write(f"{text}\n{_checksum(text)}\n".encode())


def _read_note(path: Path, **like: Any) -> dict[str, Any] | None:
    """What `_write_note` wrote, with the same keys and types of values as `like`; None where there is no such file."""
    try:
        text, checksum = path.read_text(encoding="utf-8").splitlines()
        note = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return None
    if checksum != _checksum(text):
        return None
    fits = isinstance(note, dict) and {key: type(value) for key, value in note.items()} == {
        key: type(value) for key, value in like.items()
    }
    return note if fits else None


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
