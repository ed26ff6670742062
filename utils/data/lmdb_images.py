"""LSUN's layout: an LMDB folder whose values are encoded images. Reading, and writing whole or not at all."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import signal
import subprocess
import sys
import uuid
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb

from hparams.errors import RunError, UserError
from utils.data.images import BadImageError
from utils.machine.files import make_folder, sync

_AGAIN = "copy or download data.mdb again"

# LMDB follows the page numbers of a file without checking them: a damaged one ends the process (SIGABRT, SIGBUS, …). So
# another process opens the file first. It prints what it found and, given a second argument, walks over the keys: their
# number, where each ends (int64), and all of them in one.
_INSPECT = """
import array, lmdb, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
keys, ends = bytearray(), array.array("q")
with lmdb.open(sys.argv[1], readonly=True, lock=False) as env, env.begin() as txn:
    stat, longest = env.stat(), env.max_key_size()
    for key in txn.cursor().iternext(values=False) if len(sys.argv) > 2 else ():
        keys += key
        ends.append(len(keys))
        if len(key) > longest:
            del ends[:]
            break
    print(stat["entries"], stat["psize"], stat["overflow_pages"], env.info()["last_pgno"], len(ends), flush=True)
sys.stdout.buffer.writelines((ends.tobytes(), keys))
"""
_CRASHES = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV)


class LMDBImages:
    """Random access to the values of an LMDB folder, in the order of its keys.

    Opening starts a small process. The keys are listed at the first access (0.5 s a million, more from a cold disk),
    held in flat buffers (3 million of 40 bytes: 144 MB) and travel with a pickled copy. Every process, forked ones too,
    opens an environment of its own. UserError: no LMDB there, an empty or damaged one, or one without its last pages.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._data = self.path / "data.mdb"
        self._env: lmdb.Environment | None = None
        self._env_of: tuple[int, ...] = ()  # the process and the file that `_env` was opened in and for
        self._keys, self._ends = b"", array("q")  # all keys in one, and where each ends
        if not self._data.is_file():
            raise UserError(f"no LMDB at {self.path} (it would hold data.mdb): correct its path in datasets.yaml")
        try:
            size = self._file_size()
            (self._entries, self._page_size, self._overflow_pages, last_page, _), _ = self._inspect()
        except OSError as error:
            raise UserError(f"{self._data} cannot be read ({error.strerror}): make it readable") from error
        if size < (last_page + 1) * self._page_size:
            raise self._broken("truncated")
        if self._entries == 0:
            raise UserError(f"the LMDB {self.path} is empty: correct its path in datasets.yaml or download it again")

    def __len__(self) -> int:
        return self._entries

    def key(self, i: int) -> bytes:
        """Key number i. Raises UserError for a damaged LMDB, and OSError, which may pass."""
        if not self._ends:
            (*_, sound_keys), listed = self._inspect("keys")
            if sound_keys != self._entries:
                raise self._broken(f"damaged ({sound_keys} sound keys for {self._entries} values)")
            self._ends, self._keys = array("q", listed[: 8 * sound_keys]), listed[8 * sound_keys :]
        return self._keys[self._ends[i - 1] if i else 0 : self._ends[i]]

    def read(self, i: int) -> bytes:
        """Value number i: one encoded image. BadImageError: it is damaged; UserError, OSError as of `key`."""
        key = self.key(i)
        try:
            with self._environment().begin() as txn:
                value = txn.get(key)
        except (lmdb.Error, MemoryError) as error:  # MemoryError: of a size that the file cannot hold
            raise BadImageError(f"cannot read {self.source(i)} ({error}): {_AGAIN}") from error
        if value is None:
            raise BadImageError(f"cannot read {self.source(i)} (its key is not where it belongs): {_AGAIN}")
        return bytes(value)

    def source(self, i: int) -> str:
        return f"{self.path}:{self.key(i).decode(errors='replace')}"

    def in_reach(self, i: int) -> bool:
        with suppress(OSError), self._data.open("rb") as file:
            return bool(file.read(1))
        return False

    def identity(self, part: range) -> Iterator[str]:
        path = self.path.resolve()
        stat = (path / "data.mdb").stat()  # the size alone counts whole pages
        start = f"\0from {part.start}" if part.start else ""
        yield f"{path}\0{len(part)}\0{stat.st_size}\0{stat.st_mtime_ns}{start}"

    def listing(self, part: range) -> Iterator[bytes]:
        """All keys, and the number of pages that large values take. UserError: the LMDB is damaged."""
        self.key(0)  # lists them
        yield f"{part.start}\0{len(part)}\0{self._overflow_pages * self._page_size}\0".encode()
        yield self._keys
        yield self._ends.tobytes()

    def _environment(self) -> lmdb.Environment:
        """This process's environment. The size comes first: to read a page beyond the end of the file is SIGBUS."""
        stat = self._data.stat()
        env_of = (os.getpid(), stat.st_dev, stat.st_ino, stat.st_size)
        if self._env is None or self._env_of != env_of:
            self._env, size = None, self._file_size()
            try:
                env = lmdb.open(str(self.path), readonly=True, lock=False)
            except lmdb.Error as error:
                raise OSError(errno.EIO, str(error), str(self._data)) from error
            if size < (env.info()["last_pgno"] + 1) * env.stat()["psize"]:
                raise self._broken("truncated")
            self._env, self._env_of = env, env_of
        return self._env

    def _file_size(self) -> int:
        with self._data.open("rb") as file:
            return os.fstat(file.fileno()).st_size

    def _inspect(self, *keys: str) -> tuple[list[int], bytes]:
        """What another process finds in the file, see `_INSPECT`: the numbers, and what follows them."""
        path, modules = str(self.path.absolute()), Path(lmdb.__file__).parents[1]
        # `-c` looks for modules in cwd first; Ctrl-C is for this process alone.
        words = [sys.executable, "-c", _INSPECT, path, *keys]
        inspected = subprocess.run(words, cwd=modules, capture_output=True, start_new_session=True)
        if inspected.returncode == 0:
            numbers, _, listed = inspected.stdout.partition(b"\n")
            return [int(number) for number in numbers.split()], listed
        if not self._file_size():  # OSError if the file cannot be read any more
            raise self._broken("truncated")
        said = inspected.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        reason = said.partition(": ")[2].removeprefix(f"{path}: ")
        if inspected.returncode < 0:
            ended_by = signal.Signals(-inspected.returncode)
            if ended_by not in _CRASHES:
                raise RunError(f"the process that looks at {self.path} was ended by {ended_by.name}: run it again")
            reason = reason or ended_by.name
        elif said.startswith("lmdb.Error: "):  # of the system
            fix = "copy it to a disk whose files can be, or raise the limit of memory (ulimit -v)"
            raise UserError(f"the LMDB {self.path} cannot be mapped into memory ({reason}): {fix}")
        raise self._broken(f"damaged ({reason})")

    def _broken(self, how: str) -> UserError:
        return UserError(f"the LMDB {self.path} is {how}: {_AGAIN}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_env": None}


