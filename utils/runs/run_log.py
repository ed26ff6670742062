"""What a run writes as it goes: `log.txt` for people, `metrics.jsonl` for programs."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from utils.machine import progress
from utils.machine.files import whole_file


class RunLog:
    """Lines to the terminal and `log.txt`; one JSON object per logged step to `metrics.jsonl`.

    resume_step: keep the metrics up to this step and drop later ones, which will come again; None starts afresh.
    quiet: of all lines the terminal gets only warnings.
    """

    def __init__(self, log_file: Path, metrics_file: Path, *, resume_step: int | None, quiet: bool = False) -> None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        damaged = _keep_metrics(metrics_file, resume_step) if metrics_file.exists() else 0
        self._log = LineFile(log_file, "wb" if resume_step is None else "ab")
        self._metrics = LineFile(metrics_file, "ab")
        self._quiet = quiet
        if damaged:
            self.warn(
                f"WARNING: {metrics_file}: {damaged} damaged lines are left out; curves and logs lack their steps"
            )

    def say(self, text: str) -> None:
        """A line (or several) for people, to terminal and log."""
        self.show(text)
        self.note(text)

    def warn(self, text: str) -> None:
        """A line that a quiet run shows too."""
        progress.say(text)
        self.note(text)

    def show(self, text: str) -> None:
        """A line for the terminal alone."""
        if not self._quiet:
            progress.say(text)

    def note(self, text: str) -> None:
        """A line (or several) for the log alone."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self._log.write("".join(f"{stamp}  {line}\n" for line in text.splitlines()))

    def record(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """A line for programs. Values that are not finite become null."""
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._metrics.write(json.dumps({"step": step, "split": split, **values}) + "\n")

    def sync(self) -> None:
        """Make the metrics durable, as far as the disk takes them."""
        self._metrics.sync()

    def close(self) -> None:
        """Close both files."""
        self._log.close()
        self._metrics.close()


class LineFile:
    """A text file that outlives a full disk: what cannot be written waits in memory for the next write.

    Several threads may write: the dashboard's warns.
    """

    def __init__(self, path: Path, mode: Literal["wb", "ab"]) -> None:
        self._file = path.open(mode, buffering=0)
        self._path = path
        self._waiting = b""
        self._failed = False
        self._lock = threading.Lock()

    def write(self, text: str) -> None:
        """Append text, now or when the disk takes it; the first failure is said on stderr. Once closed, nothing."""
        with self._lock:
            if self._file.closed:  # the dashboard's thread may still wait for a server that hangs
                return
            self._waiting += text.encode(errors="backslashreplace")  # names of files may be any bytes
            try:
                while self._waiting:
                    self._waiting = self._waiting[self._file.write(self._waiting) :]
                self._failed = False
            except OSError as error:
                if not self._failed:
                    reason = f"{error.strerror}: lines wait in memory until it can be written"
                    print(f"{self._path}: {reason}", file=sys.stderr)
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


def read_metrics(path: Path) -> list[dict]:
    """The lines of a `metrics.jsonl`; what is none, such as a last one that was cut off, is passed over."""
    return [line for _, line in _lines(path) if line]


def _keep_metrics(path: Path, last_step: int | None) -> int:
    """Rewrite a `metrics.jsonl` without the lines after a step (None: without any); how many of those read are damaged.

    A last line that was cut off is none of them: the process was killed as it wrote it.
    """
    damaged = 0
    with whole_file(path) as out:
        for text, line in _lines(path) if last_step is not None else ():
            if line is None:
                damaged += text.endswith("\n")
            elif line["step"] <= last_step:
                out.write(text.rstrip("\n").encode() + b"\n")
    return damaged


def _lines(path: Path) -> Iterator[tuple[str, dict | None]]:
    """Each line as text and read, one at a time: those of a long run take 150 MB. None for what is no line of ours."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                line = None
            whole = isinstance(line, dict) and type(line.get("step")) is int and isinstance(line.get("split"), str)
            yield text, line if whole else None
