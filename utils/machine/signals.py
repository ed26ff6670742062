"""Ending on a signal of a batch scheduler or of Ctrl-C: finish the step, save, and say how to go on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import NoReturn

from hparams import launch
from utils.machine.progress import say

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAVING = signal.SIGUSR1
SECONDS_AFTER_SIGTERM = 30.0  # that a worker goes on if the system does not tell whose SIGTERM it got


class Stopped(Exception):  # noqa: N818
    """A signal asked to stop while this process waited for something."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}")
        self.number = number


class Signals:
    """In a `with` block, SIGTERM, SIGINT and SIGHUP set `stop`, and SIGUSR1 sets `save`. A second stop exits at once.

    Under nohup, SIGHUP (a closed terminal) is ignored. Under torchrun a second stop does nothing, since both scheduler
    and torchrun may send one. Forked workers inherit the handlers: they ignore all but SIGTERM, which ends them.
    """

    def __init__(self) -> None:
        self.stop: signal.Signals | None = None
        self.save = False
        self._pid = os.getpid()
        self._former = ExitStack()  # puts the former handlers back

    def __enter__(self) -> Signals:
        for number in (*STOPPING, SAVING):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._former.callback(signal.signal, number, signal.signal(number, self._handle))
        return self

    def __exit__(self, *_: object) -> None:
        self._former.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
        elif number == SAVING:
            self.save = True
        elif self.stop is None:
            self.stop = signal.Signals(number)
        elif not launch.launched():
            os._exit(exit_code(signal.Signals(number)))


def raise_if_stopped() -> None:
    """For long waits of one process. Raises Stopped if it is in a block of `Signals` and was asked to stop."""
    signals = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(signals, Signals) and signals.stop:
        raise Stopped(signals.stop)


@contextmanager
def holding_sigterm() -> Iterator[None]:
    """Block SIGTERM, for workers that start in this block until they call `heed_parent_alone`."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def heed_parent_alone(worker: int) -> None:
    """Make this worker process end on its parent's SIGTERM only; `worker` is its number, which DataLoader passes.

    Schedulers send SIGTERM to all processes of a job, and the parent, which finishes its step and saves, still needs
    its workers. macOS does not tell who sent a signal: there the worker goes on for `SECONDS_AFTER_SIGTERM`, or until
    its parent is gone. Other signals are ignored here too, as spawned workers (macOS) inherit no handlers.
    """
    parent = multiprocessing.parent_process()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def heed() -> None:
        if hasattr(signal, "sigwaitinfo"):
            while parent and signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
                pass
        elif parent:
            signal.sigwait({signal.SIGTERM})
            parent.join(SECONDS_AFTER_SIGTERM)
        os._exit(0)

    try:
        threading.Thread(target=heed, name="signals", daemon=True).start()
    except RuntimeError:  # no more threads; with SIGTERM blocked, the parent would wait for this worker forever
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        raise
    for number in (signal.SIGINT, signal.SIGHUP, SAVING):
        signal.signal(number, signal.SIG_IGN)


def end_politely(number: signal.Signals) -> NoReturn:
    """End this process after its work was saved, and say that the same command goes on."""
    say(f"stopped by {number.name}: the same command goes on from here")
    raise SystemExit(exit_code(number))


def exit_code(number: signal.Signals) -> int:
    """The exit status that shells give to a signal: SIGTERM 143, SIGINT 130, SIGHUP 129."""
    return 128 + number
