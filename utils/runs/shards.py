"""Long work in part files: whatever an interrupted command, or another process, has done is not done again.

The work makes rows [n,…], one for each of n things (codes of images, features, likelihoods …). A folder, named after
everything that determines the rows, holds them in files `<first>-<stop>-<checksum>.npy`. Each is written whole by the
process that computed it, so no file is grown, no lock is held, and several processes, on several machines, share the
work by sharing the folder. More rows than before extend what is there.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hparams.errors import UserError
from utils.data.bad_images import Report
from utils.machine.files import can_be_written, free_space, make_folder, remove_remains, tell_bytes, whole_file
from utils.runs.job import Job

ROWS = 256  # of a part file, in work that takes little time for a row
# Takes numbers of rows in order, int64 [m], and a report for images that cannot be read; yields their rows [b,…].
Make = Callable[[np.ndarray, Report], Iterator[Tensor]]
_NAME = re.compile(r"(\d+)-(\d+)-([0-9a-f]{16})\.npy")


@dataclass(frozen=True)
class _Part:
    """Rows first..stop-1."""

    first: int
    stop: int
    checksum: str
    file: Path

    @cached_property
    def rows(self) -> np.ndarray:
        """Mapped shared, or privately where a FUSE file system refuses that, or read. OSError, ValueError: damaged."""
        with suppress(OSError):
            return np.load(self.file, mmap_mode="r", allow_pickle=False)
        with suppress(OSError):
            return np.load(self.file, mmap_mode="c", allow_pickle=False)
        return np.load(self.file, allow_pickle=False)


class Rows(Sequence[np.ndarray]):
    """n ≥ 1 rows from part files, which are memory-mapped where the file system can do that."""

    def __init__(self, parts: Sequence[_Part], n: int) -> None:
        self._parts: list[_Part] = []  # each gives rows up to the first of the next
        self.unreadable: dict[str, str] = {}  # images that could not be read, name → what is wrong
        for part in parts:  # in order; they may overlap, and not all are needed
            if part.first <= (self._parts[-1].stop if self._parts else 0) < min(part.stop, n):
                self._parts.append(part)
            with suppress(OSError, ValueError, TypeError):
                if part.first < n:
                    self.unreadable |= json.loads(part.file.with_suffix(".json").read_text(encoding="utf-8"))
        self._firsts = [part.first for part in self._parts]
        first = self._parts[0].rows
        self.shape, self.dtype = (n, *first.shape[1:]), first.dtype

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, which: Any) -> Any:
        """Row i, rows of a slice, or of an array of indices: an array."""
        if not isinstance(which, slice) and np.ndim(which) == 0:
            return self[[range(len(self))[which]]][0]
        indices = np.arange(len(self))[which] if isinstance(which, slice) else np.asarray(which)
        found = np.empty((len(indices), *self.shape[1:]), self.dtype)
        part_of = np.searchsorted(self._firsts, indices, side="right") - 1
        for number in np.unique(part_of).tolist():
            places, part = part_of == number, self._parts[number]
            found[places] = part.rows[indices[places] - part.first]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)


class Shards:
    """The part files of some work in `folder`, and in `otherwise`, where new ones go if that cannot be written."""

    def __init__(self, folder: Path, otherwise: Path | None = None) -> None:
        self._folder, self._otherwise = folder, otherwise

    def read(self, n: int | None = None) -> Rows | None:
        """The first n rows, or all; None if some are missing or damaged, or there is none."""
        n = n or max((part.stop for part in self._parts()), default=0)
        parts = self._whole_parts()
        return Rows(parts, n) if n and not _gaps(parts, n) else None

    def fill(
        self,
        job: Job,
        n: int,
        like: np.ndarray,  # of a row's shape and type
        make: Make,
        *,
        what: str,  # the work, for the progress bar
        size: int = ROWS,
        of: int | None = None,  # how many images the data set has that they are of, where that is not n
    ) -> Rows:
        """Compute the rows that are missing of the first n, each process its share of the part files.

        job: its processes share the work; its signals stop it after a batch, and the same command goes on. size: rows
        of a part file. A multiple of `make`'s batch size gives each batch the same rows, however many processes.
        UserError: there is not enough room, or too many images cannot be read. RunError: another process does not get
        on. SystemExit: a signal asked to stop.
        """
        # Machines with copies of the data of their own, whose files have other times, name the folder otherwise.
        self._folder, self._otherwise = job.ranks.from_first(lambda: (self._folder, self._otherwise))
        folder, pieces = job.ranks.from_first(lambda: self._to_do(job, n, size, like))
        mine = pieces[job.ranks.rank :: job.ranks.count]
        if mine:
            _compute(job, folder, n, mine, like, make, what)
        job.wait_for(lambda: sum(stop - first for first, stop in _gaps(self._parts(), n)), f"rows in {folder}")
        rows = Rows(self._parts(), n)
        if rows.unreadable:
            job.bad_images(rows.unreadable, of or n)
        return rows

    def _to_do(self, job: Job, n: int, size: int, like: np.ndarray) -> tuple[Path, list[tuple[int, int]]]:
        """Where new parts go, and which; damaged ones are deleted."""
        gaps = _gaps(self._whole_parts(delete_damaged=job.warn), n)
        pieces = [(first, min(first + size, stop)) for start, stop in gaps for first in range(start, stop, size)]
        folder = self._folder
        if pieces:
            if self._otherwise and not can_be_written(folder):
                job.warn(f"{folder.parent} cannot be written: {self._otherwise.parent} is used in its place")
                folder = self._otherwise
            make_folder(folder)
            remove_remains(folder, older_than_s=86_400.0)
            needed, free = sum(stop - first for first, stop in pieces) * like.nbytes, free_space(folder)
            if needed > free:
                raise UserError(f"{folder}: {tell_bytes(needed)} more is needed, {tell_bytes(free)} is free: make room")
        return folder, pieces

    def _parts(self) -> list[_Part]:
        """By their names alone, in order."""
        folders = [folder for folder in (self._folder, self._otherwise) if folder and folder.is_dir()]
        files = [file for folder in folders for file in folder.iterdir()]  # unlike glob(), refuses what it may not read
        found = [(name, file) for file in files if (name := _NAME.fullmatch(file.name))]
        parts = [_Part(int(name[1]), int(name[2]), name[3], file) for name, file in found]
        return sorted(parts, key=lambda part: (part.first, part.stop))

    def _whole_parts(self, delete_damaged: Callable[[str], None] | None = None) -> list[_Part]:
        whole = []
        for part in self._parts():
            with suppress(OSError, ValueError):
                if _checksum(part.file.read_bytes()) == part.checksum and len(part.rows):
                    whole.append(part)
                    continue
            if delete_damaged:
                delete_damaged(f"WARNING: {part.file} is damaged: it is computed anew")
                with suppress(OSError):
                    part.file.unlink()
        return whole


def _compute(
    job: Job, folder: Path, n: int, pieces: Sequence[tuple[int, int]], like: np.ndarray, make: Make, what: str
) -> None:
    unreadable: dict[str, str] = {}

    def report(found: Mapping[str, str], images: int) -> None:
        unreadable.update(found)
        job.bad_images(found, images)

    indices = np.concatenate([np.arange(first, stop) for first, stop in pieces])
    batches, waiting = make(indices, report), np.empty((0, *like.shape), like.dtype)
    share = f"{what}, share of {job.ranks.count} processes" if job.ranks.count > 1 else what
    others = n - len(indices) if job.ranks.count == 1 else 0
    with job.progress(share, others + len(indices), "image", done=others) as progress:
        for first, stop in pieces:
            while len(waiting) < stop - first:
                batch = next(batches).cpu().numpy().astype(like.dtype, copy=False)
                waiting = np.concatenate([waiting, batch]) if len(waiting) else batch
                progress.update(len(batch))
                job.check()
            rows, waiting = waiting[: stop - first], waiting[stop - first :]
            _write(folder, first, stop, rows, unreadable)
            unreadable.clear()


def _write(folder: Path, first: int, stop: int, rows: np.ndarray, unreadable: Mapping[str, str]) -> None:
    """A part, and beside it, first, which of its images could not be read."""
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(rows), allow_pickle=False)
    path = folder / f"{first:08d}-{stop:08d}-{_checksum(content.getvalue())}.npy"
    if unreadable:
        with whole_file(path.with_suffix(".json")) as out:
            out.write(json.dumps(dict(unreadable)).encode())
    with whole_file(path) as out:
        out.write(content.getbuffer())


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _gaps(parts: Sequence[_Part], n: int) -> list[tuple[int, int]]:
    """Ranges of the first n rows that no part holds."""
    gaps, done = [], 0
    for part in parts:
        if done < min(part.first, n):
            gaps.append((done, min(part.first, n)))
        done = max(done, part.stop)
    return gaps + ([(done, n)] if done < n else [])
