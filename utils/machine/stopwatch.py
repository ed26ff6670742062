"""Where the time of a loop goes, measured without waiting for the device."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import Any

import torch


class Stopwatch:
    """Divides the time of a loop among its phases: a CPU's by the clock, CUDA's by events in the stream.

    There a phase costs the time for which it held up the device; loading batches while that is busy costs nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        self.start()

    def start(self) -> None:
        """Begin anew, now."""
        self._seconds: Counter[str] = Counter()
        self._marks: deque[tuple[str, Any, Any]] = deque()  # phases that the device has not passed: begin and end
        self._last = self._now()

    def mark(self, phase: str) -> None:
        """Count the time since the last mark to `phase`."""
        begin, self._last = self._last, self._now()
        self._marks.append((phase, begin, self._last))
        self._add_up()

    def pop(self) -> dict[str, float]:
        """Seconds by phase since the last `pop` or `start`, up to the last mark. Waits for the device."""
        if self._cuda:
            self._last.synchronize()
        self._add_up()
        seconds, self._seconds = self._seconds, Counter()
        return dict(seconds)

    def _add_up(self) -> None:
        while self._marks and (not self._cuda or self._marks[0][2].query()):
            phase, begin, end = self._marks.popleft()
            self._seconds[phase] += begin.elapsed_time(end) / 1000 if self._cuda else end - begin

    def _now(self) -> Any:
        """The time, or an event in CUDA's stream."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
