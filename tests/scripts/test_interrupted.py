"""Runs that are ended from outside, or from two sides at once."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from utils.machine.signals import SAVING, STOPPING
from warm import Ended, Shell, until

ENDLESS = "--dataset custom --train_steps 100000 --log_dir run"


def started(tiny: Shell, command: str) -> int:
    """Process id of a command in the background, once it is training in `logs/run`."""
    pid, log = tiny.start(command), tiny.logs / "run/metrics.jsonl"
    until(lambda: tiny.code(pid) is not None or (log.exists() and '"train"' in log.read_text()))
    assert tiny.code(pid) is None, tiny.wait(pid)
    return pid


def ended_by(tiny: Shell, pid: int, *signals: signal.Signals) -> Ended:
    for number in signals:
        os.kill(pid, number)
    return tiny.wait(pid)


def metrics(tiny: Shell) -> list[dict]:
    return [json.loads(line) for line in (tiny.logs / "run/metrics.jsonl").read_text().splitlines()]


def saved(tiny: Shell, pattern: str = "*", run: str = "run") -> set[str]:
    return {file.name for file in (tiny.logs / run / "saved_models").glob(pattern)}


@pytest.mark.parametrize("stage", ["stage_1", "stage_2"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_go_on(tiny: Shell, stage: str, number: signal.Signals, code: int) -> None:
    command = f"{getattr(tiny, stage)} {ENDLESS}"
    ended = ended_by(tiny, started(tiny, command), number)
    assert ended.code == code, ended
    assert "error" not in ended.err
    line = ended.out.strip().splitlines()[-1]
    assert f"stopped by {number.name} after step " in line
    done = int(line.split("after step ")[1].split(";")[0])
    assert line.endswith("; the same command goes on")
    assert saved(tiny, f"*_state_{done}.th")
    assert f"continuing after step {done}" in tiny.ok(f"{command} --resume --train_steps {done + 2}")


@pytest.mark.parametrize(
    ("experiment", "made"),
    [
        ("calc_FID.py --features r64 --kid_subsets 0 --n_samples 3000", "samples/*/*.npy"),
        ("calc_approximate_ELBO.py --train_steps 100000 --steps_per_eval 5", "metrics.jsonl"),
    ],
)
def test_ctrl_c_ends_an_experiment_that_the_same_command_goes_on_with(tiny: Shell, experiment: str, made: str) -> None:
    pid = tiny.start(f"experiments/{experiment} {{MODELS}} --log_dir run")
    until(lambda: tiny.code(pid) is not None or any((tiny.logs / "run").glob(made)))
    assert tiny.code(pid) is None, tiny.wait(pid)
    ended = ended_by(tiny, pid, signal.SIGINT)
    assert ended.code == 130, ended
    assert "error" not in ended.err
    assert ended.out.endswith("stopped by SIGINT: the same command goes on from here\n")


@pytest.mark.usefixtures("terminal")
def test_signals_to_all_processes_leave_the_workers_to_the_run(tiny: Shell) -> None:
    """A scheduler sends SIGTERM or SIGUSR1 to each, a terminal SIGINT on Ctrl-C, and SIGHUP when it is closed."""
    pid = started(tiny, f"{tiny.stage_1} {ENDLESS} --num_workers 2")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) >= 2
    for child in map(int, children):
        for number in (*STOPPING, SAVING):
            os.kill(child, number)
    done = len(metrics(tiny))
    # The run goes on with its workers, longer than what they had ready.
    until(lambda: tiny.code(pid) is not None or len(metrics(tiny)) > done + 4)
    ended = ended_by(tiny, pid, signal.SIGTERM)
    assert ended.code == 143, ended
    assert "stopped by SIGTERM after step " in ended.out
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_second_signal_ends_at_once(tiny: Shell) -> None:
    pid = started(tiny, f"{tiny.stage_1} {ENDLESS} --steps_per_save_output 0")
    # Stopped, so that both are there before it looks at either.
    ended = ended_by(tiny, pid, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT)
    assert ended.code in (130, 143)
    assert "error" not in ended.err
    assert "stopped by" not in ended.out


def test_sigusr1_saves_and_goes_on(tiny: Shell) -> None:
    pid = started(tiny, f"{tiny.stage_1} {ENDLESS} --steps_per_checkpoint 0")
    os.kill(pid, signal.SIGUSR1)
    until(lambda: "saved logs/run" in (tiny.logs / "run/log.txt").read_text())
    assert ended_by(tiny, pid, signal.SIGKILL).code == -signal.SIGKILL
    (state,) = saved(tiny, "vqgan_state_*.th")
    step = int(Path(state).stem.split("_")[-1])
    assert f"continuing after step {step}" in tiny.ok(f"train_vqgan.py --resume --log_dir run --train_steps {step + 1}")


def test_a_run_killed_before_its_first_save_starts_again(tiny: Shell) -> None:
    ended_by(tiny, started(tiny, f"{tiny.stage_1} {ENDLESS}"), signal.SIGKILL)
    folder = tiny.logs / "run/saved_models"
    folder.mkdir(exist_ok=True)
    (folder / ".vqgan_saving_10").touch()
    (folder / "vqgan_10.th").write_bytes(b"half of the first step")
    out = tiny.ok("train_vqgan.py --resume --log_dir run --train_steps 12")
    assert "interrupted before it saved a step: it starts again" in out
    assert [line["step"] for line in metrics(tiny)] == [2, 4, 6, 8, 10, 12]
    assert saved(tiny) == {"vqgan_12.th", "vqgan_ema_12.th", "vqgan_state_12.th"}


def test_one_run_folder_has_one_writer(tiny: Shell) -> None:
    pid = started(tiny, f"{tiny.stage_1} {ENDLESS}")
    refused = tiny.run(f"{tiny.stage_1} --dataset custom --train_steps 10 --log_dir run")
    assert refused.code == 2
    line = refused.err.splitlines()[-1]
    assert f"process {pid} on " in line
    assert "--log_dir" in line
    ended_by(tiny, pid, signal.SIGKILL)  # a dead one's lock is not in the way
    tiny.ok(f"{tiny.stage_1} --dataset custom --train_steps 2 --log_dir run")


def test_older_states_go_and_weights_stay_as_told(tiny: Shell) -> None:
    tiny.ok(f"{tiny.stage_1} --dataset custom --train_steps 12 --steps_per_checkpoint 3 --log_dir run")
    assert saved(tiny, "vqgan_state*") == {"vqgan_state_9.th", "vqgan_state_12.th"}
    assert saved(tiny, "vqgan_[0-9]*") == {f"vqgan_{step}.th" for step in (3, 6, 9, 12)}
    tiny.ok("train_vqgan.py --log_dir run --resume --train_steps 18 --keep_checkpoints 1 --keep_states 3")
    assert saved(tiny) == {"vqgan_18.th", "vqgan_ema_18.th", "vqgan_state_18.th"}


def test_a_run_that_is_done_tidies_what_a_kill_left(tiny: Shell) -> None:
    """It was killed when its last step was whole, before it had deleted what that made useless."""
    for name in (".vqgan_saving_8", ".vqgan_state_8.th.123"):
        (tiny.logs / "ae/saved_models" / name).touch()
    tiny.ok("train_vqgan.py --resume --log_dir ae --keep_states 1")
    kept = {f"vqgan{ema}_{step}.th" for ema in ("", "_ema") for step in (4, 8)}
    assert saved(tiny, run="ae") == {"vqgan_state_8.th", *kept}


def test_updates_that_are_not_finite_end_the_run(tiny: Shell) -> None:
    flags = "--train_steps 50 --lr 1e30 --warmup_iters 0 --max_skipped 7"
    ended = tiny.run(f"{tiny.stage_2} --dataset custom {flags} --log_dir run")
    assert ended.code == 1
    (line,) = (line for line in ended.err.splitlines() if "note: " not in line)
    assert line.startswith("train_sampler.py: error: 7 updates in a row had gradients that are not finite")
    assert "last good step was" in line
