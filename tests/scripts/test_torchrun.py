"""Experiments and runs of several processes: one result, one writer, and one line when something is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compare import same_files
from machine import torchrun
from warm import Shell, free_port, until

R64 = "--features r64 --kid_subsets 3 --kid_subset_size 5"
COMMANDS = {
    "inpainted": "inpaint.py {MODELS} --n_images 3 --n_samples 3 --region 1 2 5 3",
    "fid": f"calc_FID.py {{MODELS}} {R64} --n_samples 10 --save_images",
    "prdc": "calc_PRDC.py {MODELS} --features r64 --n_samples 9",
    "reconstructions": f"calc_VQGAN_FID.py {{AE}} {R64} --n_samples 11",
    "likelihood": "calc_approximate_ELBO.py {MODELS} --train_steps 6 --steps_per_eval 3 --elbo_steps 2",
    "near": "calc_nearest_neighbours.py {MODELS} --n_samples 3 --top_k 5 --distance r64",
    "larger": "generate_big_samples.py {MODELS} --n_samples 3 --shape 5 6 --order random",
}
SCRIPTS = {name: f"experiments/{command} --log_dir {name}" for name, command in COMMANDS.items()}
# What rounding may do: gradients are summed in another order; batches are of another size, which may move a pixel by a
# level of 255.
TOLERANCES = {"likelihood": 1e-5, "near": 1e-4, "fid": 1e-3, "reconstructions": 1e-3}
TRAINING = f"{Shell.stage_1} --dataset custom --train_steps 100 --steps_per_checkpoint 10 --log_dir"

Result = Callable[[int, str], Path]


def newest_child(parent: int) -> int:
    """Process id of the last that a process started; 0 where there is none."""
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    return max((int(pid) for task in tasks for pid in task.read_text().split()), default=0)


def newest(run: Path) -> int:
    """The newest step of a VQGAN run that has a training state; 0 where none has."""
    return max((int(file.stem.rpartition("_")[2]) for file in run.glob("saved_models/vqgan_state_*.th")), default=0)


@pytest.fixture(scope="module")
def run_folder(tiny_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """run_folder(processes, name): what 1, 2 or 4 processes left of an experiment.

    Two also trained, `undisturbed`, and `run`, with one that was killed, under torchrun.
    """
    top = tmp_path_factory.mktemp("together")
    shells = {count: Shell(shutil.copytree(tiny_runs, top / str(count))) for count in (1, 2, 4)}
    started = torchrun(top / "2", 2, 1, f"{TRAINING} run", free_port())

    def together(command: str, count: int) -> None:
        pids = shells[count].start_together(command, count, SIMPLE_FEATURES="1")
        ended = list(map(shells[count].wait, pids))
        assert [one.code for one in ended] == [0] * count, ended
        assert [one.out for one in ended[1:]] == [""] * (count - 1)
        (top / f"{count}/out.txt").open("a").write(ended[0].out)

    until(lambda: newest(top / "2/logs/run") or started.poll() is not None)
    os.kill(newest_child(started.pid), signal.SIGKILL)
    for command in SCRIPTS.values():
        for count in (1, 2):
            together(command, count)
    together(SCRIPTS["fid"], 4)
    together(f"{TRAINING} undisturbed", 2)
    code, out = started.wait(300), (top / "2/torchrun.txt").read_text()
    assert code == 0, out[-3000:]
    assert len(re.findall(r"^step 100/100  saved", out, re.MULTILINE)) == 1, out[-3000:]
    return lambda count, name: top / str(count) / "logs" / name


@pytest.mark.parametrize(("count", "name"), [*((2, name) for name in COMMANDS if name != "inpainted"), (4, "fid")])
def test_results_do_not_depend_on_the_number_of_processes(run_folder: Result, count: int, name: str) -> None:
    (several,), (one,) = (json.loads((run_folder(n, name) / "results.json").read_text()) for n in (count, 1))
    assert several["conditions"] == one["conditions"]
    assert several["values"] == pytest.approx(one["values"], rel=TOLERANCES.get(name, 0), abs=0)


def test_pictures_and_lists_do_not_either(run_folder: Result) -> None:
    for name, pattern, number in (
        ("fid", "images/samples/*.png", 10),
        ("larger", "images/samples/*.png", 3),
        ("reconstructions", "images/*.png", 1),
        ("inpainted", "images/**/*.png", 10),
    ):
        found = (sorted(run_folder(count, name).glob(pattern)) for count in (2, 1))
        several, one = ({file.name: np.asarray(Image.open(file)).astype(int) for file in files} for files in found)
        assert len(one) == number
        assert several.keys() == one.keys()
        for file, pixels in one.items():
            np.testing.assert_allclose(several[file], pixels, rtol=0, atol=1, err_msg=file)
    several, one = (json.loads((run_folder(count, "near") / "neighbours.json").read_text()) for count in (2, 1))
    for ours, theirs in zip(several["samples"], one["samples"], strict=True):
        assert [each["index"] for each in ours] == [each["index"] for each in theirs]


def test_one_process_speaks(run_folder: Result) -> None:
    alone, together = ((run_folder(count, "fid").parents[1] / "out.txt").read_text() for count in (1, 2))
    for value, times in (("fid", 2), ("precision", 1), ("bits_per_dim", 1), ("nearest_mean", 1)):
        assert [len(re.findall(rf"^{value} \d", out, re.MULTILINE)) for out in (together, alone)] == [times, times]


def test_a_killed_process_is_started_again_and_the_run_ends_as_if_undisturbed(run_folder: Result) -> None:
    run, undisturbed = (run_folder(2, name) for name in ("run", "undisturbed"))
    assert "continuing after step" in (run / "log.txt").read_text()
    assert same_files(*(folder / "saved_models/vqgan_100.th" for folder in (run, undisturbed)))


def test_a_machine_whose_process_is_killed_twice_comes_back_and_the_other_too(run_folder: Result) -> None:
    """The machine without a failure does not count the restarts."""
    run, undisturbed = (run_folder(2, name) for name in ("twice", "undisturbed"))
    shell = Shell(run.parents[1])
    command = f"tests/helpers/machine.py {free_port()} {TRAINING} twice --dist_timeout 60"
    machines = [shell.start(command) for _ in range(2)]
    step = killed = 0
    for _ in range(2):
        until(lambda step=step, killed=killed: newest(run) > step and newest_child(machines[1]) not in (0, killed))
        assert [shell.code(each) for each in machines] == [None, None], list(map(shell.wait, machines))
        step, killed = newest(run), newest_child(machines[1])
        os.kill(killed, signal.SIGKILL)
    ended = list(map(shell.wait, machines))
    assert [each.code for each in ended] == [0, 0], ended
    errors = [line for each in ended for line in each.err.splitlines() if ": error: " in line]
    assert all("lost the other processes" in line for line in errors), errors
    assert (run / "log.txt").read_text().count("continuing after step") == 2
    assert same_files(*(folder / "saved_models/vqgan_100.th" for folder in (run, undisturbed)))


def test_stopped_or_killed_processes_are_told_and_one_goes_on_from_there(tiny) -> None:
    samples = tiny.logs / "run/samples"
    command = f"experiments/calc_FID.py {{MODELS}} {R64} --n_samples 1500 --log_dir run"

    def done() -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in samples.glob("*/*.npy")}

    def end_amid(signals: dict[int, int]) -> tuple[list[Any], list[list[str]]]:
        """End ranks once there are more part files than before; all ends, and stderr but for notes of short runs."""
        before, pids = done(), tiny.start_together(command, 2)
        until(lambda: done() != before)
        assert tiny.code(pids[0]) is None
        for rank, number in signals.items():
            os.kill(pids[rank], number)
        ended = list(map(tiny.wait, pids))
        return ended, [[line for line in one.err.splitlines() if not line.startswith("note: ")] for one in ended]

    ended, told = end_amid({0: signal.SIGTERM, 1: signal.SIGTERM})  # as torchrun does when it is asked to stop
    assert ([one.code for one in ended], told) == ([143] * 2, [[]] * 2)
    assert ended[0].out.endswith("stopped by SIGTERM: the same command goes on from here\n")
    first = done()

    command += " --dist_timeout 5"  # where no torchrun ends the other one
    ended, told = end_amid({1: signal.SIGKILL})
    assert [one.code for one in ended] == [1, -9]
    (line,) = told[0]
    assert re.match(r"calc_FID.py: error: rank 0 on \S+: rows in logs/run/samples/\S+: \d+ are missing, and none", line)
    kept = done()
    assert kept.items() > first.items()

    tiny.ok(f"{command} --batch_size 64", SIMPLE_FEATURES="1")
    assert done().items() > kept.items()


def test_images_that_any_process_cannot_read_are_listed_and_counted(tiny) -> None:
    for number in (5, 9, 13):
        (tiny.folder / f"photos/{number:02}.png").write_bytes(b"no image")
    command = f"{tiny.stage_1} --dataset custom --train_steps 12"
    first, second = map(tiny.wait, tiny.start_together(f"{command} --max_bad_images 0.2 --log_dir run", 2))
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.out.count("another image stands in for it") == 3
    assert second.out == ""
    listed = (tiny.logs / "run/bad_images.txt").read_text().splitlines()
    assert sorted(Path(line.split("\t")[0]).name for line in listed) == ["05.png", "09.png", "13.png"]
    assert not list((tiny.logs / "run").glob("bad_images*rank*"))

    ended = list(map(tiny.wait, tiny.start_together(f"{command} --max_bad_images 0.1 --log_dir more", 2)))
    assert sorted(one.code for one in ended) == [1, 2]
    (line,) = [line for one in ended for line in one.err.splitlines() if "note: " not in line]
    assert "3 of 24 images cannot be read" in line
