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

from utils import progress
from utils.files import whole_file


class RunLog:
    """Lines to the terminal and `log.txt`; one JSON object per logged step to `metrics.jsonl`.

    resume_step: keep the metrics up to this step and drop later ones, which will come again; None starts afresh.
    quiet: of all lines the terminal gets only warnings.
    """

    def __init__(self, log_file: Path, metrics_file: Path, *, resume_step: int | None, quiet: bool = False) -> None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        if metrics_file.exists():
            with whole_file(metrics_file) as out:
                if resume_step is not None:
                    kept = (text for text, line in _lines(metrics_file) if line["step"] <= resume_step)
                    out.writelines(text.encode() + b"\n" for text in kept)
        self._log = LineFile(log_file, "wb" if resume_step is None else "ab")
        self._metrics = LineFile(metrics_file, "ab")
        self._quiet = quiet

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
    return [line for _, line in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[str, dict]]:
    """Each line as text and read, one at a time: those of a long run take 150 MB."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and type(line.get("step")) is int and isinstance(line.get("split"), str):
                yield text.rstrip("\n"), line
