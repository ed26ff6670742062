"""Runs the project's scripts without their four seconds of start: each is forked from a process that has torch loaded.

The fork, of multiprocessing's fork server, is a process of its own, with its own files, signals and memory; killing it
is killing the script. What it shares with others is only that modules were imported before the fork.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import shlex
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.distributed import TCPStore
from torch.multiprocessing import start_processes

REPO = Path(__file__).parents[2]
# Everything heavy that a script imports late.
LIBRARIES = ("torch", "torchvision", "lpips", "lmdb", "yaml", "requests", "tqdm", "torch._dynamo", "torch_fidelity")
MODULES = (*LIBRARIES, "utils.training.training_run", "utils.metrics.feature_sources", "utils.metrics.neighbours")
# Nothing listens on port 9, so that a dashboard which happens to run stays empty.
_EVERYWHERE = "--device cpu --num_workers 0 --visdom_port 9 --sinks visdom"
_FLAGS = {
    "RUN": f"--dataset toy_churches --toy_images 96 --batch_size 8 {_EVERYWHERE}",
    "EVERYWHERE": _EVERYWHERE,
    "VQGAN": "--nf 32 --ch_mult 1 2 --res_blocks 1 --attn_resolutions 8 --emb_dim 16 --codebook_size 32 --img_size 16 "
    "--ndf 8 --disc_layers 1",
    "PRIOR": "--bert_n_emb 32 --bert_n_head 2 --bert_n_layers 1",
    "AE": f"--batch_size 4 {_EVERYWHERE} --ae_load_dir ae",
    "MODELS": f"--batch_size 4 {_EVERYWHERE} --ae_load_dir ae --load_dir prior",
}
_TINY = f"--batch_size 4 {_EVERYWHERE} --ema --steps_per_log 2"
_LOCK = threading.Lock()  # starting a process looks after all others, as asking for an exit status does


class Quarters(nn.Module):
    """The mean colours of an image's quarters: features that take no time, where R64 takes a second to build."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1),)


@cache
def load_modules() -> None:
    """Start the fork server, which all of this process share."""
    forkserver.set_forkserver_preload(list(MODULES))
    with patch.dict(os.environ, OMP_NUM_THREADS="1"):
        forkserver.ensure_running()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def together(count: int, work: Callable[..., None], *args: object) -> None:
    """Do `work(*args)` in `count` processes with torchrun's environment; raises what one of them raises."""
    load_modules()
    env = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    start_processes(_as_rank, (env, work, *args), count, start_method="forkserver")


def _as_rank(rank: int, env: dict[str, str], work: Callable[..., None], *args: object) -> None:
    os.environ |= {"RANK": str(rank), **env}
    work(*args)


def until(reached: Callable[[], bool], seconds: float = 300) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "it was never reached"
        time.sleep(0.01)


@dataclass(frozen=True)
class Ended:
    """How a script ended. code: exit status, or minus the signal that killed it."""

    code: int
    out: str
    err: str


