"""A run's panes on a visdom server, which may be missing, refuse, hang, be slow, die or come back, however often.

Before anything is sent, at the start and after each outage, what answers must have shown visdom's page. After an outage
everything is sent anew. Of the wire format there is more in `visdom_messages`.
"""

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
from utils.reporting.board import Board, replay
from utils.reporting.layout import Bars, Curves, Pictures, read_settings
from utils.reporting.visdom_messages import (
    Message,
    bars_message,
    curves_message,
    picture_message,
    points,
    table_message,
    text_message,
)
from utils.runs.run_folder import RunFolder

SECONDS_BETWEEN_ATTEMPTS = 10.0  # to reach a server that failed
TIMEOUT = (2.0, 5.0)  # seconds to connect, seconds between bytes of the answer
MARK = b"var ENV_LIST"  # stands early on visdom's page, and not on the one that asks for a password
LONGEST_HEAD = 64  # KiB of a page that are searched for it


def environment(run: str) -> str:
    """Name of a run's visdom environment, and of no other's: slashes become ~.

    visdom itself would make them underscores, and show a/b and a_b on one page. It takes a plus for two pages beside
    each other, and puts names into its page's script and into addresses as they are: characters that mean something
    there become their number.
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
        self._session = requests.Session()
        local = urlsplit(self.address).hostname in {"localhost", "127.0.0.1", "::1"}
        # A proxy named in the environment is not asked for this machine's own server.
        self._session.trust_env = not local
        # What starts it. Without the flag it listens on all addresses, and asks for no password.
        self.command = f"visdom -p {port}{' -bind_local' if local else ''}"
        if path := urlsplit(self.address).path:
            self.command += f" -base_url {path}"

    def page(self, env: str) -> str:
        """Where a browser finds an environment."""
        return f"{self.address}/env/{quote(env)}"

    def recognise(self) -> None:
        """Ask for visdom's own page, and send nothing; ValueError if something else answers."""
        with self._session.get(f"{self.address}/", timeout=TIMEOUT, stream=True) as response:
            if MARK not in b"".join(islice(response.iter_content(1024), LONGEST_HEAD)):
                raise ValueError(f"{self.address} does not answer as visdom does")

    def send(self, endpoint: str, message: Message) -> None:
        """Have a request carried out: "events" makes the pane `message["win"]` anew, "update" appends to it."""
        if self._post(endpoint, message) != message["win"]:  # the window's name says that visdom took it
            raise ValueError(f"{self.address} does not answer as visdom does")

    def has(self, window: str, env: str) -> bool:
        """Whether a pane is there."""
        return self._post("win_exists", {"win": window, "eid": env}) == "true"

    def clear(self, env: str) -> None:
        """Remove all panes of an environment."""
        known = json.loads(self._post("env_state", {}))
        # Of an unknown environment visdom's server would print a traceback, at the start of every new run.
        if isinstance(known, list) and env in known:
            self._post("close", {"win": None, "eid": env})

    def _post(self, endpoint: str, message: Message) -> str:
        response = self._session.post(f"{self.address}/{endpoint}", data=json.dumps(message), timeout=TIMEOUT)
        return response.content.decode(errors="replace")


