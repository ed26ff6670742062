"""The sinks that `--sinks` names, and what keeps a run from waiting for one."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from utils.reporting.board import replay
from utils.reporting.services import TensorBoard, WandB
from utils.reporting.visdom import Server, Visdom
from utils.runs.record import Record
from utils.runs.run_folder import RunFolder
from utils.runs.sink import Sink

SECONDS_TO_CLOSE = {"visdom": 5.0, "summary": 30.0, "tensorboard": 30.0, "wandb": 30.0}  # a run's end waits no longer
SECONDS_BETWEEN_LOOKS = 1.0  # whether a server is back
PROJECT = Path(__file__).parents[2]
MOST_WAITING = 10_000  # calls that a sink has not taken, before it is given up


def _queued(method: str) -> Any:
    return lambda sink, *arguments: sink._call(method, *arguments)


class InBackground(Sink):
    """Makes a sink, of a name in `--sinks`, and its calls in a thread of their own, in order.

    Where the sink fails for good, `warn` takes a line, and the run goes on.
    """

    def __init__(self, name: str, open_sink: Callable[[], Sink], warn: Callable[[str], None]) -> None:
        self._name, self._warn = name, warn
        self._calls: SimpleQueue[tuple[str, tuple[Any, ...]]] = SimpleQueue()
        self._over = False
        self._thread = threading.Thread(target=self._work, args=(open_sink,), name=name, daemon=True)
        self._thread.start()

    scalars, picture, histogram = map(_queued, ("scalars", "picture", "histogram"))
    table, text, draw = map(_queued, ("table", "text", "draw"))

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
            sink, method, wait = open_sink(), "", 0.0
            while method != "close":
                try:
                    method, arguments = self._calls.get(timeout=wait)
                    getattr(sink, method)(*arguments)
                    wait = 0.0
                except Empty:
                    sink.idle()
                    wait = SECONDS_BETWEEN_LOOKS
        except Exception as error:  # whatever a service's own package raises
            self._give_up(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


class Summary(Sink):
    """Draws a run's page in a process of low priority, which it waits for; once for all calls that come meanwhile."""

    def __init__(self, folder: RunFolder, warn: Callable[[str], None]) -> None:
        self._command = [sys.executable, "-m", "utils.reporting.summary", str(folder.root.absolute()), folder.name]
        self._path, self._warn = folder.summary, warn
        self._outdated = False

    def draw(self) -> None:
        self._outdated = True

    def idle(self) -> None:
        """Draw the page, if it is outdated."""
        if self._outdated:
            self._outdated = False
            # In our folder, as the user's may hold another package `utils`. A session of its own, as a signal to the
            # run's group must not cut the page short.
            options: Any = {"cwd": PROJECT, "start_new_session": True, "stdin": subprocess.DEVNULL}
            try:
                subprocess.run(self._command, check=True, capture_output=True, text=True, **options)
            except (OSError, subprocess.CalledProcessError) as error:
                problem = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1]
                self._warn(f"{self._path} was not drawn ({problem}); the run goes on")

    close = idle


def open_sinks(record: Record, folder: RunFolder, settings: Mapping[str, Any], resume_step: int | None) -> None:
    """Let the sinks that a run's `settings`, by name, ask for show what `record` gets.

    resume_step: step up to which they keep what an earlier part of the run showed; None: the run is a new one.
    """

    for name in dict.fromkeys(settings["sinks"]):
        opening = partial(open_sink, name, folder, settings, resume_step, record.warn)
        record.sinks.append(InBackground(name, opening, record.warn))


def open_sink(
    name: str, folder: RunFolder, settings: Mapping[str, Any], resume_step: int | None, warn: Callable[[str], None]
) -> Sink:
    """The sink of a name in `--sinks`."""
    if name == "visdom":
        server = Server(settings["visdom_server"], settings["visdom_port"], settings["visdom_base_url"])
        view = Visdom(folder.name, server, settings, warn)
        if resume_step is not None:
            replay(folder, view, last_step=resume_step)
        return view
    if name == "summary":
        return Summary(folder, warn)
    return TensorBoard(folder, resume_step) if name == "tensorboard" else WandB(folder, settings)
