"""Files: written whole or not at all, locked, named by a hash of what they are made from, and room for them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hparams.errors import UserError
from utils.machine.progress import say

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}  # NFS without lockd, Lustre without flock
_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS}
_POLL_S = 0.1  # between attempts to get a lock
_SILENT_ATTEMPTS = 20  # before a line says what is waited for


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` when the block ends without an error, and not at all otherwise.

    It is written beside `path`, flushed (fsync), and renamed; missing folders are made. OSError names the file.
    """
    temporary = path.with_name(f".{path.name}.{secrets.randbelow(10**12)}")  # process ids of two machines may be equal
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
        with suppress(OSError):  # or it would hide the first error
            temporary.unlink(missing_ok=True)


def remove_remains(folder: Path, *, older_than_s: float = 0.0) -> None:
    """Delete what `whole_file` left in a folder when its process was killed; what is younger may be being written."""
    for file in folder.glob(".*"):
        with suppress(OSError):
            if re.fullmatch(r"\..+\.\d+", file.name) and time.time() - file.stat().st_mtime >= older_than_s:
                file.unlink()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to errors of the block: those of read() and write() lack it."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)
        raise


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, durably. OSError: also where it is a link to what is away."""
    if not folder.is_dir():
        if folder.is_symlink() and not folder.exists():
            raise FileNotFoundError(errno.ENOENT, f"a link to {folder.readlink()}, which is not there", str(folder))
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def can_be_written(folder: Path) -> bool:
    """Whether this user may make files in a folder, made if missing. Tries it, as access bits do not tell all."""
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        if error.errno in _NO_ACCESS:
            return False
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process, on this machine or another, is in such a block for this file; says a long wait.

    The lock (lockf, which NFS passes to its server) is on `.<name>.lock` beside it, since `path` itself may be replaced
    by renaming. It ends with its process, and does not exclude threads of one process. UserError: there are no locks.
    """
    make_folder(path.parent)
    with path.with_name(f".{path.name}.lock").open("ab") as file:
        attempts = 0
        while not _has_lock(file, path.parent):
            attempts += 1
            if attempts == _SILENT_ATTEMPTS:
                say(f"waiting for another process, which is writing {path}")
            time.sleep(_POLL_S)
        yield


def _has_lock(file: BinaryIO, folder: Path) -> bool:
    """Whether this process has the lock of a file in `folder` now. UserError: the file system has no locks."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # by the system
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        advice = "mount it with them, or make logs/ a link to a folder on another one"
        raise UserError(f"{folder}: its file system has no locks ({error.strerror}): {advice}") from None
    return True


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep other processes out of such a block for this folder. UserError: one is in it, or there are no locks."""
    make_folder(folder)
    with (folder / ".lock").open("a+b", buffering=0) as file:  # or close() would fail again, without the file's name
        if not _has_lock(file, folder):
            file.seek(0)
            holder = (file.read(200) or b"").decode(errors="replace").strip() or "another process"
            fix = "wait for it or end it, or use another --log_dir"
            raise UserError(f"{folder} is being written to by {holder}: {fix}")
        with naming(folder / ".lock"):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


def sync(path: Path) -> None:
    """Flush a file's content to disk, or the names in a folder if its file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # as VirtualBox's shared folders answer
            raise
    finally:
        os.close(descriptor)


def free_space(folder: Path) -> int:
    """Bytes that can be written below a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(os.path.realpath(folder)).free


def tell_bytes(count: int) -> str:
    """A size in words: `512 B`, `3.2 MB`, `41 GB`."""
    power = min((len(str(count)) - 1) // 3, 4)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def content_key(*parts: object) -> str:
    """A hash of `parts` that names what is made from them: arrays by type, shape and values, others by their text."""
    texts = []
    for part in parts:
        if hasattr(part, "__array__"):  # numpy's arrays and torch's tensors
            array = np.asarray(part)
            part = f"{array.dtype.str} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
        texts.append(str(part))
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]
