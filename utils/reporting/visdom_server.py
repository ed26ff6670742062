"""The few requests to a visdom server that panes need, each with a time limit."""

from __future__ import annotations

import json
from urllib.parse import quote, urlsplit

import requests

from hparams.checks import visdom_address
from utils.reporting.visdom_messages import Message

TIMEOUT = (2.0, 5.0)  # seconds to connect, seconds between bytes of the answer
MARK = b"var ENV_LIST"  # stands early on visdom's page, and not on the one that asks for a password
LONGEST_HEAD = 1 << 16  # bytes of a page that are searched for it


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
            head = b""
            for piece in response.iter_content(LONGEST_HEAD):
                head += piece
                if MARK in head:
                    return
                if len(head) >= LONGEST_HEAD:
                    break
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
