"""Arrays on disk that take long to fill: whole or absent under their name, and continued after an interruption.

Beside a finished `<name>.npy`, `<name>.json` holds its checksum and which images could not be read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hparams.errors import UserError
from utils.distributed import ALONE, Ranks
from utils.files import exclusive, make_folder, naming, remove_remains, sha256_of, sync, whole_file
from utils.limits import free_space, tell_bytes
from utils.signals import ending_politely

SECONDS_PER_NOTE = 5.0  # between two notes of how far the filling has come
# Of file systems that cannot, where the C library does not write the zeros itself; macOS lacks the call.
_NO_FALLOCATE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


class GrowingArray:
    """An array that is filled front to back.

    Attributes:
        values: the whole array, writable, on disk.
        done: how much is filled, counted as its user likes.
        bad: images that could not be read, name → what is wrong; kept with the array.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: Any, check: Callable[[], None] = lambda: None
    ) -> None:
        self._check = check
        self._partial, self._progress = path.with_suffix(".partial"), path.with_suffix(".progress.json")
        like = np.broadcast_to(np.zeros((), dtype), shape)
        note = _read_note(self._progress, done=0, bad={}) if _fits(self._partial, like) else None
        self.done: int = note["done"] if note else 0
        self.bad: dict[str, str] = note["bad"] if note else {}
        if not note:
            _forget(self._progress)  # or the new file's zeros would pass for what an older one held
            _reserve(self._partial, like)
        self.values: np.ndarray = np.lib.format.open_memmap(self._partial, mode="r+")
        self._noted = time.monotonic()

    def advance(self, count: int) -> None:
        """Say that `count` more are filled; `check` may raise after that."""
        self.done += count
        if time.monotonic() - self._noted >= SECONDS_PER_NOTE:
            self.note()
        self._check()

    def note(self) -> None:
        """Make what is done safe, for a later run to go on from."""
        with naming(self._partial):
            self.values.flush()  # type: ignore[attr-defined]
        _write_note(self._progress, done=self.done, bad=self.bad)
        self._noted = time.monotonic()

    def finish(self, path: Path) -> None:
        """Let the array appear under its name."""
        with naming(self._partial):
            self.values.flush()  # type: ignore[attr-defined]
        del self.values
        _write_note(path.with_suffix(".json"), sha256=sha256_of(self._partial), bad=self.bad)
        self._partial.replace(path)
        sync(path.parent)
        self._progress.unlink(missing_ok=True)


@contextmanager
def growing_array(path: Path, shape: tuple[int, ...], dtype: Any) -> Iterator[GrowingArray]:
    """Fill the array `path`, an .npy, from where an interrupted call stopped; it appears when the block ends.

    When the block raises, what is done is kept beside it for the next call. One writer at a time. A signal to
    stop ends the process at the next `advance`, unless something around this block waits for it.

    Raises:
        UserError: there is not enough room.
        SystemExit: a signal asked for it.
    """
    make_folder(path.parent)
    remove_remains(path.parent)
    with ending_politely() as check:
        growing = GrowingArray(path, shape, dtype, check)
        try:
            yield growing
        except BaseException:
            with suppress(OSError):
                growing.note()
            raise
        growing.finish(path)


def read_array(path: Path, ranks: Ranks = ALONE) -> tuple[np.ndarray, dict[str, str]] | None:
    """A finished array, memory-mapped to be read, and its unreadable images; None if it is missing or damaged.

    Of several `ranks` the first one looks, for all, and its path counts: names hold what differs between machines with
    data of their own, such as times of change.
    """
    path, bad = ranks.from_first(lambda: (path, _unharmed(path)))
    return None if bad is None else (np.load(path, mmap_mode="r", allow_pickle=False), bad)


def made_array(path: Path, make: Callable[[], None], ranks: Ranks = ALONE) -> tuple[np.ndarray, dict[str, str]]:
    """The array `path` and its unreadable images, as `read_array`; `make` fills it where it is missing or damaged.

    Of several processes that need it at once, one makes it and the others wait. Several `ranks` make it together.

    Raises:
        UserError: what was made cannot be read back.
    """
    found = read_array(path, ranks)
    if not found:
        make_folder(path.parent)
        with exclusive(path.parent, ranks.from_first):
            found = read_array(path, ranks)
            if not found:
                make()
                found = read_array(path, ranks)
    if not found:
        raise UserError(f"{path} cannot be read back: its disk is damaged or full")
    return found


def _unharmed(path: Path) -> dict[str, str] | None:
    """What is noted as unreadable beside an array that is whole; None where there is none."""
    note = _read_note(path.with_suffix(".json"), sha256="", bad={})
    try:
        if note and sha256_of(path) == note["sha256"]:
            np.load(path, mmap_mode="r", allow_pickle=False)
            with suppress(OSError):
                _forget(path.with_suffix(".progress.json"))  # left by a process that was killed as it finished
            return note["bad"]
    except (OSError, ValueError):  # ValueError: Python objects, which are not read
        pass
    return None


def _reserve(path: Path, like: np.ndarray) -> None:
    """An array file of zeros with its room taken: on a full disk, writing to mapped memory would end the process."""
    if like.nbytes > (free := free_space(path.parent)):
        raise UserError(
            f"{path.parent}: {tell_bytes(like.nbytes)} more is needed, {tell_bytes(free)} is free: make room"
        )
    with naming(path), path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(like.dtype), "fortran_order": False, "shape": like.shape}
        np.lib.format.write_array_header_1_0(file, header)
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
    """Whether there is an array of this shape and type, at its whole length."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # missing, or the bytes of a damaged header, which lead anywhere
        return False
    return isinstance(values, np.memmap) and values.shape == like.shape and values.dtype == like.dtype


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
