"""The files of numbers that a run writes, `metrics.jsonl` and `newest.json`. Imports no torch."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from utils.machine.files import whole_file


class LineFile:
    """A text file that outlives a full disk: what cannot be written waits in memory. Several threads may write."""

    def __init__(self, path: Path, mode: Literal["wb", "ab"]) -> None:
        self._path, self._file = path, path.open(mode, buffering=0)
        self._waiting, self._failed = b"", False
        self._lock = threading.Lock()

    def write(self, text: str) -> None:
        """Append text, now or when the disk takes it; the first failure is said on stderr. Once closed, nothing."""
        with self._lock:
            if self._file.closed:  # a sink's thread may still wait for a server that hangs
                return
            self._waiting += text.encode(errors="backslashreplace")  # names of files may be any bytes
            try:
                while self._waiting:
                    self._waiting = self._waiting[self._file.write(self._waiting) :]
                self._failed = False
            except OSError as error:
                if not self._failed:
                    told = f"{self._path}: {error.strerror}: lines wait in memory until it can be written"
                    print(told, file=sys.stderr)
                self._failed = True

    def sync(self) -> None:
        """Flush to disk; a disk that fails is left to the next write to report."""
        with suppress(OSError):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, once more trying to write what waits."""
        self.write("")
        with self._lock:
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; what is none, such as a last one that was cut off, is passed over."""
    return [line for _, line in metrics_lines(path) if line]


def read_newest(path: Path) -> dict[str, dict[str, Any]]:
    """Histograms, tables and texts of a `newest.json`, by kind and name; what is missing or damaged is left out."""
    found: dict[str, dict[str, Any]] = {"histograms": {}, "tables": {}, "texts": {}}
    with suppress(OSError, ValueError, RecursionError, AttributeError):  # AttributeError: it holds no mapping
        content = json.loads(path.read_text(encoding="utf-8"))
        found |= {kind: content[kind] for kind in found if isinstance(content.get(kind), dict)}
    return found


def keep_metrics(path: Path, last_step: int | None) -> int:
    """Rewrite a `metrics.jsonl` without lines after a step (None: all). Returns how many were damaged, not cut off."""
    damaged = 0
    with whole_file(path) as out:
        for text, line in metrics_lines(path) if last_step is not None else ():
            if line is None:
                damaged += text.endswith("\n")
            elif line["step"] <= last_step:
                out.write(text.rstrip("\n").encode() + b"\n")
    return damaged


def metrics_lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each line as text and read, one at a time: those of a long run take 150 MB. None for what is no line of ours."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                line = None
            whole = isinstance(line, dict) and type(line.get("step")) is int and isinstance(line.get("split"), str)
            yield text, line if whole else None
