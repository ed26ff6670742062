"""A real visdom server on the loopback interface."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
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


def eventually(true: Callable[[], bool]) -> None:
    """Wait for something that another thread or process does; far longer than it needs, so that it is sure to fail."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


class VisdomServer:
    """A real visdom server on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._output = folder / "visdom.txt"
        self._command = [sys.executable, "-c", VISDOM, "-port", str(self.port), "-bind_local", "-env_path", str(folder)]
        self.start()

    def start(self) -> None:
        with self._output.open("w") as output:
            self.process = subprocess.Popen(self._command, stdout=output, stderr=subprocess.STDOUT)
        eventually(lambda: self.process.poll() is not None or self._answers())
        if self.process.poll() is not None:
            pytest.skip("visdom's server does not start: " + self._output.read_text().strip().splitlines()[-1])

    def _answers(self) -> bool:
        try:
            return self.post("env_state", {}).ok
        except requests.ConnectionError:
            return False

    def post(self, endpoint: str, message: dict[str, Any]) -> requests.Response:
        return requests.post(f"http://127.0.0.1:{self.port}/{endpoint}", json=message, timeout=30)

    def panes(self, env: str) -> dict[str, dict[str, Any]]:
        if env not in self.post("env_state", {}).json():
            return {}
        return dict(self.post("win_data", {"eid": env, "win": None}).json())

    def curves(self, env: str, window: str) -> dict[str, list[tuple[float, float]]]:
        data = self.panes(env).get(window, {"content": {"data": []}})["content"]["data"]
        return {curve["name"]: list(zip(curve["x"], curve["y"], strict=True)) for curve in data}

    def output(self) -> str:
        """What it printed in its terminal since it started."""
        return self._output.read_text()

    def forget(self, env: str) -> None:
        self.post("close", {"eid": env, "win": None})

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
