"""A run's panes in visdom, kept in the run folder as well.

Every event goes first to a log file in visdom's own format, which `visdom.Visdom().replay_log` reads, and then to the
server from a thread of its own: no other asks it anything. A server that is missing, refuses, hangs, is slow, dies or
comes back, however often, therefore costs the run one warning per outage and `SECONDS_TO_CLOSE` in all, which `close`
waits at most for the last panes. Before anything is sent, at the start and after each outage, what answers must have
shown visdom's page.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import TextIO

import numpy as np

from hparams.errors import UserError
from hparams.settings.stages import RunSettings
from utils.reporting import panes
from utils.reporting.panes import Event, Message, apply_event, events_of, read_panes
from utils.reporting.visdom_server import Server

LONGEST_BACKLOG = 50  # events of a pane that wait for the server, before the whole pane replaces them
SLACK_BYTES = 12_000_000  # what the log may grow by before it is rewritten without what was replaced or left out
SECONDS_TO_CLOSE = 5.0  # what the end of a run waits for the server at most
SHARE_OF_ATTEMPTS = 0.01  # of a run's time, for attempts to write a log that a full disk does not take


def environment(run: str) -> str:
    """Name of a run's visdom environment, and of no other's: slashes become ~.

    visdom itself would make them underscores, and show a/b and a_b on one page. It takes a plus for two pages beside
    each other, and puts names into its page's script and into addresses as they are: characters that mean something
    there become their number.
    """
    name = run.replace("^", "^^").replace("~", "^~").replace("/", "~")
    return re.sub(r"""[+'"\\<>&#?%]""", lambda match: f"^{ord(match[0]):x}", name)


class Dashboard:
    """Panes of one run, in the visdom environment that `environment` names.

    No method waits for the server but `close`, which must be called, or the object be used in a `with` block, for the
    last panes to arrive.

    Args:
        run: name of the run.
        log_file: where events are recorded; its folder must exist.
        server, port, base_url: address of the visdom server; server None: the log file alone, nothing is sent.
        warn: takes the one line per outage; called from another thread.
        resume_step: step at which the run continues the one that `log_file` records: its curves are cut after that step
            and go on. None: a new run, which replaces the file and the environment's panes.
        retry_seconds: pause between attempts to reach a server that failed; the least one between attempts to write
            a log file that failed.

    A log file that cannot be written costs one warning; it is written anew, with everything, once that works again.
    That is tried for `SHARE_OF_ATTEMPTS` of the run's time, and by `close`, which says if plots are lost.
    """

    def __init__(
        self,
        run: str,
        log_file: Path,
        server: str | None = "http://localhost",
        port: int = 8097,
        base_url: str = "/",
        *,
        warn: Callable[[str], None],
        resume_step: int | None = None,
        retry_seconds: float = 10.0,
    ) -> None:
        self._env = environment(run)
        self._log_file = log_file
        self._server = Server(server, port, base_url) if server is not None else None
        self._warn = warn
        self._retry_seconds = retry_seconds
        self._panes: dict[str, Message] = {}
        self._stale = resume_step is None  # the server's panes are of another run
        if resume_step is not None and log_file.exists():
            kept = read_panes(log_file, resume_step)
            self._panes = {window: {**message, "eid": self._env} for window, message in kept.items()}
        self._log: TextIO | None = None
        self._log_failed = False
        self._next_attempt = 0.0
        self._keep(())

        self._pending: dict[str, list[Event]] = {}  # by window: what the server has not got yet, oldest window first
        self._closing = False
        self._changed = threading.Condition()  # guards _panes, _pending and _closing
        self._thread: threading.Thread | None = None
        if self._server:
            self._resend_all()
            self._thread = threading.Thread(target=self._deliver, args=(self._server,), name="dashboard", daemon=True)
            self._thread.start()

    def __enter__(self) -> Dashboard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reserve(self, window: str, content: Message) -> None:
        """A place for a pane, with content (see `panes`) until there is more; panes stand in this order.

        A pane that is there already keeps its content.
        """
        if window not in self._panes:
            self._show(window, content)

    def line(self, window: str, step: int, values: Mapping[str, float], *, title: str, ylabel: str) -> None:
        """Append one point per curve of `values` (name → value; nan and ±inf show as gaps).

        Points too close to the curve's last one to be seen are left out, so that long runs stay quick to draw.
        """
        known: dict[str, Message] = {}
        if window in self._panes:
            known = {curve["name"]: curve for curve in self._panes[window]["data"]}
        if not values.keys() <= known.keys():  # a new pane, or a new curve in it: visdom needs the pane's whole looks
            content = panes.curves([*known, *(name for name in values if name not in known)], title, "step", ylabel)
            content["data"] = [panes.copy_of_curve(known.get(curve["name"], curve)) for curve in content["data"]]
            self._show(window, content)
            known = {curve["name"]: curve for curve in self._panes[window]["data"]}
        points = [
            {"x": [int(step)], "y": [panes.shown(values[name])], "type": "scatter"}
            if name in values and panes.far_enough(curve["x"], step)
            else {"x": [], "y": [], "type": "scatter"}
            for name, curve in known.items()
        ]
        if any(point["x"] for point in points):
            message = {"win": window, "eid": self._env, "data": points, "append": True}
            self._record(Event("update", message))

    def images(
        self,
        window: str,
        grid: np.ndarray,
        *,
        title: str,
        step: int | None = None,
        largest: int = panes.LARGEST_SIDE,
    ) -> None:
        """Show a picture, uint8 [3,H,W]; sides over `largest` pixels are scaled down.

        In place of the window's last one, but with a `step` as its newest: a slider goes back to `MOST_PICTURES` older
        ones, the more thinned the older they are.

        Raises:
            ValueError: another shape or dtype.
        """
        content = panes.picture(grid, title, step=step, largest=largest)
        if step is not None and window in self._panes and self._panes[window]["data"][0]["type"] == "image_history":
            self._record(Event("update", {"win": window, "eid": self._env, **content}))
        else:
            self._show(window, content)

    def bars(
        self,
        window: str,
        values: Sequence[float] | np.ndarray,
        *,
        title: str,
        xlabel: str,
        ylabel: str,
        first: int = 0,
    ) -> None:
        """Show one bar per value, numbered from `first`, in place of the window's last ones."""
        self._show(window, panes.bars(values, title, xlabel, ylabel, first))

    def text(self, window: str, text: str, *, title: str) -> None:
        """Show plain text, line breaks and spaces kept, in place of the window's last one."""
        self._show(window, panes.text(text, title))

    def table(self, window: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str) -> None:
        """Show a table, in place of the window's last one; each row has a value (None: blank) for each column."""
        self._show(window, panes.table(columns, rows, title))

    def close(self) -> None:
        """Wait up to `SECONDS_TO_CLOSE` for the last panes to reach the server, if it answers. May be called twice."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        if self._log is None:
            self._keep((), last=True)
        if self._thread:
            self._thread.join(SECONDS_TO_CLOSE)
        self._drop_log()

    def _show(self, window: str, content: Message) -> None:
        self._record(Event("events", {"win": window, "eid": self._env, **content}))

    def _record(self, event: Event) -> None:
        window = event.message["win"]
        with self._changed:
            # The thread gets copies: this one goes on appending to the curves.
            thinned = apply_event(self._panes, Event(event.endpoint, panes.copy_of(event.message)))
            if self._thread:
                backlog = self._pending.setdefault(window, [])
                backlog.append(event)
                if event.endpoint == "events" or thinned or len(backlog) > LONGEST_BACKLOG:
                    backlog[:] = events_of(self._panes[window])
                self._changed.notify_all()
        self._keep([event])

    def _keep(self, events: Sequence[Event], *, last: bool = False) -> None:
        """Record events that the panes have already; without an open log, all panes, if that is due or `last`."""
        begin = monotonic()
        if self._log is None and begin < self._next_attempt and not last:
            return
        try:
            if self._log:
                self._log.writelines(json.dumps(event) + "\n" for event in events)
                self._log.flush()
            if self._log is None or self._log.tell() > self._log_limit:
                self._drop_log()
                self._log = self._start_log()
            self._log_failed = False
        except OSError as error:
            self._drop_log()
            if last or not self._log_failed:
                fate = "its newest plots are lost" if last else "plots are kept in memory until it can be written"
                self._warn(f"dashboard: {self._log_file}: {error.strerror}: {fate}")
            self._log_failed = True
            now = monotonic()
            self._next_attempt = now + max(self._retry_seconds, (now - begin) / SHARE_OF_ATTEMPTS)

    def _drop_log(self) -> None:
        if self._log:
            with contextlib.suppress(OSError):  # closing writes what an earlier write could not
                self._log.close()
        self._log = None

    def _start_log(self) -> TextIO:
        """Write the events that make all panes in place of the log so far; returns the new file, open for more."""
        temporary = self._log_file.with_name(self._log_file.name + ".tmp")
        try:
            with temporary.open("w", encoding="utf-8") as out:
                for message in self._panes.values():
                    out.writelines(json.dumps(event) + "\n" for event in events_of(message))
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(self._log_file)
        finally:
            with contextlib.suppress(OSError):  # it is there only where it could not be written
                temporary.unlink(missing_ok=True)
        self._log_limit = self._log_file.stat().st_size + SLACK_BYTES
        return self._log_file.open("a", encoding="utf-8")

    def _resend_all(self) -> None:
        with self._changed:
            self._pending = {window: events_of(message) for window, message in self._panes.items()}

    def _deliver(self, server: Server) -> None:
        """Body of the thread: hand pending events to the server until `close`."""
        warned = recognised = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing)
                if not self._pending:
                    return
                events = self._pending.pop(next(iter(self._pending)))
            try:
                if not recognised:
                    server.recognise()
                    recognised = True
                if self._stale:
                    server.clear(self._env)
                    self._stale = False
                # A server that was started anew would make a pane of just the newest points.
                if events[0].endpoint == "update" and not server.has(events[0].message):
                    self._resend_all()
                    continue
                for event in events:
                    server.send(event)
                warned = warned and bool(self._pending)  # the outage is over when the server has got everything
            except (OSError, ValueError) as error:
                if not warned:
                    self._warn(self._outage(server, error))
                warned, recognised = True, False
                self._resend_all()
                with self._changed:
                    if self._closing:
                        return
                    self._changed.wait_for(lambda: self._closing, timeout=self._retry_seconds)

    def _outage(self, server: Server, error: Exception) -> str:
        kept = f"dashboard: {_answering(error)} at {server.address}: the plots are kept in {self._log_file}, and appear"
        later = "later by experiments/replay_dashboard.py"
        if isinstance(error, OSError):
            return f"{kept} if `{server.command}` starts during the run, or {later}"
        return f"{kept} {later}; give visdom another --visdom_port, or use --no_dashboard"


def run_dashboard(
    run: RunSettings, log_file: Path, *, warn: Callable[[str], None], resume_step: int | None
) -> Dashboard:
    """The dashboard that a run's settings ask for; the other arguments are those of `Dashboard`."""
    return Dashboard(
        run.log_dir,
        log_file,
        run.visdom_server if run.dashboard else None,
        run.visdom_port,
        run.visdom_base_url,
        warn=warn,
        resume_step=resume_step,
    )


def replay(log_file: Path, env: str, visdom: Server) -> int:
    """Show a recorded run's panes in a visdom server's environment `env`; returns how many.

    Raises:
        UserError: the file cannot be read, or no visdom server answers.
    """
    try:
        recorded = read_panes(log_file)
    except OSError as error:
        raise UserError(f"{log_file}: {error.strerror}: give the dashboard log of a run") from error
    try:
        visdom.recognise()
        visdom.clear(env)
        for message in recorded.values():
            for event in events_of({**message, "eid": env}):  # the folder may have been copied or renamed
                visdom.send(event)
    except (OSError, ValueError) as error:
        fix = f"start one with `{visdom.command}`" if isinstance(error, OSError) else "correct them"
        raise UserError(
            f"--visdom_server, --visdom_port, --visdom_base_url: {_answering(error)} at {visdom.address}: {fix}, "
            "or draw summary.png alone with --summary_only"
        ) from error
    return len(recorded)


def _answering(error: Exception) -> str:
    if isinstance(error, OSError):
        return "no visdom server answers"
    return "something other than visdom, or a visdom with login, answers"
