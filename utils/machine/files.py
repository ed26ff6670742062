"""Writing files whole or not at all, and checking that what lies on disk is what was written."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hparams.errors import UserError
from utils.machine.progress import say

# Of NFS without lockd, of Lustre without -o flock.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS}
_BETWEEN_ATTEMPTS = 0.1  # seconds, to enter what others are in
_SILENT_ATTEMPTS = 20  # before a line says what is waited for


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` when the block ends without an error, and not at all otherwise.

    It is written beside its name, flushed to disk, and renamed; missing folders are made.

    Raises:
        OSError: the disk does not take it; the error names the file.
    """
    # Process ids of two machines may be the same.
    temporary = path.with_name(f".{path.name}.{secrets.randbelow(10**12)}")
    try:
        with naming(path):
            make_folder(path.parent)
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync(path.parent)
    finally:
        with suppress(OSError):  # of two errors the first counts
            temporary.unlink(missing_ok=True)


def remove_remains(folder: Path, *, older_than_s: float = 0.0) -> None:
    """Delete what `whole_file` left in a folder when its process was killed.

    older_than_s: their least age, where others may be writing in the folder.
    """
    for file in folder.glob(".*"):
        if re.fullmatch(r"\..+\.\d+", file.name):
            with suppress(OSError):
                if time.time() - file.stat().st_mtime >= older_than_s:
                    file.unlink()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of the block say which file they are about; those of reading and writing do not by themselves."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)
        raise


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, durably.

    Raises:
        OSError: it cannot be made. Of a link whose target is not there the error says so: its disk may be away.
    """
    if not folder.is_dir():
        if folder.is_symlink() and not folder.exists():
            raise FileNotFoundError(errno.ENOENT, f"a link to {folder.readlink()}, which is not there", str(folder))
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def can_be_written(folder: Path) -> bool:
    """Whether this user may make files in a folder, which is made if it is missing. Tried: access bits do not tell all.

    Raises:
        OSError: of other reasons, such as a full disk.
    """
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        if error.errno in _NO_ACCESS:
            return False
        raise


@contextmanager
def exclusive(
    folder: Path, together: Callable[[Callable[[], bool]], bool] = lambda attempt: attempt()
) -> Iterator[None]:
    """Wait until no other process is in such a block for this folder. One that died is not in the way.

    together: makes an attempt to enter for all processes that share the block: `Ranks.from_first`. They hear of each
    attempt, so that no wait is taken for a process that hangs. A longer wait is said.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        attempts = 0
        while not together(lambda: _locked(descriptor, folder)):
            attempts += 1
            if attempts == _SILENT_ATTEMPTS:
                say(f"waiting for another process, which is at work in {folder}")
            time.sleep(_BETWEEN_ATTEMPTS)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int, folder: Path) -> bool:
    """Whether this process has the lock of a folder now."""
    try:
        with _needing_locks(folder):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep other processes out of such a block for this folder, which is made if missing.

    The lock is the process's own: no child inherits it, and it ends with the process however that ends.

    Raises:
        UserError: another process is in such a block, or the file system has no locks.
    """
    make_folder(folder)
    with (folder / ".lock").open("a+b", buffering=0) as file:
        try:
            with _needing_locks(folder):
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = (file.read(200) or b"").decode(errors="replace").strip() or "another process"
            raise UserError(
                f"{folder} is being written to by {holder}: wait for it or end it, or use another --log_dir"
            ) from None
        with naming(folder / ".lock"):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


@contextmanager
def _needing_locks(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise UserError(
            f"{folder}: its file system has no locks ({error.strerror}): mount it with them, or make logs/ a link to a "
            "folder on another one"
        ) from None


def sync(path: Path) -> None:
    """Make a file's content durable, or the names of a folder's files as far as its file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Shared folders of VirtualBox cannot flush themselves.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def content_key(*parts: object) -> str:
    """A name for what is made from all of `parts`: arrays by type, shape and values, others by their printed form."""
    return hashlib.sha256("\0".join(map(_in_key, parts)).encode()).hexdigest()[:24]


def _in_key(part: object) -> str:
    if not hasattr(part, "__array__"):  # which torch's tensors have, too
        return str(part)
    array = np.asarray(part)
    return f"{array.dtype.str} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
