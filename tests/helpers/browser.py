"""A headless Chromium, steered over its debugging protocol."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests
import websocket

from visdom_process import eventually

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
        // A picture alone must be there down to its last row; those with a slider have room below.
        whole: [...pane.querySelectorAll('img')].every(image => pane.querySelector('[type=range]')
            || image.getBoundingClientRect().bottom <= box.bottom + 1),
        text: pane.innerText,
    }
})
"""


class Browser:
    """One tab; `errors` collects what the page's scripts complain of."""

    def __init__(self, folder: Path) -> None:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if chromium is None:
            pytest.skip("no chromium to draw the dashboard with: make browser installs it")
        flags = "--headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1640,2000"
        flags += " --remote-debugging-port=0 --remote-allow-origins=*"
        command = [chromium, *flags.split(), f"--user-data-dir={folder / 'profile'}"]
        self._log = folder / "chromium.txt"
        with self._log.open("w") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        self.errors: list[str] = []
        self._number = 0
        address = eventually(lambda: re.search(r"listening on ws://([\d.:]+)/", self._log.read_text()))[1]
        listed = f"http://{address}/json"
        pages = eventually(lambda: [page for page in requests.get(listed, timeout=30).json() if page["type"] == "page"])
        self._socket = websocket.create_connection(pages[0]["webSocketDebuggerUrl"], timeout=60)
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, url: str) -> None:
        self.errors.clear()
        self._call("Page.navigate", url=url)

    def panes(self, expected: int) -> list[dict[str, Any]]:
        """The dashboard's panes, once there are as many as expected and they have come to rest."""
        before: Any = None

        def settled() -> Any:
            nonlocal before
            found = self._call("Runtime.evaluate", expression=PANES, returnByValue=True)["result"].get("value") or []
            rest, before = found == before, found
            return found if rest and len(found) >= expected and all(all(pane["images"]) for pane in found) else None

        return list(eventually(settled, pause=1.0))

    def screenshot(self, path: Path) -> None:
        """What the window shows, as a PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                return dict(message["result"])
            told = message.get("params", {})
            if (
                message.get("method") == "Runtime.exceptionThrown"
                or told.get("type") in {"error", "assert"}  # printed by the page
                or told.get("entry", {}).get("level") == "error"  # of the browser's log
            ):
                self.errors.append(str(told))
