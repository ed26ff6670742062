"""When the processes of a run tell each other of signals and of bad images."""

from __future__ import annotations

import time
from collections.abc import Callable

MOST_STEPS = 10  # as a message after every step would cost where steps take milliseconds
LONGEST_MS = 1000  # torchrun ends a process half a minute after SIGTERM


class Rhythm:
    """After which steps of a run its processes agree: after `MOST_STEPS`, or sooner where these take `LONGEST_MS`.

    Args:
        start: the number of updates done when the run starts.
        clock: seconds, from any time on.
    """

    def __init__(self, start: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._step, self._time = start, clock()
        self._next = start + 1

    def due(self, done: int) -> bool:
        """Whether they agree after `done` updates."""
        return done >= self._next

    def elapsed_ms(self) -> int:
        """By this process's clock, since they last agreed."""
        return round(1000 * (self._clock() - self._time))

    def agreed(self, done: int, elapsed_ms: int) -> None:
        """They did, after `done` updates, also on how long it had been: so the next time is the same for all."""
        steps = LONGEST_MS * (done - self._step) // max(1, elapsed_ms)
        self._step, self._time = done, self._clock()
        self._next = done + min(MOST_STEPS, max(1, steps))
