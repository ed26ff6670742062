"""A run's panes in visdom, kept in the run folder as well.

Every event goes first to a log file in visdom's own format, which `visdom.Visdom().replay_log` reads, and then to the
server from a thread of its own. A server that is missing, dies, hangs or comes back therefore costs the run one warning
and nothing else.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
import json
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from urllib.parse import urlsplit

import numpy as np
import requests
from PIL import Image

from hparams.errors import UserError

LARGEST_SIDE = 512  # pixels of a posted picture
RESOLUTION = 1000  # points of a curve that lie closer than this fraction of its length are left out
LONGEST_BACKLOG = 50  # events of a pane that wait for the server, before the whole pane replaces them
SLACK_BYTES = 2**24  # what the log may grow by before it is rewritten with the newest pictures only
CURVE = {"type": "scatter", "mode": "lines+markers", "marker": {"size": 3}}  # markers, to see a lone point
TIMEOUT = (2.0, 5.0)  # seconds to connect, seconds between bytes of the answer

Message = dict[str, Any]


class Event(NamedTuple):
    """One request to visdom: "events" replaces the pane `message["win"]`, "update" appends to its curves."""

    endpoint: str
    message: Message


def apply_event(panes: dict[str, Message], event: Event) -> None:
    """Do to `panes` (window → newest whole message) what visdom's server would do to its own."""
    window = event.message["win"]
    data = event.message["data"]
    if event.endpoint == "events":
        panes[window] = event.message
    elif window in panes:
        for curve, more in zip(panes[window]["data"], data, strict=True):
            curve["x"] += more["x"]
            curve["y"] += more["y"]


def read_panes(log_file: Path, last_step: int | None = None) -> dict[str, Message]:
    """Panes that a log leaves behind, window → whole message; curves end at `last_step`, if one is given.

    A line that is no event (the last one of a run that was killed while writing) is passed over.

    Raises:
        OSError: the file cannot be read.
    """
    panes: dict[str, Message] = {}
    with log_file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                event = Event(*json.loads(line))
                if _is_sound(event.message):
                    apply_event(panes, event)
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
    if last_step is not None:
        for curve in (entry for message in panes.values() for entry in message["data"] if entry["type"] == "scatter"):
            kept = [(x, y) for x, y in zip(curve["x"], curve["y"], strict=True) if x <= last_step]
            curve["x"], curve["y"] = [x for x, _ in kept], [y for _, y in kept]
    return panes


def _is_sound(message: Message) -> bool:
    """Whether a recorded message has the shape of those that are written: a list of entries, curves of numbers."""
    curves = [entry for entry in message["data"] if entry["type"] == "scatter"]
    return isinstance(message["data"], list) and all(
        len(curve["x"]) == len(curve["y"]) and all(isinstance(x, int | float) for x in curve["x"]) for curve in curves
    )


class Server:
    """The few requests to a visdom server that panes need. Each raises OSError or ValueError when it fails.

    Raises:
        UserError: `server` and `port` make no address.
    """

    def __init__(self, server: str, port: int) -> None:
        self.address = f"{server if '://' in server else 'http://' + server}:{port}"
        try:
            requests.Request("POST", self.address).prepare()
        except ValueError as error:
            raise UserError(
                f"--visdom_server {server} --visdom_port {port}: not an address: give them as http://localhost and 8097"
            ) from error
        self._session = requests.Session()
        # A proxy named in the environment is not asked for this machine's own server.
        self._session.trust_env = urlsplit(self.address).hostname not in {"localhost", "127.0.0.1", "::1"}

    def _post(self, endpoint: str, message: Message) -> str:
        response = self._session.post(f"{self.address}/{endpoint}", data=json.dumps(message), timeout=TIMEOUT)
        return response.content.decode(errors="replace")

    def send(self, event: Event) -> None:
        answer = self._post(*event)
        if answer != event.message["win"]:  # the window's name says that visdom took the event
            raise ValueError(f"{self.address} does not answer as visdom does")

    def has(self, message: Message) -> bool:
        return self._post("win_exists", {"win": message["win"], "eid": message["eid"]}) == "true"


