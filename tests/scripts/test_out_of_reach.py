"""Runs whose data or whose place for temporary files are not what they were."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

STEPS = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(reached: Callable[[], bool]) -> None:
    """Wait for something that other processes do."""
    for _ in range(1200):
        if reached():
            return
        time.sleep(0.05)
    raise AssertionError("it was never reached")


def away(tiny, command: str, ranks: int = 1, photos: str = "photos") -> list[int]:
    """Process ids of a run in `logs/run` whose photos were moved away, once one of them misses them."""
    pids = tiny.start_together(command, ranks) if ranks > 1 else [tiny.start(command)]
    metrics = tiny.folder / "logs/run/metrics.jsonl"
    until(lambda: metrics.exists() and metrics.stat().st_size > 0)
    (tiny.folder / photos).rename(tiny.folder / "elsewhere")
    until(lambda: any("trying again" in (tiny.folder / f".{pid}.err").read_text() for pid in pids))
    return pids


def ends_alike(tiny) -> None:
    ours, theirs = (
        torch.load(tiny.folder / f"logs/{run}/saved_models/vqgan_ema_{STEPS}.th", weights_only=True)
        for run in ("run", "undisturbed")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not (tiny.folder / "logs/run/bad_images.txt").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_is_away_for_a_moment_changes_nothing(tiny, workers: int) -> None:
    command = f"{tiny.stage_1} --dataset custom --train_steps {STEPS} --num_workers {workers}"
    tiny.ok(f"{command} --log_dir undisturbed")
    (pid,) = away(tiny, f"{command} --log_dir run")
    (tiny.folder / "elsewhere").rename(tiny.folder / "photos")
    assert tiny.wait(pid).code == 0
    ends_alike(tiny)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_waits_for_its_data_heeds_a_signal_and_loses_no_step(tiny, workers: int) -> None:
    command = f"{tiny.stage_1} --dataset custom --train_steps {STEPS} --num_workers {workers}"
    tiny.ok(f"{command} --log_dir undisturbed")
    (pid,) = away(tiny, f"{command} --log_dir run")
    os.kill(pid, signal.SIGTERM)
    ended = tiny.wait(pid)
    assert ended.code == 143
    step = int(ended.out.split("stopped by SIGTERM after step ")[1].split(";")[0])
    assert (tiny.folder / f"logs/run/saved_models/vqgan_state_{step}.th").exists()
    (tiny.folder / "elsewhere").rename(tiny.folder / "photos")
    assert f"continuing after step {step}" in tiny.ok("train_vqgan.py --resume --log_dir run")
    ends_alike(tiny)


def test_a_process_that_alone_misses_its_copy_of_the_data_saves_what_all_did(tiny) -> None:
    for rank in (0, 1):
        shutil.copytree(tiny.folder / "photos", tiny.folder / f"photos_{rank}")
    (tiny.folder / "datasets.yaml").write_text("custom: {paths: photos_$RANK}\n")
    command = f"{tiny.stage_1} --dataset custom --train_steps {STEPS} --batch_size 2"
    assert all(tiny.wait(pid).code == 0 for pid in tiny.start_together(f"{command} --log_dir undisturbed", 2))
    first, second = away(tiny, f"{command} --log_dir run", 2, "photos_1")
    os.kill(second, signal.SIGTERM)
    assert tiny.wait(second).code == 143
    assert tiny.wait(first).code == 1
    (state,) = (tiny.folder / "logs/run/saved_models").glob("vqgan_state_*.th")
    (tiny.folder / "elsewhere").rename(tiny.folder / "photos_1")
    resumed = [tiny.wait(pid) for pid in tiny.start_together("train_vqgan.py --resume --log_dir run", 2)]
    assert f"continuing after step {state.stem.rpartition('_')[2]}" in resumed[0].out
    ends_alike(tiny)


@pytest.mark.parametrize("together", [False, True])
def test_workers_need_nothing_of_the_temporary_folder(tiny, new_shell, together: bool) -> None:
    """Its path may be longer than the address of a socket, and cleaners empty it."""
    temporary = tiny.folder / ("t" * 100)
    temporary.mkdir()
    shell = new_shell(TMPDIR=str(temporary))
    shell.folder = tiny.folder
    torchrun = f"-m torch.distributed.run --nproc_per_node=2 --master_port={free_port()}".split() if together else []
    command = f"{tiny.stage_1} --dataset custom --train_steps 12 --num_workers 2 --log_dir run"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(shell.run, command, *torchrun, "-u" if not together else "--max-restarts=0")
        while not running.done():
            for left in temporary.glob("pymp-*"):
                shutil.rmtree(left, ignore_errors=True)
            time.sleep(0.05)
    assert running.result().code == 0, running.result().err
