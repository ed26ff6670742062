"""Runs that are ended from outside, or from two sides at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from utils.machine.files import sole_writer
from utils.machine.signals import SAVING, STOPPING
from utils.reporting.training_report import TIMINGS

REPO = Path(__file__).parents[2]
STAGE_1 = "train_vqgan.py {RUN} {VQGAN} --no_amp --ema --steps_per_log 5 --log_dir run"
STAGE_2 = "train_sampler.py {RUN} {PRIOR} --no_amp --ema --steps_per_log 5 --ae_load_dir vqgan --log_dir run"


def wait_for(path: Path, text: str, process: subprocess.Popen[str]) -> None:
    """Until a file holds a text."""
    for _ in range(1200):
        if path.exists() and text in path.read_text():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{text!r} never appeared in {path}")


def started(shell: Any, command: str) -> subprocess.Popen[str]:
    """A command in the background, once it is training."""
    process = shell.start(command)
    wait_for(shell.logs / "run" / "metrics.jsonl", '"train"', process)
    return process


def metrics(shell: Any, run: str) -> list[dict]:
    lines = (shell.logs / run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in lines]


@pytest.mark.parametrize("command", [STAGE_1, STAGE_2], ids=["stage 1", "stage 2"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_go_on(toy_copy, command: str, number: signal.Signals, code: int) -> None:
    process = started(toy_copy, f"{command} --train_steps 100000")
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (code, ""), out
    line = out.strip().splitlines()[-1]
    assert f"stopped by {number.name} after step " in line
    done = int(line.split("after step ")[1].split(";")[0])
    assert line.endswith("; the same command goes on")
    assert any((toy_copy.logs / "run/saved_models").glob(f"*_state_{done}.th"))
    assert f"continuing after step {done}" in toy_copy.ok(f"{command} --resume --train_steps {done + 2}")


def test_a_run_that_is_stopped_and_started_again_ends_like_an_undisturbed_one(toy_copy) -> None:
    process = started(toy_copy, f"{STAGE_1} --train_steps 60")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    toy_copy.ok(f"{STAGE_1} --train_steps 60")
    assert "is complete" in toy_copy.ok(f"{STAGE_1} --train_steps 60")
    toy_copy.ok(f"{STAGE_1.replace('--log_dir run', '--log_dir once')} --train_steps 60")
    ours, theirs = (
        torch.load(toy_copy.logs / run / "saved_models/vqgan_ema_60.th", weights_only=True) for run in ("run", "once")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert metrics(toy_copy, "run") == metrics(toy_copy, "once")


@pytest.mark.usefixtures("terminal")
def test_signals_to_all_processes_leave_the_workers_to_the_run(toy_copy) -> None:
    """A scheduler sends SIGTERM or SIGUSR1 to each, a terminal SIGINT on Ctrl-C, and SIGHUP when it is closed."""
    process = started(toy_copy, f"{STAGE_1} --train_steps 100000 --num_workers 2")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    for pid in map(int, children):
        for number in (*STOPPING, SAVING):
            os.kill(pid, number)
    done = len(metrics(toy_copy, "run"))
    for _ in range(1200):  # the run goes on with its workers, longer than what they had ready
        if process.poll() is not None or len(metrics(toy_copy, "run")) > done + 1:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (143, ""), out
    assert "stopped by SIGTERM after step " in out
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_a_second_signal_ends_at_once(toy_copy) -> None:
    process = started(toy_copy, f"{STAGE_1} --train_steps 100000 --steps_per_save_output 0")
    os.kill(process.pid, signal.SIGSTOP)  # so that both are there before it looks at either
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    out, err = process.communicate(timeout=120)
    assert process.returncode in (130, 143)
    assert err == ""
    assert "stopped by" not in out


def test_sigusr1_saves_and_goes_on(toy_copy) -> None:
    process = started(toy_copy, f"{STAGE_1} --train_steps 100000 --steps_per_checkpoint 0")
    process.send_signal(signal.SIGUSR1)
    wait_for(toy_copy.logs / "run/log.txt", "saved logs/run", process)
    process.kill()
    process.communicate()
    (step,) = [int(f.stem.split("_")[-1]) for f in (toy_copy.logs / "run/saved_models").glob("vqgan_state_*.th")]
    assert f"continuing after step {step}" in toy_copy.ok(
        f"train_vqgan.py --resume --log_dir run --train_steps {step + 1}"
    )


def test_a_run_killed_before_its_first_save_starts_again(toy_copy) -> None:
    process = started(toy_copy, f"{STAGE_1} --train_steps 100000")
    process.kill()
    process.communicate()
    saved = toy_copy.logs / "run/saved_models"
    saved.mkdir(exist_ok=True)
    (saved / ".vqgan_saving_10").touch()
    (saved / "vqgan_10.th").write_bytes(b"half of the first step")
    out = toy_copy.ok("train_vqgan.py --resume --log_dir run --train_steps 12")
    assert "interrupted before it saved a step: it starts again" in out
    assert [line["step"] for line in metrics(toy_copy, "run")] == [5, 10]
    assert sorted(file.name for file in saved.iterdir()) == ["vqgan_12.th", "vqgan_ema_12.th", "vqgan_state_12.th"]


def test_one_run_folder_has_one_writer(toy_copy) -> None:
    process = started(toy_copy, f"{STAGE_1} --train_steps 100000")
    line = toy_copy.refused(f"{STAGE_1} --train_steps 10")
    assert f"process {process.pid} on " in line
    assert "--log_dir" in line
    process.kill()  # a dead one's lock is not in the way
    process.communicate()
    toy_copy.ok(f"{STAGE_1} --train_steps 2")


def test_the_lock_ends_with_its_block(tmp_path: Path) -> None:
    """Locks belong to processes: another one has to try."""
    code = (
        "from pathlib import Path\nfrom utils.machine.files import sole_writer\n"
        f"with sole_writer(Path({str(tmp_path)!r})): pass"
    )

    def other() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=60)

    with sole_writer(tmp_path):
        assert f"is being written to by process {os.getpid()}" in other().stderr
    assert other().returncode == 0


def test_older_states_go_and_weights_stay_as_told(toy_copy) -> None:
    toy_copy.ok(f"{STAGE_1} --train_steps 12 --steps_per_checkpoint 3")
    saved = toy_copy.logs / "run/saved_models"
    assert {file.name for file in saved.glob("vqgan_state*")} == {"vqgan_state_9.th", "vqgan_state_12.th"}
    assert {file.name for file in saved.glob("vqgan_[0-9]*")} == {f"vqgan_{step}.th" for step in (3, 6, 9, 12)}
    toy_copy.ok("train_vqgan.py --log_dir run --resume --train_steps 18 --keep_checkpoints 1 --keep_states 3")
    assert {file.name for file in saved.iterdir()} == {"vqgan_18.th", "vqgan_ema_18.th", "vqgan_state_18.th"}


def test_a_run_that_is_done_tidies_what_a_kill_left(tiny) -> None:
    """It was killed when its last step was whole, before it had deleted what that made useless."""
    saved = tiny.folder / "logs/ae/saved_models"
    (saved / ".vqgan_saving_8").touch()
    (saved / ".vqgan_state_8.th.123").write_bytes(b"half of it")
    tiny.ok("train_vqgan.py --resume --log_dir ae --keep_states 1")
    left = {file.name for file in saved.iterdir()}
    assert left == {"vqgan_state_8.th", *(f"vqgan{ema}_{step}.th" for ema in ("", "_ema") for step in (4, 8))}


@pytest.mark.parametrize("harm", ["truncated", "flipped"])
def test_a_damaged_step_is_reported_and_an_older_one_used(toy_copy, harm: str) -> None:
    file = toy_copy.logs / "vqgan/saved_models/vqgan_20.th"
    content = bytearray(file.read_bytes())
    if harm == "truncated":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 1
    file.write_bytes(content)
    out = toy_copy.ok("train_vqgan.py --log_dir vqgan --resume --train_steps 21")
    assert "vqgan_20.th is damaged" in out
    assert "continuing after step 10" in out


def test_updates_that_are_not_finite_end_the_run(toy_copy) -> None:
    done = toy_copy.run(f"{STAGE_2} --train_steps 50 --lr 1e30 --warmup_iters 0 --max_skipped 7")
    assert done.code == 1
    assert done.err.startswith("train_sampler.py: error: 7 updates in a row had gradients that are not finite")
    assert done.err.count("\n") == 1
    assert "last good step was" in done.err
