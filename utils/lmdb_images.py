"""LSUN's layout: an LMDB folder whose values are encoded images. Reading, and writing whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from hparams.errors import UserError
from utils.files import sync_folder

_META_PAGES = 2


class LMDBImages:
    """Random access to the values of an LMDB folder, in the order of its keys.

    Opening checks the folder and costs milliseconds. The key list is read at the first access, held in one flat buffer
    (3 million keys of 40 bytes: 144 MB) and travels with a pickled copy; the database handle does not, and every
    process opens its own.

    Raises:
        UserError: no LMDB there, an empty one, or a truncated one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._env: lmdb.Environment | None = None
        self._env_pid = 0
        self._keys = b""
        self._ends: np.ndarray | None = None  # int64 [n], where each key ends in `_keys`
        data = self.path / "data.mdb"
        if not data.is_file():
            raise UserError(f"no LMDB at {self.path} (it would hold data.mdb): correct its path in datasets.yaml")
        with _open(self.path) as env:
            self._entries: int = env.stat()["entries"]
            if _is_truncated(env, data.stat().st_size):
                raise UserError(f"the LMDB {self.path} is truncated: copy or download data.mdb again")
        if self._entries == 0:
            raise UserError(f"the LMDB {self.path} is empty: correct its path in datasets.yaml or download it again")

    def __len__(self) -> int:
        return self._entries

    def key(self, i: int) -> bytes:
        """Key number i."""
        if not 0 <= i < len(self):
            raise IndexError(f"index {i} is out of range for {len(self)} images")
        ends = self._key_ends()
        return self._keys[ends[i - 1] if i else 0 : ends[i]]

    def read(self, i: int) -> bytes:
        """Value number i: one encoded image."""
        key = self.key(i)
        try:
            with self._environment().begin() as txn:
                value = txn.get(key)
        except lmdb.Error as error:
            raise self._damaged(error) from error
        if value is None:
            raise UserError(
                f"{self.path} changed while it was read (no key {key.decode(errors='replace')}): start again"
            )
        return bytes(value)

    def _key_ends(self) -> np.ndarray:
        if self._ends is None:
            keys = bytearray()
            ends = np.empty(self._entries, np.int64)
            try:
                with self._environment().begin() as txn:
                    for i, key in enumerate(txn.cursor().iternext(keys=True, values=False)):
                        keys += key
                        ends[i] = len(keys)
            except lmdb.Error as error:
                raise self._damaged(error) from error
            self._keys, self._ends = bytes(keys), ends
        return self._ends

    def _environment(self) -> lmdb.Environment:
        if self._env is None or self._env_pid != os.getpid():
            self._env, self._env_pid = _open(self.path), os.getpid()
        return self._env

    def _damaged(self, error: lmdb.Error) -> UserError:
        return UserError(f"the LMDB {self.path} is damaged ({error}): copy or download data.mdb again")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_env": None, "_env_pid": 0}


def _open(path: Path) -> lmdb.Environment:
    try:
        return lmdb.open(str(path), readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise UserError(f"cannot open the LMDB {path} ({error}): copy or download data.mdb again") from error


def _is_truncated(env: lmdb.Environment, size: int) -> bool:
    """Whether data.mdb (of `size` bytes) lacks pages in use. Reading those would kill the process (SIGBUS).

    A whole file may lack its last pages when they are free ones, so the last page number alone does not tell.
    """
    stat = env.stat()
    page = stat["psize"]
    if size >= (env.info()["last_pgno"] + 1) * page:
        return False
    used = _META_PAGES + stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
    return size < used * page or size % page != 0


def write_lmdb(path: str | Path, items: Iterable[tuple[bytes, bytes]]) -> None:
    """Writes (key, value) pairs as the LMDB folder `path`, which then exists whole or not at all.

    Nothing happens when `path` exists. Of several writers at once the first to finish wins, and the others drop theirs.

    Raises:
        ValueError: a key comes twice.
        UserError: the folder cannot be written.
    """
    path = Path(path)
    if path.exists():
        return
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _fill(unfinished, items)
        sync_folder(unfinished)
        try:
            unfinished.rename(path)
        except OSError:
            if not (path / "data.mdb").is_file():
                raise
        else:
            sync_folder(path.parent)
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