def write_lmdb(path: str | Path, items: Iterable[tuple[bytes, bytes]]) -> None:
    """Writes (key, value) pairs as the LMDB folder `path`, which then exists whole or not at all.

    Nothing happens when `path` exists. Of several writers at once the first to finish wins, and the others drop theirs.
    It also removes what killed ones left. ValueError: a key comes twice; UserError: the folder cannot be written.
    """
    if (path := Path(path)).exists():
        return
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        make_folder(path.parent)
        _fill(unfinished, iter(items))
        sync(unfinished)
        unfinished.rename(path)
    except (OSError, lmdb.Error) as error:
        if not (path / "data.mdb").is_file():  # else the first to finish has removed this one
            raise UserError(f"cannot write {path} ({error}): make its folder writable, with space left") from error
    else:
        sync(path.parent)
        for remains in path.parent.glob(f".{glob.escape(path.name)}.*"):
            shutil.rmtree(remains, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _fill(path: Path, items: Iterator[tuple[bytes, bytes]]) -> None:
    with lmdb.open(str(path), map_size=1 << 26, sync=False, lock=False) as env:
        while batch := list(islice(items, 1000)):
            while True:
                try:
                    with env.begin(write=True) as txn:
                        for key, value in batch:
                            if not txn.put(key, value, overwrite=False):
                                raise ValueError(f"key {key!r} comes twice")
                    break
                except lmdb.MapFullError:
                    env.set_mapsize(2 * env.info()["map_size"])
        env.sync(True)
