"""What a run writes as it goes: the truth about it, in its run folder. Sinks show that, and each may be missing."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from utils.data.pictures import save_png
from utils.machine import progress
from utils.machine.files import make_folder, whole_file
from utils.runs.logged import LineFile, keep_metrics, read_newest
from utils.runs.results import results_table
from utils.runs.run_folder import RunFolder
from utils.runs.sink import Sink

ALL = sys.maxsize  # a step after all others
SECONDS_BETWEEN_WRITES = 15.0  # of `newest.json`, which is written whole each time


class Record:
    """Writes `log.txt`, `metrics.jsonl`, `images/` and `newest.json`, and hands the same on to `sinks`.

    `newest.json` holds what has no history: the newest histograms, tables and texts. resume_step: keep log, newest
    things, and metrics up to this step (`ALL`: all); None starts them afresh. quiet: the terminal gets only warnings.
    """

    def __init__(self, folder: RunFolder, *, resume_step: int | None, quiet: bool = False) -> None:
        make_folder(folder.path)
        self.sinks: list[Sink] = []
        self._folder, self._quiet = folder, quiet
        damaged = keep_metrics(folder.metrics, resume_step) if folder.metrics.exists() else 0
        self._log = LineFile(folder.log, "wb" if resume_step is None else "ab")
        self._metrics: LineFile | None = None
        if resume_step is None:
            folder.newest.unlink(missing_ok=True)
        self._newest = read_newest(folder.newest)
        self._unwritten, self._failed, self._next_write = False, False, 0.0
        if damaged:
            told = f"{damaged} damaged lines are left out; curves and logs lack their steps"
            self.warn(f"WARNING: {folder.metrics}: {told}")

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

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Numbers after a step, by name. Those that are not finite become null in `metrics.jsonl`."""
        self._metrics = self._metrics or LineFile(self._folder.metrics, "ab")
        written = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._metrics.write(json.dumps({"step": step, "split": split, **written}) + "\n")
        self._tell("scalars", step, split, values)

    def picture(self, step: int | None, name: str, picture: np.ndarray, *, write: bool = True) -> None:
        """A picture uint8 [3,H,W], written to `images/<name>_<step>.png` or `<name>.png`, unless the caller does so."""
        self._tell("picture", step, name, picture)
        if write:
            save_png(self._folder.images / f"{name if step is None else f'{name}_{step}'}.png", picture)

    def histogram(self, step: int, name: str, values: Iterable[float]) -> None:
        """The newest values, of which each has its place; they need not be finite."""
        whole = np.asarray(values, dtype=np.float64)
        self._tell("histogram", step, name, whole)
        self._keep("histograms", name, {"step": step, "values": [v if math.isfinite(v) else None for v in whole]})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table in place of the last one of its name; each row has a value (None: blank) for each column."""
        self._tell("table", name, columns, rows)
        self._keep("tables", name, {"columns": list(columns), "rows": [list(row) for row in rows]})

    def results(self) -> None:
        """Show what is in `results.json` as a table."""
        self._tell("table", "results", *results_table(self._folder.results))

    def text(self, name: str, text: str) -> None:
        """Plain text in place of the last one of its name."""
        self._tell("text", name, text)
        self._keep("texts", name, text)

    def sync(self) -> None:
        """Make metrics and newest things durable, as far as the disk takes them."""
        if self._metrics:
            self._metrics.sync()
        self._write_newest()

    def draw(self) -> None:
        """Bring sinks up to date that are drawn now and then, such as the summary page."""
        self._write_newest()
        self._tell("draw")

    def close(self) -> None:
        """Close sinks and files; each sink waits some seconds at most, as its module says."""
        self._write_newest()
        self._tell("close")
        if self._metrics:
            self._metrics.close()
        self._log.close()

    def _tell(self, method: str, *arguments: Any) -> None:
        for sink in self.sinks:
            getattr(sink, method)(*arguments)

    def _keep(self, kind: str, name: str, value: Any) -> None:
        self._newest[kind][name] = value
        self._unwritten = True
        if time.monotonic() >= self._next_write:
            self._write_newest()

    def _write_newest(self) -> None:
        if not self._unwritten:
            return
        self._next_write = time.monotonic() + SECONDS_BETWEEN_WRITES
        try:
            with whole_file(self._folder.newest) as file:
                file.write(json.dumps(self._newest, default=str).encode())
            self._unwritten = self._failed = False
        except OSError as error:
            if not self._failed:
                self.warn(f"{self._folder.newest}: {error.strerror}: kept in memory until it can be written")
            self._failed = True


class NoRecord:
    """Stands for the record where nothing is to be written: lines go to the terminal alone, all else nowhere."""

    def __init__(self, quiet: bool) -> None:
        self.say = (lambda _: None) if quiet else progress.say
        self.warn = progress.say

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None
