"""What the machine does not have is said in one line."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hparams.cli import _as_line
from hparams.errors import RunError, UserError
from hparams.settings.training import TrainingSettings
from utils.data.batches import eval_batches
from utils.machine.limits import free_space, tell_bytes
from utils.runs import disk_space
from utils.runs.disk_space import space_notes

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (36_100_000, "36.1 MB"), (5 * 10**16, "5e+04 TB")]
)
def test_sizes_in_words(count: int, text: str) -> None:
    assert tell_bytes(count) == text


class Images:
    """Eight images; reading number `deadly` ends the process that does."""

    def __init__(self, deadly: int = -1, number: int = signal.SIGKILL) -> None:
        self.deadly, self.number = deadly, number

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> np.ndarray:
        if i == self.deadly:
            os.kill(os.getpid(), self.number)
        return np.zeros((3, 8, 8), np.uint8)

    def source(self, i: int) -> str:
        return str(i)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_the_death_of_a_worker_is_named(number: int) -> None:
    """It comes as one of several errors, by what the worker was doing."""
    with pytest.raises((RuntimeError, RunError)) as death:
        list(eval_batches(Images(5, number), 2, num_workers=1))
    line = _as_line(death.value)
    assert line is not None
    assert re.search(r"process \d+ ?.*, which read images, (died|is killed by signal|exited unexpectedly)", line), line
    assert "lower --num_workers or --batch_size" in line
    assert "--resume" in line


def test_a_worker_killed_by_a_signal_is_named_with_it() -> None:
    error = RuntimeError("DataLoader worker (pid 4711) is killed by signal: Bus error. It is possible that ...")
    assert str(_as_line(error)).startswith("process 4711, which read images, is killed by signal: Bus error;")


def test_too_little_memory_names_the_flags() -> None:
    errors = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")]
    errors += [RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")]
    with pytest.raises(RuntimeError) as failure:
        torch.empty(10**16)
    for error in (*errors, failure.value):
        assert _as_line(error) == "out of memory: lower --batch_size, or use --amp"
    no_worker = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    assert _as_line(no_worker) == "out of memory: lower --num_workers or --batch_size"
    assert _as_line(RuntimeError("shapes differ")) is None


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "-u"),
        (
            RuntimeError(
                "Caught RuntimeError in DataLoader worker process 0.\n…\nRuntimeError: can't start new thread"
            ),
            "-u",
        ),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "-n"),
        (RuntimeError("unable to open shared memory object </torch_1>: Too many open files (24)"), "-n"),
    ],
)
def test_too_few_processes_or_files_name_the_flag_and_the_limit(error: Exception, limit: str) -> None:
    line = str(_as_line(error))
    assert "lower --num_workers" in line
    assert f"(ulimit {limit})" in line


def test_workers_that_cannot_all_start_leave_one_line_and_none_behind(tmp_path: Path) -> None:
    """Files that may be open are for the first ones only."""
    code = (
        "import resource, numpy as np\n"
        "from hparams.cli import run_script\n"
        "from utils.data.batches import eval_batches\n"
        "class Grey(list):\n"
        "    def source(self, i): return str(i)\n"
        "def main():\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "    next(eval_batches(Grey([np.zeros((3, 2, 2), np.uint8)] * 4), 1, 60))\n"
        "run_script(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "lower --num_workers, or raise the limit (ulimit -n)" in done.stderr


@pytest.mark.parametrize(
    ("limit", "workers", "told"),
    [
        ("-n 32", 2, "96 files must be open at once, the limit is 32: raise it (ulimit -n)"),
        ("-n 90", 2, "the limit is 90: use --num_workers 1, or raise it (ulimit -n)"),
        ("-n 96", 2, ""),
        ("-Sn 32", 2, ""),  # which a process may raise by itself
    ],
)
def test_too_few_open_files_are_refused_before_anything_starts(
    tmp_path: Path, limit: str, workers: int, told: str
) -> None:
    """torch's threads and workers would print tracebacks without end, and hang."""
    command = f"ulimit {limit} && exec {sys.executable} {ROOT}/train_vqgan.py --dataset toy_churches --dry_run"
    command += f" --num_workers {workers}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == ((2, 1) if told else (0, 0)), done.stderr
    assert done.stderr.startswith(f"train_vqgan.py: error: --num_workers {workers}: " if told else "")
    assert told in done.stderr


def test_free_space_is_that_of_the_nearest_folder(tmp_path: Path) -> None:
    assert free_space(tmp_path / "not" / "yet") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)


def test_space_for_a_run_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 weights of 4 bytes, twice with the average, and two moments of each."""
    model = torch.nn.Linear(999, 1)
    models = {False: model, True: model}
    training = replace(TrainingSettings(), steps_per_checkpoint=10)

    def note(free: int, steps: int = 100, **changes: object) -> str:
        monkeypatch.setattr(disk_space, "free_space", lambda folder: free)
        (line,) = space_notes(tmp_path, models, replace(training, **changes), steps)
        return line

    assert note(10**6) == "disk        checkpoints to come take 104 kB, 1 MB is free"  # 10 of 8 kB, 3 states of 8 kB
    assert "take 16 kB" in note(10**6, steps=3)
    assert "take 32 kB" in note(10**6, keep_checkpoints="1", keep_states=1)
    assert note(50_000).startswith("WARNING: checkpoints to come take 104 kB, 50 kB is free: make room, or use --keep")
    with pytest.raises(UserError, match="a checkpoint takes 16 kB, and 15 kB is free: make room"):
        note(15_000)
    assert "take 0 B" in note(0, steps=0)
