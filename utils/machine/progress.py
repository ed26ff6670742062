"""Progress of long work: a bar on a terminal, elsewhere a plain line every so often."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TextIO

from tqdm import tqdm

from hparams import launch

SECONDS_BETWEEN_LINES = 30.0


tqdm.set_lock(threading.RLock())  # for the lock that it makes itself, Python 3.14 starts a process


def say(text: str) -> None:
    """Print a line on stdout, above any bar, and flush. Of several processes only the first prints."""
    if not launch.rank():
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def tell(metrics: Mapping[str, float]) -> str:
    """Metrics in one aligned line."""
    told = (f"{name} {value:<9{'.4g' if abs(value) < 1e5 else '.3e'}}" for name, value in metrics.items())
    return "  ".join(told).rstrip()


def tell_duration(seconds: float) -> str:
    """Seconds in words: `42 s`, `3 min 20 s`, `5 h 10 min`, `9 d 4 h`."""
    seconds = int(seconds)
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= length:
            return f"{seconds // length} {unit} {seconds % length // part} {smaller}"
    return f"{seconds} s"


class Progress(AbstractContextManager["Progress"]):
    """Shows how far work has come, its rate, the time left, and figures to watch, in a `with` block.

    A terminal gets a tqdm bar on stderr. Elsewhere `say` gets a line with the first figures, then one every
    `SECONDS_BETWEEN_LINES`, and one at the end. Of several processes only the first shows something.
    """

    def __init__(
        self,
        what: str,  # the work, as in "sampling"
        total: int,  # units to do
        unit: str,  # in the singular, as in "image"
        *,
        done: int = 0,  # units that an earlier run did; they do not count for the rate
        quiet: bool = False,  # show nothing
        say: Callable[[str], None] = say,  # takes the lines
        stream: TextIO | None = None,  # where the bar goes, if that is a terminal; None: stderr
    ) -> None:
        stream = stream or sys.stderr
        self._what, self._total, self._unit, self._done = what, total, unit, done
        self._say, self._quiet = say, quiet or launch.rank() > 0
        self._figures: dict[str, float] = {}
        self._bar: tqdm | None = None
        if stream.isatty() and not self._quiet:
            self._bar = tqdm(
                desc=what, total=total, unit=f" {unit}", initial=done, file=stream, dynamic_ncols=True, smoothing=0.05
            )
        self._last = (time.monotonic(), done)  # time and count at the last line, from which the rate is measured
        self._first: tuple[float, int] | None = None  # the same at the first line, for the time left
        self._finished: float | None = None  # when all was done

    def update(self, n: int = 1, /, **figures: float) -> None:
        """`n` more units are done; figures stay shown until others replace them."""
        self._done += n
        self._figures |= figures
        if self._bar is not None:
            if figures:
                self._bar.set_postfix_str(tell(self._figures), refresh=False)
            self._bar.update(n)
        elif not self._quiet:
            now = time.monotonic()
            if self._done >= self._total:  # the last line waits for the last figures
                self._finished = self._finished or now
            elif now - self._last[0] >= SECONDS_BETWEEN_LINES or (self._figures and not self._first):
                self._line(now)

    def close(self) -> None:
        """End the bar; it stays to be seen."""
        if self._bar is not None:
            self._bar.close()
        elif self._finished and self._last[1] < self._done:
            self._line(self._finished)

    def _line(self, now: float) -> None:
        # The time left from the first line on, so that one save or validation does not change it much.
        since = (self._last, self._first or self._last)
        rate, steady = ((self._done - done) / max(now - then, 1e-9) for then, done in since)
        left = tell_duration((self._total - self._done) / steady) if steady else "unknown time"
        count = f"{self._done:>{len(str(self._total))}}/{self._total}"
        parts = (self._what, f"{count} {self._unit}s", f"{rate:.3g} {self._unit}s/s", f"{left} left")
        self._say("  ".join((*parts, tell(self._figures))).rstrip())
        self._last = (now, self._done)
        self._first = self._first or self._last

    def __exit__(self, *_: object) -> None:
        self.close()
