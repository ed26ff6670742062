"""LSUN's layout: an LMDB folder whose values are encoded images. Reading, and writing whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
import uuid
from array import array
from collections.abc import Iterable, Iterator
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb

from hparams.errors import UserError
from utils.data.images import BadImageError
from utils.data.lmdb_pages import DamagedLMDBError, Head, OtherLMDBError, entries, read_head, read_value
from utils.machine.files import make_folder, sync

_AGAIN = "copy or download data.mdb again"


class LMDBImages:
    """Random access to the values of an LMDB folder, in the order of its keys.

    Opening checks the folder and costs milliseconds. The list of entries is made at the first access (2 s a million),
    held in flat buffers (3 million keys of 40 bytes: 180 MB) and travels with a pickled copy; the open file does not,
    and every process opens its own. Nothing that may be in data.mdb ends the process: see `utils.data.lmdb_pages`.

    Raises:
        UserError: no LMDB there, an empty one, a truncated one, or one of another layout.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._data = self.path / "data.mdb"
        self._file: FileIO | None = None
        self._file_pid = 0
        self._keys = b""
        # By number: where a key ends in `_keys`, and offset and size of its value.
        self._ends, self._places, self._sizes = array("q"), array("q"), array("I")
        if not self._data.is_file():
            raise UserError(f"no LMDB at {self.path} (it would hold data.mdb): correct its path in datasets.yaml")
        try:
            self._head = read_head(self._read)
        except OSError as error:
            raise UserError(f"{self._data} cannot be read ({error.strerror}): make it readable") from error
        except DamagedLMDBError as error:
            raise UserError(self._refusal("cannot be opened", error)) from error
        finally:
            self._file = None
        if _is_truncated(self._head, self._data.stat().st_size):
            raise UserError(f"the LMDB {self.path} is truncated: {_AGAIN}")
        if self._head.entries == 0:
            raise UserError(f"the LMDB {self.path} is empty: correct its path in datasets.yaml or download it again")

    def __len__(self) -> int:
        return self._head.entries

    def key(self, i: int) -> bytes:
        """Key number i.

        Raises:
            UserError: the LMDB is damaged, or of another layout.
            OSError: the file system does not give it, which may pass.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"index {i} is out of range for {len(self)} images")
        self._list_entries()
        return self._keys[self._ends[i - 1] if i else 0 : self._ends[i]]

    def read(self, i: int) -> bytes:
        """Value number i: one encoded image.

        Raises:
            BadImageError: this value is damaged.
            UserError: the whole LMDB is.
            OSError: the file system does not give it, which may pass.
        """
        key = self.key(i)
        try:
            return read_value(self._read, self._head, self._places[i], self._sizes[i])
        except DamagedLMDBError as error:
            name = f"{self.path}:{key.decode(errors='replace')}"
            raise BadImageError(f"cannot read {name} ({error}): {_AGAIN}") from error

    def in_reach(self) -> bool:
        """Whether data.mdb can be read now."""
        try:
            with self._data.open("rb") as file:
                return bool(file.read(1))
        except OSError:
            return False

    def listing(self) -> Iterator[bytes]:
        """All keys and all sizes of values, in a few large pieces.

        Raises:
            UserError: the LMDB is damaged.
        """
        self._list_entries()
        yield self._keys
        yield self._ends.tobytes()
        yield self._sizes.tobytes()

    def _list_entries(self) -> None:
        if self._ends:
            return
        keys, ends, places, sizes = bytearray(), array("q"), array("q"), array("I")
        try:
            for key, place, size in entries(self._read, self._head):
                keys += key
                ends.append(len(keys))
                places.append(place)
                sizes.append(size)
        except DamagedLMDBError as error:
            raise UserError(self._refusal("is damaged", error)) from error
        self._keys, self._ends, self._places, self._sizes = bytes(keys), ends, places, sizes

    def _refusal(self, what: str, error: DamagedLMDBError) -> str:
        if isinstance(error, OtherLMDBError):
            return f"the LMDB {self.path} is not of LSUN's layout, one encoded image for each key: {error}"
        return f"the LMDB {self.path} {what} ({error}): {_AGAIN}"

    def _read(self, offset: int, size: int) -> bytes:
        try:
            if self._file is None or self._file_pid != os.getpid():
                self._file, self._file_pid = FileIO(self._data), os.getpid()
            return os.pread(self._file.fileno(), size, offset)
        except OSError as error:
            self._file = None  # its handle may be stale: the next attempt opens the file again
            error.filename = str(self._data)
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_file_pid": 0}


def _is_truncated(head: Head, size: int) -> bool:
    """Whether data.mdb (of `size` bytes) lacks pages in use.

    A whole file may lack its last pages when they are free ones, so the last page number alone does not tell.
    """
    if size >= (head.last_page + 1) * head.page_size:
        return False
    return size < head.pages_in_use * head.page_size or size % head.page_size != 0


def write_lmdb(path: str | Path, items: Iterable[tuple[bytes, bytes]]) -> None:
    """Writes (key, value) pairs as the LMDB folder `path`, which then exists whole or not at all.

    Nothing happens when `path` exists. Of several writers at once the first to finish wins, and the others drop theirs.
    It also removes what killed ones left.

    Raises:
        ValueError: a key comes twice.
        UserError: the folder cannot be written.
    """
    path = Path(path)
    if path.exists():
        return
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        make_folder(path.parent)
        try:
            _fill(unfinished, items)
            sync(unfinished)
            unfinished.rename(path)
        except (OSError, lmdb.Error):  # the first to finish has removed this one
            if not (path / "data.mdb").is_file():
                raise
        else:
            sync(path.parent)
            for remains in path.parent.glob(f".{glob.escape(path.name)}.*"):
                shutil.rmtree(remains, ignore_errors=True)
    except (OSError, lmdb.Error) as error:
        raise UserError(f"cannot write {path} ({error}): make its folder writable, with space left") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _fill(path: Path, items: Iterable[tuple[bytes, bytes]]) -> None:
    iterator = iter(items)
    with lmdb.open(str(path), map_size=1 << 26, sync=False, lock=False) as env:
        while batch := list(islice(iterator, 1000)):
            while not _put(env, batch):
                env.set_mapsize(2 * env.info()["map_size"])
        env.sync(True)


def _put(env: lmdb.Environment, batch: list[tuple[bytes, bytes]]) -> bool:
    """Stores the batch in one transaction; False, and nothing stored, when the map is too small."""
    try:
        with env.begin(write=True) as txn:
            for key, value in batch:
                if not txn.put(key, value, overwrite=False):
                    raise ValueError(f"key {key!r} comes twice")
    except lmdb.MapFullError:
        return False
    return True
