"""Ending politely: a run finishes its step, saves, and says how to go on. For batch schedulers and Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import NoReturn

from hparams import launch
from utils.machine.distributed import ALONE, Ranks
from utils.machine.progress import say

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAVING = signal.SIGUSR1
SECONDS_AFTER_SIGTERM = 30.0  # that a worker goes on where the system does not say whose SIGTERM it got


class Stopped(Exception):  # noqa: N818
    """A signal asked to stop while this process waited for something; who runs the work ends it in its own way."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}")
        self.number = number


class Signals:
    """While in a `with` block: SIGTERM, SIGINT and SIGHUP set `stop`, SIGUSR1 sets `save`. A second stop exits at once.

    SIGHUP is a closed terminal; under nohup it is left alone.

    Under torchrun a second stop does nothing: a scheduler and torchrun may both pass on the same one, and torchrun ends
    what lingers.

    Worker processes that inherit the handlers leave Ctrl-C to this process; of SIGTERM see `heed_parent_alone`.
    """

    def __init__(self) -> None:
        self.stop: signal.Signals | None = None
        self.save = False
        self._pid = os.getpid()
        self._former: dict[signal.Signals, object] = {}

    def __enter__(self) -> Signals:
        for number in (*STOPPING, SAVING):
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._former:
            number, former = self._former.popitem()
            signal.signal(number, former)  # type: ignore[arg-type]

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
    """For waits that have no `check` of their own, since several processes cannot agree while one of them waits.

    Raises:
        Stopped: this process is in a block of `Signals`, and was asked to stop.
    """
    signals = _in_charge()
    if signals and signals.stop:
        raise Stopped(signals.stop)


def _in_charge() -> Signals | None:
    """The block of `Signals` that this process is in."""
    handler = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return handler if isinstance(handler, Signals) else None


@contextmanager
def holding_sigterm() -> Iterator[None]:
    """While in this block SIGTERM waits, and beyond it for workers that start there, until they `heed_parent_alone`."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def heed_parent_alone(worker: int) -> None:
    """Let this worker process end on its parent's SIGTERM only; `worker` is its number, as loaders tell it.

    Schedulers send SIGTERM to all processes of a job. The parent, which is to finish its step and save, would then find
    its workers dead. macOS does not say who sent a signal: there the worker goes on for `SECONDS_AFTER_SIGTERM` after
    anyone's SIGTERM, or until its parent is gone. Ctrl-C, a closed terminal and SIGUSR1 are the parent's too; workers
    that were spawned, as on macOS, have not inherited a handler that says so.
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
    except RuntimeError:  # no more threads: a worker that nothing ends would be waited for without end
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        raise
    for number in (signal.SIGINT, signal.SIGHUP, SAVING):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def ending_politely(ranks: Ranks = ALONE) -> Iterator[Callable[[], None]]:
    """While in this block: a signal to stop ends the process when it next calls what the block is given.

    For work whose own command goes on where it stopped. Several `ranks` enter the block and call it together, and end
    together. Inside of a block of `Signals` that one decides, and calls do nothing; nor do they in other threads than
    the first, which get no signals.
    """
    if _in_charge() or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    with Signals() as signals:

        def check() -> None:
            (number,) = ranks.agree(signals.stop or 0)
            if number:
                end_politely(signal.Signals(number))

        try:
            yield check
        except Stopped as stopped:
            end_politely(stopped.number)


def end_politely(number: signal.Signals) -> NoReturn:
    """End this process, what it did being safe, and say that its command goes on from there."""
    say(f"stopped by {number.name}: the same command goes on from here")
    raise SystemExit(exit_code(number))


def exit_code(number: signal.Signals) -> int:
    """Exit status of a process that a signal ended, as shells have it: SIGTERM 143, SIGINT 130, SIGHUP 129."""
    return 128 + number