class Shell:
    """Runs the project's scripts in `folder`, from any thread. Keywords are environment variables.

    In a command, {RUN}, {VQGAN} and {PRIOR} stand for small settings, {AE} and {MODELS} for the tiny models of `ae` and
    `prior`. SIMPLE_FEATURES puts `Quarters` in the place of R64; with SAVE_OFTEN, long work is noted after each batch.
    """

    # Of tiny models, a second each: drawing a summary would take several.
    stage_1 = (
        f"train_vqgan.py {_TINY} --nf 32 --ch_mult 1 1 --res_blocks 1 --attn_resolutions --emb_dim 4 --codebook_size 8 "
        "--img_size 8 --ndf 8 --disc_layers 1 --disc_start_step 2 --perceptual none"
    )
    stage_2 = (
        f"train_sampler.py {_TINY} --ae_load_dir ae --bert_n_emb 8 --bert_n_head 1 --bert_n_layers 1 --total_steps 4 "
        "--n_samples 2"
    )

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder, self.logs, self._env = folder, folder / "logs", env
        self._processes: dict[int, BaseProcess] = {}
        self._stores: list[TCPStore] = []
        atexit.register(self.end)

    def start(self, command: str, **env: str) -> int:
        """Start `script.py flags …`; its process id."""
        load_modules()
        args = self.folder, shlex.split(command.format(**_FLAGS)), self._env | env
        process = multiprocessing.get_context("forkserver").Process(target=_be_the_script, args=args)
        with _LOCK:
            process.start()
        self._processes[process.pid] = process
        return process.pid

    def start_together(self, command: str, count: int, **env: str) -> list[int]:
        """Start a script `count` times, if more than once as torchrun does on one machine; the process ids, by rank."""
        if count == 1:
            return [self.start(command, **env)]
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._stores.append(store)  # which torchrun's agent would keep open
        env = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)} | env
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        return [self.start(command, RANK=str(rank), LOCAL_RANK=str(rank), **env) for rank in range(count)]

    def code(self, pid: int) -> int | None:
        """How a script ended, or None while it runs."""
        with _LOCK:
            return self._processes[pid].exitcode

    def wait(self, pid: int) -> Ended:
        """Wait until a script has ended. What it wrote is empty where it was killed before it opened it."""
        until(lambda: self.code(pid) is not None)
        files = [self.folder / f".{pid}.{name}" for name in ("out", "err")]
        said = [file.read_text(errors="replace") if file.exists() else "" for file in files]
        for file in files:
            file.unlink(missing_ok=True)
        return Ended(self.code(pid), *said)

    def train_tiny_models(self) -> None:
        """Runs of both stages on 24 photos, `ae` and `prior`, saved at steps 4 and 8."""
        (self.folder / "photos").mkdir()
        dice = np.random.default_rng(0)
        for number in range(24):
            Image.fromarray(dice.integers(0, 256, (8, 8, 3), np.uint8)).save(self.folder / f"photos/{number:02}.png")
        (self.folder / "datasets.yaml").write_text("custom: {paths: photos}\n")
        for stage, run in ((self.stage_1, "ae"), (self.stage_2, "prior")):
            self.ok(f"{stage} --dataset custom --train_steps 8 --steps_per_checkpoint 4 --log_dir {run}")

    def end(self) -> None:
        """Kill what still runs, as after a test that failed on its way: multiprocessing would wait for it."""
        for process in self._processes.values():
            process.kill()

    def run(self, command: str, **env: str) -> Ended:
        """Run a script to its end."""
        return self.wait(self.start(command, **env))

    def ok(self, command: str, **env: str) -> str:
        """What a script that must succeed prints."""
        ended = self.run(command, **env)
        assert ended.code == 0, f"{command}\n{ended.out[-2000:]}\n{ended.err[-4000:]}"
        return ended.out

    def refused(self, command: str) -> str:
        """The one line on stderr of a command that is refused."""
        return self.line_of(self.run(command), command)

    @staticmethod
    def line_of(ended: Ended, command: str) -> str:
        """The one line on stderr of a refusal."""
        assert ended.code == 2, f"{command}\n{ended.code}\n{ended.out[-2000:]}\n{ended.err[-4000:]}"
        assert ended.err.startswith(f"{Path(command.split()[0]).name}: error: "), ended.err
        assert ended.err.count("\n") == 1, ended.err
        assert ended.err.endswith("\n")
        return ended.err

    def abreast(self, *chains: Sequence[str]) -> list[list[str]]:
        """Run chains of commands that must succeed, two chains at a time; what each command printed."""
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda chain: [self.ok(command) for command in chain], chains))

    def snapshot(self) -> dict[str, bytes]:
        """Every file and folder below `folder`, with the files' content."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes() if path.is_file() else b""
            for path in sorted(self.folder.rglob("*"))
        }


def _be_the_script(folder: Path, words: list[str], env: dict[str, str]) -> None:
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f".{os.getpid()}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ |= {"COLUMNS": "1000", **env}
    tempfile.tempdir = None  # or $TMPDIR is not looked at
    multiprocessing.current_process()._config.pop("tempdir", None)
    if "SIMPLE_FEATURES" in env:
        from utils.metrics import features

        features.R64 = Quarters
    if "SAVE_OFTEN" in env:
        from utils.metrics import head

        head.SECONDS_PER_SAVE = 0.0
    sys.argv = [str(REPO / words[0]), *words[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
