"""A real visdom server on the loopback interface, and a program that is none."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

# The visdom command, but for torch: its server makes no use of it, and importing it takes most of the start.
VISDOM = """
import sys
sys.modules["torch"] = None
from visdom.server.run_server import download_scripts_and_run
download_scripts_and_run()
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def eventually(true: Callable[[], Any], pause: float = 0.02) -> Any:
    """Wait for something that another thread or process does; far longer than it needs, so that it is sure to fail."""
    deadline = time.monotonic() + 90
    while not (value := true()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(pause)
    return value


class VisdomServer:
    """A real visdom server on a port of its own, below the path `base_url`, if one is given."""

    def __init__(self, folder: Path, base_url: str = "") -> None:
        self.port = free_port()
        self._address = f"http://127.0.0.1:{self.port}{base_url}"
        self.log = folder / "visdom.txt"  # what it printed in its terminal since it started
        self._command = [sys.executable, "-c", VISDOM, "-port", str(self.port), "-bind_local", "-env_path", str(folder)]
        self._command += ["-base_url", base_url] if base_url else []
        self.start()

    def start(self) -> None:
        with self.log.open("w") as output:
            self.process = subprocess.Popen(self._command, stdout=output, stderr=subprocess.STDOUT)
        eventually(lambda: self.process.poll() is not None or self._answers())
        if self.process.poll() is not None:
            reason = self.log.read_text().strip().splitlines()[-1]
            pytest.skip(f"visdom's server does not start, if for its browser files, make browser gets them: {reason}")

    def _answers(self) -> bool:
        with suppress(requests.ConnectionError):
            return self.post("env_state", {}).ok
        return False

    def post(self, endpoint: str, message: dict[str, Any]) -> requests.Response:
        return requests.post(f"{self._address}/{endpoint}", json=message, timeout=30)

    def panes(self, env: str) -> dict[str, dict[str, Any]]:
        known = env in self.post("env_state", {}).json()
        return dict(self.post("win_data", {"eid": env, "win": None}).json()) if known else {}

    def curves(self, env: str, window: str) -> dict[str, list[tuple[float, float]]]:
        data = self.panes(env).get(window, {"content": {"data": []}})["content"]["data"]
        return {curve["name"]: list(zip(curve["x"], curve["y"], strict=True)) for curve in data}

    def forget(self, env: str) -> None:
        self.post("close", {"eid": env, "win": None})

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def other_program(status: int, page: bytes, port: int = 0) -> Iterator[tuple[int, list[str]]]:
    """A web server that is not visdom: its port, and what it is asked, with the number of bytes that it is sent."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            self.rfile.read(size)
            asked.append(f"{self.command} {self.path} {size}")
            self.send_response(status)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            with suppress(OSError):  # a long page is not read to its end
                self.wfile.write(page)

        do_POST = do_GET  # noqa: N815 - http.server's name

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", port), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield other.server_port, asked
        other.shutdown()
