"""Where the time of a loop goes, measured without waiting for the device."""

from __future__ import annotations

import time

import torch

MOST_EVENTS = 1000  # kept before those that the device has passed are added up


class Stopwatch:
    """Divides the time of a loop among its phases.

    A CPU is measured by the clock, CUDA by events in the stream: a phase costs the time for which it held up the
    device, and loading batches while the device is busy costs nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._seconds: dict[str, float] = {}
        self._last = 0.0
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self.start()

    def start(self) -> None:
        """Begin anew, now."""
        self._seconds, self._events = {}, []
        if self._cuda:
            self._events.append(("", self._event()))
        else:
            self._last = time.perf_counter()

    def mark(self, phase: str) -> None:
        """Count the time since the last mark to `phase`."""
        if self._cuda:
            self._events.append((phase, self._event()))
            if len(self._events) > MOST_EVENTS:
                self._add_up()
            return
        now = time.perf_counter()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def pop(self) -> dict[str, float]:
        """Seconds by phase since the last `pop` or `start`, up to the last mark. Waits for the device."""
        if self._cuda:
            self._events[-1][1].synchronize()
            self._add_up()
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _add_up(self) -> None:
        passed = 0
        for (_, before), (phase, event) in zip(self._events, self._events[1:], strict=False):
            if not event.query():
                break
            self._seconds[phase] = self._seconds.get(phase, 0.0) + before.elapsed_time(event) / 1000
            passed += 1
        del self._events[:passed]

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