class Visdom(Board):
    """Panes of one run, in the environment that `environment` names. Only `idle`, `close` and `send` ask the server.

    run: its name. settings: those of the run, by name, for its panes. fresh: whether the environment's panes are of
    another run, and are removed. warn: takes one line per outage.
    """

    def __init__(
        self, run: str, server: Server, settings: Mapping[str, Any], *, fresh: bool, warn: Callable[[str], None]
    ) -> None:
        super().__init__(settings, picture_message)
        self._env, self._server, self._warn = environment(run), server, warn
        self._stale = fresh
        self._recognised = self._warned = False
        self._next_attempt = 0.0
        self._sent: dict[str, Any] = {}  # by window: the points of each curve, or the steps of pictures, that it has

    def idle(self) -> bool:
        """Send one pane that has changed; returns whether there are more. An outage costs a warning."""
        if monotonic() < self._next_attempt:
            return False
        try:
            more = self.send()
        except (OSError, ValueError) as error:
            if not self._warned:
                self._warn(self._outage(error))
            self._warned, self._recognised = True, False
            self._next_attempt = monotonic() + SECONDS_BETWEEN_ATTEMPTS
            self._send_all_anew()
            return False
        self._warned = self._warned and more  # the outage is over when the server has got everything
        return more

    def close(self) -> None:
        """Send what is left, if the server answers."""
        self._next_attempt = 0.0
        while self.idle():
            pass

    def send(self) -> bool:
        """Send one pane that has changed; returns whether there are more.

        Raises:
            OSError, ValueError: no server answers, or another program does.
        """
        if not self._recognised:
            self._server.recognise()
            self._recognised = True
        if self._stale:
            self._server.clear(self._env)
            self._stale = False
        if self.changed:
            window = next(iter(self.changed))
            # A server that was started anew would make a pane of just the newest points.
            if window in self._sent and not self._server.has(window, self._env):
                self._send_all_anew()
                return True
            self._send_pane(window)
            self.changed.pop(window)
        return bool(self.changed)

    def _send_all_anew(self) -> None:
        self._sent.clear()
        self.changed.update(dict.fromkeys(self.panes))

    def _send_pane(self, window: str) -> None:
        pane, words = self.panes[window], self.words.get(window, "")
        if isinstance(pane, Curves):
            self._send_curves(pane)
        elif isinstance(pane, Pictures):
            self._send_pictures(pane)
        elif isinstance(pane, Bars):
            self._post("events", window, bars_message(pane, self.bars.get(window, [0.0])))
        elif isinstance(words, str):
            self._post("events", window, text_message(words, pane.title))
        else:
            self._post("events", window, table_message(*words, pane.title))

    def _send_curves(self, pane: Curves) -> None:
        curves, sent = self.curves[pane.window], self._sent.get(pane.window, {})
        if sent and sent.keys() == curves.keys():
            new = [points(curve, sent[name]) for name, curve in curves.items()]
            self._post("update", pane.window, {"data": new, "append": True})
        else:  # a new pane, or a new curve in it: visdom needs the pane's whole looks
            self._post("events", pane.window, curves_message(pane, curves))
        self._sent[pane.window] = {name: len(curve.x) for name, curve in curves.items()}

    def _send_pictures(self, pane: Pictures) -> None:
        pictures, sent = self.pictures[pane.window], self._sent.pop(pane.window, [])
        steps = [step for step, _ in pictures]
        if not sent or steps[: len(sent)] != sent or None in steps:  # other pictures, or some were left out
            sent = steps[:1]
            first = pictures[0][1] if pictures else text_message(pane.awaits, pane.title, 2, pane.rows)
            self._post("events", pane.window, first)
        for _, message in pictures[len(sent) :]:
            self._post("update", pane.window, {"data": message["data"]})
        if steps:
            self._sent[pane.window] = steps

    def _post(self, endpoint: str, window: str, content: Message) -> None:
        self._server.send(endpoint, {"win": window, "eid": self._env, **content})

    def _outage(self, error: Exception) -> str:
        kept = f"dashboard: {_answering(error)} at {self._server.address}: the run folder keeps everything, to be shown"
        later = "later by experiments/replay_dashboard.py"
        if isinstance(error, OSError):
            return f"{kept} if `{self._server.command}` starts during the run, or {later}"
        return f"{kept} {later}; give visdom another --visdom_port, or leave visdom out of --sinks"


def show_on_visdom(folder: RunFolder, server: Server) -> int:
    """Show a past run's panes, in place of those that its environment has; returns how many.

    Raises:
        UserError: no visdom server answers.
    """
    view = Visdom(folder.name, server, read_settings(folder.hparams), fresh=True, warn=print)
    replay(folder, view)
    try:
        while view.send():
            pass
    except (OSError, ValueError) as error:
        fix = f"start one with `{server.command}`" if isinstance(error, OSError) else "correct them"
        raise UserError(
            f"--visdom_server, --visdom_port, --visdom_base_url: {_answering(error)} at {server.address}: {fix}, "
            "or draw summary.png alone with --sinks summary"
        ) from error
    return len(view.panes)


def _answering(error: Exception) -> str:
    if isinstance(error, OSError):
        return "no visdom server answers"
    return "something other than visdom, or a visdom with login, answers"
