"""What a run writes as it goes: `log.txt` for people, `metrics.jsonl` for programs."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from utils.files import whole_file


class RunLog:
    """Lines to the terminal and `log.txt`; one JSON object per logged step to `metrics.jsonl`.

    resume_step: keep the metrics up to this step and drop later ones, which will come again; None starts afresh.
    """

    def __init__(self, log_file: Path, metrics_file: Path, *, resume_step: int | None) -> None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        self._metrics_file = metrics_file
        if metrics_file.exists():
            kept = (
                []
                if resume_step is None
                else [line for line in read_metrics(metrics_file) if line["step"] <= resume_step]
            )
            with whole_file(metrics_file) as out:
                out.writelines(json.dumps(line).encode() + b"\n" for line in kept)
        self._log = LineFile(log_file, "wb" if resume_step is None else "ab")
        self._metrics = LineFile(metrics_file, "ab")

    def say(self, text: str) -> None:
        """A line (or several) for people."""
        print(text, flush=True)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self._log.write("".join(f"{stamp}  {line}\n" for line in text.splitlines()))

    def record(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """A line for programs. Values that are not finite become null."""
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._metrics.write(json.dumps({"step": step, "split": split, **values}) + "\n")

    def close(self) -> None:
        """Close both files."""
        self._log.close()
        self._metrics.close()


class LineFile:
    """A text file that outlives a full disk: what cannot be written waits in memory for the next write."""

    def __init__(self, path: Path, mode: Literal["wb", "ab"]) -> None:
        self._file = path.open(mode, buffering=0)
        self._path = path
        self._waiting = b""
        self._failed = False

    def write(self, text: str) -> None:
        """Append text, now or when the disk takes it; the first failure is said on stderr."""
        self._waiting += text.encode()
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
            self._failed = False
        except OSError as error:
            if not self._failed:
                print(f"{self._path}: {error.strerror}: lines wait in memory until it can be written", file=sys.stderr)
            self._failed = True

    def close(self) -> None:
        """Close the file, once more trying to write what waits."""
        self.write("")
        self._file.close()


def read_metrics(path: Path) -> list[dict]:
    """The lines of a `metrics.jsonl`; a last one that was cut off is passed over."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def tell(metrics: Mapping[str, float]) -> str:
    """Metrics in one aligned line."""
    return "  ".join(
        f"{name} {value:<9.4g}" if abs(value) < 1e5 else f"{name} {value:<9.3e}" for name, value in metrics.items()
    )


def tell_duration(seconds: float) -> str:
    """Seconds in words: `42 s`, `3 min 20 s`, `5 h 10 min`, `9 d 4 h`."""
    seconds = int(seconds)
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= length:
            return f"{seconds // length} {unit} {seconds % length // part} {smaller}"
    return f"{seconds} s"
