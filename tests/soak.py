"""Kills runs at random moments and resumes them, and watches their memory: `make soak`, or a short form by its flags.

Each run of a stage is killed (SIGKILL) again and again, every third time once it has begun to save a step, and goes on
by the same command until it is done. Then its weights, average, training state, codes, metrics and plots must be those
of a run that nobody disturbed, to the bit; and after every kill the newest step that the run had called saved must be
there, whole. Experiments are killed and started again too: they must end as undisturbed ones, and what they leave when
they are killed must be whole. Images and models are tiny.

The outcome is written as JSON; the exit status is 1 if anything differed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parent / "helpers"))

from compare import differences_of_folders
from utils.reporting.training_report import TIMINGS
from utils.runs.checkpoints import load_state
from utils.runs.logged import read_metrics
from utils.runs.run_folder import ABSORBING, AUTOREGRESSIVE, VQGAN, RunFolder
from warm import REPO, Shell

OFTEN = (
    "--dataset toy_churches --toy_images 480 --batch_size 8 --steps_per_log 3 --steps_per_eval 20 --horizontal_flip "
    "--steps_per_save_output 30 --steps_per_display_output 30 --ema_beta 0.9"
)
PRIOR = f"{Shell.stage_2} {OFTEN} --no_amp --warmup_iters 10 --attn_pdrop 0.1"
STAGES = {
    VQGAN: f"{Shell.stage_1} {OFTEN} --amp --disc_start_step 10 --restart_dead_codes 7",
    ABSORBING: PRIOR,
    AUTOREGRESSIVE: f"{PRIOR} --sampler autoregressive",
}
EXPERIMENTS = {
    "calc_FID": "{MODELS} --features r64 --split all --n_samples 24 --kid_subset_size 5 --kid_subsets 4 --save_images",
    "calc_PRDC": "{MODELS} --features r64 --split all --n_samples 24",
    "calc_VQGAN_FID": "{AE} --features r64 --split all --kid_subset_size 5 --kid_subsets 4",
    "calc_approximate_ELBO": "{MODELS} --train_steps 12 --steps_per_eval 4",
    "calc_nearest_neighbours": "{MODELS} --n_samples 4 --distance r64 --top_k 3",
    "generate_big_samples": "{MODELS} --n_samples 2 --shape 8 12",
    "inpaint": "{MODELS} --n_images 10",
    "get_samples": "{MODELS} --n_samples 40 --save_individually",
}
# Whose content grows or changes before an experiment is done, and which tell of time or processes.
GROWING = ("*.th", "*.jsonl", "log.txt", "hparams.yaml")
ABOUT_THE_PROCESS = (".lock", "log.txt", "newest.json", "summary.png")


class Disturbed:
    """A command that is killed at random moments, up to `lives` times before it may end, then compared: `name`.

    It works in logs/run; logs/reference holds what it leaves when nobody disturbs it. `look` judges what a kill left.
    """

    lives, caches = 12, ["ae/latents"]  # caches are those that others fill too

    def __init__(self, shell: Shell, name: str, command: str, seed: int) -> None:
        self.shell, self.name, self.command, self.logs = shell, name, f"{command} --log_dir run", shell.logs
        self.dice = random.Random(seed)
        self.tally: Counter[str] = Counter(whole_steps_lost=0)
        self.problems: list[str] = []

    def outcome(self, kills: int) -> dict:
        """Kill it so often: what happened."""
        for cache in self.caches:
            shutil.rmtree(self.logs / cache, ignore_errors=True)
        self.seconds = self.end("reference")
        while self.tally["kills"] < kills:
            for life in range(min(self.lives, kills - self.tally["kills"])):
                begin = time.monotonic()
                if not self.one_life():
                    if life == 0:  # the whole of it took less than it did before
                        self.seconds = time.monotonic() - begin
                    break
            self.end("ended")
            self.tally["runs"] += 1
            self.problems += self.differences(self.logs / "ended", self.logs / "reference")
        return {**self.tally, "problems": self.problems}

    def end(self, where: str) -> float:
        """Run the command to its end, and move its folder and caches away; the seconds that it took."""
        begin = time.monotonic()
        self.shell.ok(self.command)
        seconds = time.monotonic() - begin
        folder = self.logs / where
        shutil.rmtree(folder, ignore_errors=True)
        (self.logs / "run").rename(folder)
        for cache in self.caches:
            if (self.logs / cache).exists():
                (self.logs / cache).rename(folder / f"shared_{Path(cache).name}")
        return seconds

    def one_life(self) -> bool:
        """Start the command, or go on with it, and kill it; False if it came to its end first."""
        pid = self.shell.start(self.command)
        self.wait(pid)
        if self.shell.code(pid) is None:
            os.kill(pid, signal.SIGKILL)
        ended = self.shell.wait(pid)
        if ended.code not in (0, -signal.SIGKILL):
            self.problems.append(f"{self.name} ended with {ended.code} before it was killed: {ended.err[-500:]}")
        if ended.code != -signal.SIGKILL:
            return False
        self.tally["kills"] += 1
        self.look()
        return True

    def wait(self, pid: int) -> None:
        """Wait for the moment to kill it."""
        time.sleep(self.dice.uniform(0.2, 1) * self.seconds)

    def differences(self, ours: Path, theirs: Path) -> list[str]:
        """What a finished run does not share with the undisturbed one."""
        return differences_of_folders(ours, theirs, ABOUT_THE_PROCESS)


class Training(Disturbed):
    """Of a stage, whose name is that of the files of its weights."""

    def wait(self, pid: int) -> None:
        saved = self.logs / "run/saved_models"
        marks = set(saved.glob(".*_saving_*"))
        aimed = self.tally["kills"] % 3 == 0
        while aimed and not set(saved.glob(".*_saving_*")) - marks and self.shell.code(pid) is None:
            time.sleep(0.0002)
        time.sleep(self.dice.uniform(0, 0.02 if aimed else 0.6 * self.seconds))

    def look(self) -> None:
        """The newest step that the log calls saved is there, and whole."""
        folder = RunFolder("run", self.logs)
        states = folder.state_steps(self.name)
        self.tally["kills_aimed_into_saving"] += self.tally["kills"] % 3 == 1
        self.tally["kills_beside_a_half_written_step"] += bool(folder.unfinished_steps(self.name))
        self.tally["kills_before_the_first_step"] += not states
        log = folder.log.read_text() if folder.log.exists() else ""
        said = max(map(int, re.findall(rf"saved \S+/{self.name}_(\d+)\.th", log)), default=0)
        if said > max(states, default=0):
            self.tally["whole_steps_lost"] += 1
            self.problems.append(f"{folder.path}: step {said} was saved and is lost")
        if states:
            load_state(folder, self.name, states[-1])  # raises where a checksum differs

    def differences(self, ours: Path, theirs: Path) -> list[str]:
        found = differences_of_folders(ours, theirs, (*ABOUT_THE_PROCESS, "*.jsonl"))
        first, second = (
            [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(run / "metrics.jsonl")]
            for run in (ours, theirs)
        )
        return found if first == second else [*found, f"{ours}: metrics differ"]


class Experiment(Disturbed):
    """Which notes after each batch how far it is."""

    lives, caches = 3, ["features", "ae/latents"]

    def look(self) -> None:
        run = self.logs / "run"
        left = [file for file in run.rglob("*") if file.is_file()]
        self.tally["kills_that_left_work"] += any(file.match("*.npy") or file.match("*.th") for file in left)
        if left:
            ignored = (*ABOUT_THE_PROCESS, *GROWING)
            self.problems += differences_of_folders(run, self.logs / "reference", ignored, part=True)


def memory(shell: Shell, command: str, steps: int) -> dict[str, float]:
    """Resident memory of an undisturbed run, in MB: median early on (5% to 15% of the steps) and at the end."""
    pid = shell.start(f"{command} --train_steps {steps} --steps_per_checkpoint {steps // 4} --log_dir run")
    log, seen = shell.logs / "run/metrics.jsonl", []
    while shell.code(pid) is None:
        lines = read_metrics(log) if log.exists() else []
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            break
        if lines:
            seen.append((lines[-1]["step"], pages * os.sysconf("SC_PAGESIZE") / 1e6))
        time.sleep(0.05)
    ended = shell.wait(pid)
    assert ended.code == 0, ended
    shutil.rmtree(shell.logs / "run")
    early = statistics.median(mb for step, mb in seen if 0.05 * steps <= step <= 0.15 * steps)
    late = statistics.median(mb for step, mb in seen if step >= 0.9 * steps)
    return {"steps": steps, "early_mb": early, "late_mb": late, "growth_percent": 100 * (late / early - 1)}


def hardware() -> dict[str, str]:
    """The machine and the versions that the numbers are of."""
    cpu = (re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) or [platform.machine()])[0]
    memory = f"{os.sysconf('SC_PAGESIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"machine": f"{cpu}, {os.cpu_count()} cores, {memory}", **versions}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default, tells in (
        ("kills", 100, "kills per stage"),
        ("experiment_kills", 20, "kills per experiment"),
        ("steps", 60, "steps of each killed run"),
        ("every", 4, "steps between its checkpoints"),
        ("memory_steps", 2000, "steps of the runs whose memory is watched; 0: none"),
        ("seed", 0, "of the moments"),
        ("out", REPO / "benchmarks/results/soak.json", "where the outcome goes"),
    ):
        parser.add_argument(f"--{name}", type=type(default), default=default, help=tells)
    options = parser.parse_args()

    flags = " ".join(f"--{name} {value}" for name, value in vars(options).items() if name != "out")
    result: dict = {"command": f"python tests/soak.py {flags}", **hardware()}
    result |= {"stages": {}, "memory": {}, "experiments": {}}
    with tempfile.TemporaryDirectory() as stages, tempfile.TemporaryDirectory() as experiments:
        shell = Shell(Path(stages))
        shell.ok(f"{STAGES[VQGAN]} --train_steps 4 --log_dir ae")
        for kind, command in STAGES.items():
            killed = f"{command} --train_steps {options.steps} --steps_per_checkpoint {options.every}"
            result["stages"][kind] = Training(shell, kind, killed, options.seed).outcome(options.kills)
            print(kind, result["stages"][kind], flush=True)
            if options.memory_steps:
                result["memory"][kind] = memory(shell, command, options.memory_steps)
        shell = Shell(Path(experiments), SAVE_OFTEN="1", SIMPLE_FEATURES="1")
        shell.train_tiny_models()
        for name, words in EXPERIMENTS.items() if options.experiment_kills else ():
            experiment = Experiment(shell, name, f"experiments/{name}.py {words}", options.seed)
            result["experiments"][name] = experiment.outcome(options.experiment_kills)
            print(name, result["experiments"][name], flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    problems = [each for part in ("stages", "experiments") for each in result[part].values() if each["problems"]]
    return int(any(problems) or any(each["growth_percent"] >= 2 for each in result["memory"].values()))


if __name__ == "__main__":
    sys.exit(main())