class Dashboard:
    """Panes of one run, in the visdom environment `env` (slashes become underscores, as visdom does it).

    No method waits for the server. `close` must be called, or the object be used in a `with` block, for the last
    panes to arrive.

    Args:
        env: name of the run.
        log_file: where events are recorded; its folder must exist.
        server, port: address of the visdom server.
        warn: takes the one line per outage; called from another thread.
        resume_step: step at which the run continues the one that `log_file` records: its curves are cut after that step
            and go on. None: a new run, which replaces the file.
        retry_seconds: pause between attempts to reach a server that failed.

    A log file that cannot be written costs one warning; it is written anew, with everything, once that works again.
    """

    def __init__(
        self,
        env: str,
        log_file: Path,
        server: str = "http://localhost",
        port: int = 8097,
        *,
        warn: Callable[[str], None],
        resume_step: int | None = None,
        retry_seconds: float = 10.0,
    ) -> None:
        self._env = env.replace("/", "_")
        self._log_file = log_file
        self._server = Server(server, port)
        self._port = port
        self._warn = warn
        self._retry_seconds = retry_seconds
        self._panes: dict[str, Message] = {}
        if resume_step is not None and log_file.exists():
            panes = read_panes(log_file, resume_step)
            self._panes = {window: {**message, "eid": self._env} for window, message in panes.items()}
        self._log: TextIO | None = None
        self._log_failed = False
        self._keep(None)

        self._pending: dict[str, list[Event]] = {}  # by window: what the server has not got yet, oldest window first
        self._closing = False
        self._changed = threading.Condition()  # guards _panes, _pending and _closing
        self._resend_all()
        self._thread = threading.Thread(target=self._deliver, name="dashboard", daemon=True)
        self._thread.start()

    def __enter__(self) -> Dashboard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def line(
        self, window: str, step: int, values: Mapping[str, float], *, title: str, ylabel: str, xlabel: str = "step"
    ) -> None:
        """Append one point per curve of `values` (name → value; nan and ±inf show as gaps).

        Points too close to the curve's last one to be seen are left out, so that long runs stay quick to draw.
        """
        curves: dict[str, Message] = {}
        if window in self._panes:
            curves = {curve["name"]: curve for curve in self._panes[window]["data"]}
        if not values.keys() <= curves.keys():  # a new pane, or a new curve in it: visdom needs the pane's whole looks
            new = [{"name": name, "x": [], "y": [], **CURVE} for name in values if name not in curves]
            data = [_copy(curve) for curve in curves.values()] + new
            self._record(Event("events", self._plot(window, data, title, xlabel, ylabel, showlegend=True)))
            curves = {curve["name"]: curve for curve in data}
        points = [
            {"x": [int(step)], "y": [_finite(values[name])], "type": "scatter"}
            if name in values and _far_enough(curve["x"], step)
            else {"x": [], "y": [], "type": "scatter"}
            for name, curve in curves.items()
        ]
        if any(point["x"] for point in points):
            self._record(Event("update", self._message(window, points, append=True)))

    def images(self, window: str, grid: np.ndarray, *, title: str) -> None:
        """Show a picture, uint8 [3,H,W], in place of the window's last one; sides over 512 pixels are scaled down.

        Raises:
            ValueError: another shape or dtype.
        """
        if grid.dtype != np.uint8 or grid.ndim != 3 or grid.shape[0] != 3:
            raise ValueError(f"grid must be uint8 [3,H,W], got {grid.dtype} {list(grid.shape)}")
        picture = Image.fromarray(np.ascontiguousarray(grid.transpose(1, 2, 0)))
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
        png = io.BytesIO()
        picture.save(png, format="PNG")
        content = {"src": "data:image/png;base64," + base64.b64encode(png.getvalue()).decode(), "caption": None}
        opts = {"title": title, "width": picture.width, "height": picture.height + 10}  # else the last rows are cut off
        self._record(Event("events", self._message(window, [{"type": "image", "content": content}], opts=opts)))

    def bars(self, window: str, values: Sequence[float] | np.ndarray, *, title: str, xlabel: str, ylabel: str) -> None:
        """Show one bar per value, numbered from 0, in place of the window's last ones."""
        data = {"type": "bar", "x": list(range(len(values))), "y": [_finite(value) for value in values]}
        self._record(Event("events", self._plot(window, [data], title, xlabel, ylabel, bargap=0)))

    def text(self, window: str, text: str, *, title: str) -> None:
        """Show plain text, line breaks and spaces kept, in place of the window's last one."""
        data = [{"type": "text", "content": f"<pre>{html.escape(text)}</pre>"}]
        self._record(Event("events", self._message(window, data, opts={"title": title})))

    def close(self, timeout: float = 10.0) -> None:
        """Wait up to `timeout` seconds for the last panes to reach the server, if it answers. May be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        if self._log:
            self._log.close()

    def _message(self, window: str, data: list[Message], **more: Any) -> Message:
        return {"win": window, "eid": self._env, "data": data, **more}

    def _plot(self, window: str, data: list[Message], title: str, xlabel: str, ylabel: str, **layout: Any) -> Message:
        layout |= {"xaxis": {"title": {"text": xlabel}}, "yaxis": {"title": {"text": ylabel}}}
        layout |= {"margin": {"l": 60, "r": 20, "t": 20, "b": 50}}
        return self._message(window, data, layout=layout, opts={"title": title})

    def _record(self, event: Event) -> None:
        window = event.message["win"]
        with self._changed:
            # The thread gets copies: this one goes on appending to the curves.
            apply_event(self._panes, Event(event.endpoint, _copy_message(event.message)))
            backlog = self._pending.setdefault(window, [])
            backlog.append(event)
            if event.endpoint == "events" or len(backlog) > LONGEST_BACKLOG:
                backlog[:] = [self._whole(window)]
            self._changed.notify_all()
        self._keep(event)

    def _keep(self, event: Event | None) -> None:
        """Record an event that the panes have already; without an open log, all panes."""
        try:
            if self._log and event:
                self._log.write(json.dumps(event) + "\n")
                self._log.flush()
            if self._log is None or self._log.tell() > self._log_limit:
                self._drop_log()
                self._log = self._start_log()
            self._log_failed = False
        except OSError as error:
            self._drop_log()
            if not self._log_failed:
                self._warn(
                    f"dashboard: {self._log_file}: {error.strerror}: plots are kept in memory until it can be written"
                )
            self._log_failed = True

    def _drop_log(self) -> None:
        if self._log:
            with contextlib.suppress(OSError):  # closing writes what an earlier write could not
                self._log.close()
        self._log = None

    def _start_log(self) -> TextIO:
        """Write one event per pane in place of the log so far; returns the new file, open for more."""
        temporary = self._log_file.with_name(self._log_file.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(self._whole(window)) + "\n" for window in self._panes)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(self._log_file)
        self._log_limit = 2 * self._log_file.stat().st_size + SLACK_BYTES
        return self._log_file.open("a", encoding="utf-8")

    def _whole(self, window: str) -> Event:
        return Event("events", _copy_message(self._panes[window]))

    def _resend_all(self) -> None:
        with self._changed:
            self._pending = {window: [self._whole(window)] for window in self._panes}

    def _deliver(self) -> None:
        """Body of the thread: hand pending events to the server until `close`."""
        warned = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing)
                if not self._pending:
                    return
                events = self._pending.pop(next(iter(self._pending)))
            try:
                # A server that was started anew would make a pane of just the newest points.
                if events[0].endpoint == "update" and not self._server.has(events[0].message):
                    self._resend_all()
                    continue
                for event in events:
                    self._server.send(event)
                warned = warned and bool(self._pending)  # the outage is over when the server has got everything
            except (OSError, ValueError) as error:
                if not warned:
                    self._warn(self._outage(error))
                warned = True
                self._resend_all()
                with self._changed:
                    if self._closing:
                        return
                    self._changed.wait_for(lambda: self._closing, timeout=self._retry_seconds)

    def _outage(self, error: Exception) -> str:
        known = isinstance(error, OSError)
        reason = "no visdom server answers" if known else "something other than visdom, or a visdom with login, answers"
        return (
            f"dashboard: {reason} at {self._server.address}: the plots are kept in {self._log_file}, and appear if "
            f"`visdom -p {self._port}` starts during the run"
        )


def replay(log_file: Path, server: str = "http://localhost", port: int = 8097) -> int:
    """Show a recorded run's panes in a visdom server; returns how many.

    Raises:
        UserError: the file cannot be read, or no visdom server answers.
    """
    try:
        panes = read_panes(log_file)
    except OSError as error:
        raise UserError(f"{log_file}: {error.strerror}: give the dashboard log of a run") from error
    visdom = Server(server, port)
    try:
        for message in panes.values():
            visdom.send(Event("events", message))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--visdom_server, --visdom_port: no visdom server at {visdom.address}: start one with `visdom -p {port}`"
        ) from error
    return len(panes)


def _far_enough(steps: Sequence[int], step: int) -> bool:
    return not steps or step - steps[-1] > (steps[-1] - steps[0]) / RESOLUTION


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None  # a browser's JSON has no nan


def _copy(curve: Message) -> Message:
    return {key: list(value) if isinstance(value, list) else value for key, value in curve.items()}


def _copy_message(message: Message) -> Message:
    return {**message, "data": [_copy(entry) for entry in message["data"]]}
