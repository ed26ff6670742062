"""A run's panes on a visdom server, which may be missing, refuse, hang, be slow, die or come back, however often."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from itertools import islice
from time import monotonic
from typing import Any
from urllib.parse import quote, urlsplit

import requests

from hparams.checks import visdom_address
from hparams.errors import UserError
from utils.reporting.board import Board, read_settings, replay
from utils.reporting.visdom_messages import Message, pane_messages, picture_message, points
from utils.runs.run_folder import RunFolder

SECONDS_BETWEEN_ATTEMPTS = 10.0  # to reach a server that failed
TIMEOUT = (2.0, 5.0)  # seconds to connect, seconds between bytes of the answer
MARK = b"var ENV_LIST"  # stands early on visdom's page, and not on the one that asks for a password
LONGEST_HEAD = 2**16  # bytes of a page that are searched for it


def environment(run: str) -> str:
    """Name of a run's visdom environment, and of no other's: slashes, which visdom would make underscores, become ~.

    Characters that mean something to visdom, in its page's script or in an address become their number.
    """
    name = run.replace("^", "^^").replace("~", "^~").replace("/", "~")
    return re.sub(r"""[+'"\\<>&#?%]""", lambda match: f"^{ord(match[0]):x}", name)


class Server:
    """A visdom server, running or not. Methods raise OSError or ValueError when it does not do its part.

    Raises:
        UserError: `server`, `port` and `base_url` make no address.
    """

    def __init__(self, server: str, port: int, base_url: str = "/") -> None:
        self.address = visdom_address(server, port, base_url)
        parts = urlsplit(self.address)
        local = parts.hostname in {"localhost", "127.0.0.1", "::1"}
        self._session = requests.Session()
        self._session.trust_env = not local  # a proxy that the environment names is not for this machine's own server
        # What starts it. Without -bind_local it listens on all addresses, and asks for no password.
        path = f" -base_url {parts.path}" if parts.path else ""
        self.command = f"visdom -p {port}{' -bind_local' if local else ''}{path}"

    def page(self, env: str) -> str:
        """Where a browser finds an environment."""
        return f"{self.address}/env/{quote(env)}"

    def prepare(self, env: str) -> None:
        """Remove the panes of an environment. ValueError, and nothing is sent, if what answers is not visdom."""
        with self._session.get(f"{self.address}/", timeout=TIMEOUT, stream=True) as response:
            if MARK not in b"".join(islice(response.iter_content(1024), LONGEST_HEAD // 1024)):  # however it is chunked
                raise ValueError(f"{self.address} does not answer as visdom does")
        # Of an unknown environment visdom's server would print a traceback, at the start of every new run.
        known = json.loads(self._post("env_state", {}))
        if isinstance(known, list) and env in known:
            self._post("close", {"win": None, "eid": env})

    def send(self, endpoint: str, env: str, window: str, content: Message) -> None:
        """Have a request carried out: "events" makes a pane anew, "update" appends to it."""
        answer = self._post(endpoint, {"eid": env, "win": window, **content})
        if answer != window:  # the window's name says that visdom took it
            raise ValueError(f"{self.address} does not answer as visdom does")

    def has(self, window: str, env: str) -> bool:
        """Whether a pane is there."""
        return self._post("win_exists", {"win": window, "eid": env}) == "true"

    def _post(self, endpoint: str, message: Message) -> str:
        response = self._session.post(f"{self.address}/{endpoint}", data=json.dumps(message), timeout=TIMEOUT)
        return response.content.decode(errors="replace")


class Visdom(Board):
    """Panes of one run, in the environment that `environment` names. Only `idle`, `close` and `send` ask the server.

    At the start and after an outage, what answers must show visdom's page; then everything is sent anew. `warn` takes
    one line per outage.
    """

    def __init__(self, run: str, server: Server, settings: Mapping[str, Any], warn: Callable[[str], None]) -> None:
        super().__init__(settings, picture_message)
        self._env, self._server, self._warn = environment(run), server, warn
        self._prepared = self._warned = False
        self._next_attempt = 0.0
        self._sent: dict[str, dict[str, int]] = {}  # by window that the server has: the points of each of its curves

    def idle(self) -> None:
        """Send the panes that have changed. An outage costs a warning."""
        if monotonic() < self._next_attempt:
            return
        try:
            self.send()
            self._warned = False
        except (OSError, ValueError) as error:
            if not self._warned:
                self._warn(
                    f"dashboard: {_problem(error, self._server)}; the run folder keeps everything, to be shown as soon "
                    "as one answers, or later by experiments/replay_dashboard.py"
                )
            self._warned, self._prepared = True, False
            self._next_attempt = monotonic() + SECONDS_BETWEEN_ATTEMPTS

    def close(self) -> None:
        """Send what is left, if the server answers."""
        self._next_attempt = 0.0
        self.idle()

    def send(self) -> None:
        """Send the panes that have changed. OSError where no server answers, ValueError where another program does."""
        if not self._prepared:
            self._server.prepare(self._env)
            self._prepared, self._sent, self.changed = True, {}, dict.fromkeys(self.panes)
        for window in list(self.changed):
            if window in self._sent and not self._server.has(window, self._env):
                self._prepared = False  # the server was started anew
                self.send()
                break
            self._send_pane(window)
            del self.changed[window]

    def _send_pane(self, window: str) -> None:
        curves, sent = self.curves.get(window, {}), self._sent.get(window, {})
        if sent and sent.keys() == curves.keys():
            new = [points(curve, sent[name]) for name, curve in curves.items()]
            self._server.send("update", self._env, window, {"data": new, "append": True})
        else:  # other panes, and those with a new curve, which needs the pane's whole looks
            first, *others = pane_messages(self, window)
            self._server.send("events", self._env, window, first)
            for message in others:
                self._server.send("update", self._env, window, message)
        self._sent[window] = {name: len(curve.x) for name, curve in curves.items()}


def show_on_visdom(folder: RunFolder, server: Server) -> int:
    """Show a past run's panes, and return how many. UserError where no visdom server answers."""
    view = Visdom(folder.name, server, read_settings(folder.hparams), print)
    replay(folder, view)
    try:
        view.send()
    except (OSError, ValueError) as error:
        flags = "--visdom_server, --visdom_port, --visdom_base_url"
        raise UserError(f"{flags}: {_problem(error, server)}, or draw summary.png alone by --sinks summary") from error
    return len(view.panes)


def _problem(error: Exception, server: Server) -> str:
    if isinstance(error, OSError):
        return f"no visdom server answers at {server.address}: start one with `{server.command}`"
    other = "something other than visdom, or a visdom with login, answers"
    return f"{other} at {server.address}: give visdom another --visdom_port"
