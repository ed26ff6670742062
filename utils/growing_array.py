"""Arrays on disk that take long to fill: whole or absent under their name, and continued after an interruption."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import sync_folder

SECONDS_PER_NOTE = 5.0  # between two notes of how far the filling has come


class GrowingArray:
    """An array that is filled front to back.

    Attributes:
        values: the whole array, writable, on disk.
        done: how much is filled, counted as its user likes.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any) -> None:
        self._partial, self._progress = path.with_suffix(".partial"), path.with_suffix(".progress.json")
        self.done = self._safe(shape, np.dtype(dtype))
        self.values: np.ndarray = np.lib.format.open_memmap(
            self._partial, mode="r+" if self.done else "w+", dtype=dtype, shape=shape
        )
        self._noted = time.monotonic()

    def advance(self, count: int) -> None:
        """Say that `count` more are filled."""
        self.done += count
        if time.monotonic() - self._noted >= SECONDS_PER_NOTE:
            self.note()

    def note(self) -> None:
        """Make what is done safe, for a later run to go on from."""
        self.values.flush()  # type: ignore[attr-defined]
        self._progress.write_text(json.dumps({"done": self.done}))
        self._noted = time.monotonic()

    def finish(self, path: Path) -> None:
        """Let the array appear under its name."""
        self.values.flush()  # type: ignore[attr-defined]
        del self.values
        self._partial.replace(path)
        sync_folder(path.parent)
        self._progress.unlink(missing_ok=True)

    def _safe(self, shape: tuple[int, ...], dtype: np.dtype) -> int:
        """How much of an interrupted filling is safe on disk."""
        try:
            done = int(json.loads(self._progress.read_text())["done"])
            values = np.load(self._partial, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return done if values.shape == shape and values.dtype == dtype else 0


@contextmanager
def growing_array(path: Path, shape: tuple[int, ...], dtype: Any) -> Iterator[GrowingArray]:
    """Fill the array `path`, an .npy, from where an interrupted call stopped; it appears when the block ends.

    When the block raises, what is done is kept beside it for the next call.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    growing = GrowingArray(path, shape, dtype)
    try:
        yield growing
    except BaseException:
        growing.note()
        raise
    growing.finish(path)
