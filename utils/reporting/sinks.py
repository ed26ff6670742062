"""The sinks that `--sinks` names, and what keeps a run from waiting for one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from utils.reporting.board import replay
from utils.reporting.summary import Summary
from utils.reporting.visdom import Server, Visdom
from utils.runs.record import Record
from utils.runs.run_folder import RunFolder
from utils.runs.sink import Sink

SECONDS_TO_CLOSE = {"visdom": 5.0, "summary": 30.0, "tensorboard": 30.0, "wandb": 30.0}  # a run's end waits no longer
SECONDS_BETWEEN_LOOKS = 1.0  # whether a server is back
MOST_WAITING = 10_000  # calls that a sink has not taken, before it is given up


def _queued(method: str) -> Any:
    return lambda sink, *arguments: sink._call(method, *arguments)


class InBackground(Sink):
    """Makes a sink's calls in a thread of their own, in order. Where the sink fails for good, the run goes on.

    name: as in `--sinks`. open_sink: makes the sink, in that thread. warn: takes the one line about a failure.
    """

    def __init__(self, name: str, open_sink: Callable[[], Sink], warn: Callable[[str], None]) -> None:
        self._name, self._warn = name, warn
        self._calls: SimpleQueue[tuple[str, tuple[Any, ...]]] = SimpleQueue()
        self._over = False
        self._thread = threading.Thread(target=self._work, args=(open_sink,), name=name, daemon=True)
        self._thread.start()

    scalars, picture, histogram, table, text, draw = map(
        _queued, ("scalars", "picture", "histogram", "table", "text", "draw")
    )

    def close(self) -> None:
        """Wait up to `SECONDS_TO_CLOSE` for the sink to show what is left. May be called twice."""
        given_up = self._over
        self._call("close")
        self._over = True
        self._thread.join(SECONDS_TO_CLOSE[self._name])
        if self._thread.is_alive() and not given_up and self._name != "visdom":  # which speaks of its outages itself
            self._give_up("the run's end could not wait longer for it")

    def _call(self, method: str, *arguments: Any) -> None:
        if self._over:
            return
        if self._calls.qsize() >= MOST_WAITING:
            self._give_up("it does not keep up")
        self._calls.put((method, arguments))

    def _give_up(self, reason: str) -> None:
        self._over = True
        self._warn(
            f"--sinks {self._name}: {reason}: it shows no more of this run; experiments/replay_dashboard.py "
            f"--sinks {self._name} shows all of it later"
        )

    def _work(self, open_sink: Callable[[], Sink]) -> None:
        try:
            sink, busy, method = open_sink(), True, ""
            while method != "close":
                try:
                    method, arguments = self._calls.get(not busy, SECONDS_BETWEEN_LOOKS)
                except Empty:
                    busy = sink.idle()
                else:
                    getattr(sink, method)(*arguments)
                    busy = True
        except Exception as error:  # whatever a service's own package raises
            self._give_up(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def open_sinks(record: Record, folder: RunFolder, settings: Mapping[str, Any], resume_step: int | None) -> None:
    """Let the sinks that a run's `settings`, by name, ask for show what `record` gets.

    resume_step: step up to which they keep what an earlier part of the run showed; None: the run is a new one.
    """

    def open_visdom() -> Sink:
        server = Server(settings["visdom_server"], settings["visdom_port"], settings["visdom_base_url"])
        view = Visdom(folder.name, server, settings, fresh=resume_step is None, warn=record.warn)
        if resume_step is not None:
            replay(folder, view, last_step=resume_step)
        return view

    own: dict[str, Callable[[], Sink]] = {"visdom": open_visdom, "summary": partial(Summary, folder, warn=record.warn)}
    for name in dict.fromkeys(settings["sinks"]):
        service = partial(open_service, name, folder, settings, resume_step)
        record.sinks.append(InBackground(name, own.get(name, service), record.warn))


def open_service(name: str, folder: RunFolder, settings: Mapping[str, Any], resume_step: int | None = None) -> Sink:
    """A sink whose package is installed only on demand."""
    if name == "tensorboard":
        from utils.reporting.tensorboard import TensorBoard

        return TensorBoard(folder, resume_step)
    from utils.reporting.wandb import WandB

    return WandB(folder, settings)
