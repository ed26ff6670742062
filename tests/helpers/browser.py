"""A headless Chromium, steered over its debugging protocol."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import requests
import websocket

# Every pane: its title, its box, how many points each of its curves has, and whether its pictures have arrived.
PANES = """
[...document.querySelectorAll('.window')].map(pane => {
    const box = pane.getBoundingClientRect()
    const plots = [...pane.querySelectorAll('.js-plotly-plot')]
    return {
        title: pane.querySelector('.bar > div.pull-right')?.innerText.trim() ?? '',
        box: [box.left, box.top, box.right, box.bottom].map(Math.round),
        points: Object.fromEntries(
            plots.flatMap(plot => plot.data).map(curve => [curve.name ?? '', curve.y.filter(y => y !== null).length])
        ),
        labels: plots.flatMap(plot => ['x', 'y'].map(axis => plot.layout[axis + 'axis'].title?.text ?? '')),
        images: [...pane.querySelectorAll('img')].map(image => image.complete && image.naturalWidth > 0),
        text: pane.innerText,
    }
})
"""


class Browser:
    """One tab; `errors` collects what the page's scripts complain of."""

    def __init__(self, folder: Path, width: int = 1640, height: int = 2000) -> None:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if chromium is None:
            pytest.skip("no chromium to draw the dashboard with: make browser installs it")
        flags = (
            "--headless --no-sandbox --disable-gpu --hide-scrollbars --remote-debugging-port=0 --remote-allow-origins=*"
        )
        self._log = folder / "chromium.txt"
        with self._log.open("w") as output:
            self._process = subprocess.Popen(
                [chromium, *flags.split(), f"--window-size={width},{height}", f"--user-data-dir={folder / 'profile'}"],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.errors: list[str] = []
        self._number = 0
        address = self._wait(lambda: re.search(r"listening on ws://([\d.:]+)/", self._log.read_text()))[1]
        pages = self._wait(lambda: [page for page in self._pages(address) if page["type"] == "page"])
        self._socket = websocket.create_connection(pages[0]["webSocketDebuggerUrl"], timeout=60)
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Go to a page."""
        self.errors.clear()
        self._call("Page.navigate", url=url)

    def panes(self, expected: int) -> list[dict[str, Any]]:
        """The dashboard's panes, once there are as many as expected and they have come to rest."""
        before: list[Any] = []

        def settled() -> list[dict[str, Any]] | None:
            nonlocal before
            found = self.evaluate(PANES) or []
            rest, before = found == before, found
            return found if rest and len(found) >= expected and all(all(pane["images"]) for pane in found) else None

        return self._wait(settled, pause=1.0)

    def evaluate(self, script: str) -> Any:
        """What a script's last expression amounts to."""
        return self._call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The page down to the end of its lowest pane, as a PNG."""
        width = self.evaluate("window.innerWidth")
        height = max((pane["box"][3] for pane in self.evaluate(PANES)), default=self.evaluate("window.innerHeight"))
        clip = {"x": 0, "y": 0, "width": width, "height": height + 10, "scale": 1}
        data = self._call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """End the browser."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    @staticmethod
    def _pages(address: str) -> list[dict[str, Any]]:
        return list(requests.get(f"http://{address}/json", timeout=30).json())

    @staticmethod
    def _wait(true: Any, pause: float = 0.1) -> Any:
        deadline = time.monotonic() + 90
        while not (value := true()):
            assert time.monotonic() < deadline, "the browser never got there"
            time.sleep(pause)
        return value

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                return dict(message["result"])
            self._note(message.get("method"), message.get("params", {}))

    def _note(self, method: str | None, what: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = what["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and what["type"] in {"error", "assert"}:
            self.errors.append(" ".join(str(part.get("value", part)) for part in what["args"]))
        elif method == "Log.entryAdded" and what["entry"]["level"] == "error":
            self.errors.append(f"{what['entry']['text']} {what['entry'].get('url', '')}")
