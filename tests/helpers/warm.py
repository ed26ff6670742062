"""Runs the project's scripts without their four seconds of start: each is forked from a process that has torch loaded.

The fork is a process of its own, with its own files, signals and memory; killing it is killing the script. What it
shares with others is only that modules were imported before the fork, and nothing else had run by then.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import TCPStore

REPO = Path(__file__).parents[2]
# Everything heavy that a script imports late.
LIBRARIES = ("torch", "torchvision", "lpips", "lmdb", "yaml", "requests", "tqdm", "torch._dynamo", "torch_fidelity")
MODULES = (*LIBRARIES, "utils.training.training_run", "utils.metrics.feature_sources", "utils.metrics.neighbours")


class Quarters(nn.Module):
    """The mean colours of an image's quarters: features that take no time, where R64 takes a second to build."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1),)


@dataclass(frozen=True)
class Ended:
    """How a script ended. code: exit status, or minus the signal that killed it."""

    code: int
    out: str
    err: str


class Warm:
    """The client's side. Use it in a `with` block, from any thread; commands run in `folder`, which may be changed.

    often: long pieces of work note after each batch how far they are, so that short ones have what to go on from.
    """

    def __init__(self, folder: Path, *, often: bool = False) -> None:
        self.folder = folder
        server = [sys.executable, __file__, *(["often"] if often else [])]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "1000"}
        self._server = subprocess.Popen(
            server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=REPO
        )
        self._codes: dict[int, int] = {}
        self._folders: dict[int, Path] = {}
        self._stores: list[TCPStore] = []
        self._telling = threading.Lock()
        self._tell({})  # answered when the modules are there

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: object) -> None:
        # Said, since forks of this process, such as workers that read images, may hold the pipe open.
        self._server.communicate("\n", 60)

    def start(self, command: str, folder: Path | None = None, **env: str) -> int:
        """Start `script.py flags …`, in `folder` if given, with keywords as environment variables; its pid."""
        folder = folder or self.folder
        pid = self._tell({"folder": str(folder), "words": shlex.split(command), "env": env})["pid"]
        self._folders[pid] = folder
        return pid

    def start_together(self, command: str, count: int, **env: str) -> list[int]:
        """Start a script `count` times, as torchrun does on one machine; the pids, by rank, which {rank} stands for."""
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._stores.append(store)  # which torchrun's agent would keep open
        env = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)} | env
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        return [
            self.start(command.replace("{rank}", str(rank)), RANK=str(rank), LOCAL_RANK=str(rank), **env)
            for rank in range(count)
        ]

    def code(self, pid: int) -> int | None:
        """How a script ended, or None while it runs."""
        if pid not in self._codes:
            code = self._tell({"pid": pid})["code"]
            if code is None:
                return None
            self._codes[pid] = code
        return self._codes[pid]

    def wait(self, pid: int, timeout: float = 300) -> Ended:
        """Wait until a script has ended."""
        end = time.monotonic() + timeout
        while self.code(pid) is None:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                raise TimeoutError(f"process {pid} runs for more than {timeout} s")
            time.sleep(0.01)
        return Ended(self._codes[pid], *(self._said(pid, name) for name in ("out", "err")))

    def _said(self, pid: int, name: str) -> str:
        """What a script that has ended wrote to a stream; nothing where it was killed before it opened it."""
        file = self._folders[pid] / f".{pid}.{name}"
        if not file.exists():
            return ""
        text = file.read_text(errors="replace")
        file.unlink()
        return text

    def run(self, command: str, timeout: float = 300) -> Ended:
        """Run a script to its end."""
        return self.wait(self.start(command), timeout)

    def ok(self, command: str) -> str:
        """What a script that must succeed prints."""
        ended = self.run(command)
        assert ended.code == 0, f"{command}\n{ended}"
        return ended.out

    def _tell(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._telling:
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            return json.loads(self._server.stdout.readline())


def until(reached: Callable[[], bool]) -> None:
    """Wait for something that another process does, for up to a minute or more."""
    for _ in range(1200):
        if reached():
            return
        time.sleep(0.05)
    raise AssertionError("it was never reached")


def serve() -> None:
    """The server's side: a line of JSON in, a line out, until an empty line or the end of the input.

    Scripts that run then, as after a test that failed on its way, are killed.
    """
    for module in MODULES:
        __import__(module)
    if "often" in sys.argv[1:]:
        from utils.metrics import head

        head.SECONDS_PER_SAVE = 0.0
    codes: dict[int, int | None] = {}
    while True:
        ready, _, _ = select.select([sys.stdin.buffer.raw], [], [], 1)
        while codes.values() and None in codes.values():
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            codes[pid] = os.waitstatus_to_exitcode(status)
        if not ready:
            continue
        line = _read_line()
        if not line.strip():
            for pid in (pid for pid, code in codes.items() if code is None):
                os.kill(pid, signal.SIGKILL)
            return
        request = json.loads(line)
        if "words" in request:
            pid = os.fork()
            if not pid:
                os.environ |= request["env"]
                tempfile.tempdir = None  # or $TMPDIR is not looked at
                if "SIMPLE_FEATURES" in os.environ:
                    _take_simple_features()
                _be_the_script(request["folder"], request["words"])
            codes[pid] = None
            answer = {"pid": pid}
        else:
            answer = {"code": codes.get(request.get("pid"))}
        os.write(1, (json.dumps(answer) + "\n").encode())


def _read_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return b""
        line += byte
    return line


def in_turn(commands: list[str]) -> None:
    """Run scripts one after another in this folder: torchrun … warm.py in_turn COMMAND …

    All but the last are forked; the first that fails ends it. After a restart by torchrun there is only the last.
    """
    for module in MODULES:
        __import__(module)
    _take_simple_features()
    *others, last = commands
    for command in others if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" else ():
        child = os.fork()
        if not child:
            _run(shlex.split(command))
        if os.waitpid(child, 0)[1]:
            sys.exit(1)
    _run(shlex.split(last))


def _take_simple_features() -> None:
    from utils.metrics import features

    features.R64 = Quarters


def _be_the_script(folder: str, words: list[str]) -> None:
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(f".{os.getpid()}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    _run(words)


def _run(words: list[str]) -> None:
    code = 1
    try:
        script = REPO / words[0]
        sys.argv = [str(script), *words[1:]]
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1:2] == ["in_turn"]:
        in_turn(sys.argv[2:])
    else:
        serve()
