"""Kills runs at random moments and resumes them, and watches their memory: `make soak`, or a short form by its flags.

Each run of a stage is killed (SIGKILL) again and again, every third time once it has begun to save a step, and goes on
by the same command until it is done. Then its weights, average, training state, codes, metrics and plots must be those
of a run that nobody disturbed, to the bit; and after every kill the newest step that the run had called saved must be
there, whole. Scripts are forked from a warm process, see `warm.py`; images and models are tiny.

Experiments are killed and started again until they are done; see `soak_experiments.py`.

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
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parent / "helpers"))

from soak_experiments import EXPERIMENTS, Experiments

from compare import differences_of_folders
from utils.reporting.training_report import TIMINGS
from utils.runs.checkpoints import load_state
from utils.runs.logged import read_metrics
from utils.runs.run_folder import ABSORBING, AUTOREGRESSIVE, VQGAN, RunFolder
from warm import REPO, Warm

RUN = "--dataset toy_churches --toy_images 480 --batch_size 8 --device cpu --num_workers 0 --visdom_port 9"
MODEL = (
    "--nf 32 --ch_mult 1 1 --res_blocks 1 --attn_resolutions --emb_dim 8 --codebook_size 16 --img_size 8 --ndf 8 "
    "--disc_layers 1 --disc_start_step 10 --restart_dead_codes 7"
)
PRIOR = (
    "--bert_n_emb 32 --bert_n_head 2 --bert_n_layers 1 --warmup_iters 10 --attn_pdrop 0.1 --total_steps 4 --n_samples 2"
)
OFTEN = (
    "--steps_per_log 3 --steps_per_eval 20 --steps_per_save_output 30 --steps_per_display_output 30 --ema "
    "--ema_beta 0.9 --horizontal_flip --sinks visdom"
)
STAGES = {
    VQGAN: f"train_vqgan.py {RUN} {MODEL} {OFTEN} --amp",
    ABSORBING: f"train_sampler.py {RUN} {PRIOR} {OFTEN} --no_amp --ae_load_dir ae",
    AUTOREGRESSIVE: f"train_sampler.py {RUN} {PRIOR} {OFTEN} --no_amp --ae_load_dir ae --sampler autoregressive",
}


@dataclass
class Tally:
    """What happened to the runs of one stage."""

    kills: int = 0
    kills_aimed_into_saving: int = 0
    kills_beside_a_half_written_step: int = 0
    kills_before_the_first_step: int = 0
    runs: int = 0
    resumes: int = 0
    whole_steps_lost: int = 0
    problems: list[str] = field(default_factory=list)


class Soak:
    """Runs of every kind in one folder."""

    def __init__(self, warm: Warm, steps: int, every: int, seed: int) -> None:
        self.warm = warm
        self.logs = warm.folder / "logs"
        self.steps = steps
        self.every = every
        self.dice = random.Random(seed)

    def prepare(self) -> dict[str, float]:
        """Undisturbed runs of every kind; seconds that each took."""
        self.warm.ok(f"{STAGES[VQGAN]} --train_steps 4 --log_dir ae")
        seconds = {}
        for kind in STAGES:
            begin = time.monotonic()
            self.warm.ok(self.command(kind, f"reference_{kind}"))
            seconds[kind] = time.monotonic() - begin
        (self.logs / "ae/latents").rename(self.logs / "reference_latents")
        return seconds

    def command(self, kind: str, run: str) -> str:
        """Of a run: it begins, or goes on from where it was killed."""
        lengths = f"--train_steps {self.steps} --steps_per_checkpoint {self.every}"
        return f"{STAGES[kind]} {lengths} --log_dir {run}"

    def stage(self, kind: str, kills: int, seconds: float) -> Tally:
        """Kill runs of a stage until there were so many kills, and compare each with the undisturbed one."""
        tally = Tally()
        while tally.kills < kills:
            run = f"killed_{kind}_{tally.runs}"
            shutil.rmtree(self.logs / "ae/latents", ignore_errors=True)
            for life in range(min(12, kills - tally.kills)):
                begin = time.monotonic()
                if not self.one_life(kind, run, seconds, tally):
                    if life == 0:  # the whole run took less than it did before
                        seconds = time.monotonic() - begin
                    break
            ended = self.warm.run(self.command(kind, run))
            tally.runs += 1
            tally.resumes += 1
            if ended.code:
                tally.problems.append(f"{run} could not be resumed: {ended.err[-500:]}")
            else:
                tally.problems += self.differences(kind, run)
            shutil.rmtree(self.logs / run)
        return tally

    def one_life(self, kind: str, run: str, seconds: float, tally: Tally) -> bool:
        """Start or resume a run and kill it; False if it came to its end first."""
        folder = RunFolder(run, self.logs)
        marks = set(folder.saved_models.glob(".*_saving_*"))
        resumed = folder.hparams.exists()
        pid = self.warm.start(self.command(kind, run))
        aimed = tally.kills % 3 == 0
        if aimed:
            while not set(folder.saved_models.glob(".*_saving_*")) - marks and self.warm.code(pid) is None:
                time.sleep(0.0002)
            time.sleep(self.dice.uniform(0, 0.02))
        else:
            time.sleep(self.dice.uniform(0, 0.6 * seconds))
        if self.warm.code(pid) is None:
            os.kill(pid, signal.SIGKILL)
        ended = self.warm.wait(pid)
        if ended.code == 0:
            return False
        if ended.code != -signal.SIGKILL:
            tally.problems.append(f"{run} ended with {ended.code} before it was killed: {ended.err[-500:]}")
            return False
        tally.kills += 1
        tally.resumes += resumed
        states = folder.state_steps(kind)
        tally.kills_aimed_into_saving += aimed
        tally.kills_beside_a_half_written_step += bool(folder.unfinished_steps(kind))
        tally.kills_before_the_first_step += not states
        self.check_saved(folder, kind, states, tally)
        return True

    def check_saved(self, folder: RunFolder, kind: str, states: list[int], tally: Tally) -> None:
        """The newest step that the log calls saved is there, and whole."""
        log = folder.log.read_text() if folder.log.exists() else ""
        said = [int(step) for step in re.findall(rf"saved \S+/{kind}_(\d+)\.th", log)]
        if said and (not states or states[-1] < max(said)):
            tally.whole_steps_lost += 1
            tally.problems.append(f"{folder.path}: step {max(said)} was saved and is lost")
        if states:
            load_state(folder, kind, states[-1])  # raises where a checksum differs

    def differences(self, kind: str, run: str) -> list[str]:
        """What a finished run does not share with the undisturbed one."""
        ours, theirs = RunFolder(run, self.logs), RunFolder(f"reference_{kind}", self.logs)
        pairs = [(folder.path / part for folder in (ours, theirs)) for part in ("saved_models", "images")]
        if kind != VQGAN:
            pairs.append(self.logs / name for name in ("ae/latents", "reference_latents"))
        found = [difference for pair in pairs for difference in differences_of_folders(*pair)]
        if self.metrics(ours) != self.metrics(theirs):
            found.append(f"{run}: metrics differ")
        return found

    def metrics(self, folder: RunFolder) -> list[dict]:
        """All that a seed determines."""
        return [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(folder.metrics)]

    def memory(self, kind: str, steps: int) -> dict[str, float]:
        """Resident memory of an undisturbed run, in MB: median early on (5% to 15% of the steps) and at the end."""
        run, seen = f"memory_{kind}", []
        pid = self.warm.start(
            f"{STAGES[kind]} --train_steps {steps} --steps_per_checkpoint {steps // 4} --log_dir {run}"
        )
        log = self.logs / run / "metrics.jsonl"
        while self.warm.code(pid) is None:
            lines = read_metrics(log) if log.exists() else []
            try:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except OSError:
                break
            if lines:
                seen.append((lines[-1]["step"], pages * os.sysconf("SC_PAGESIZE") / 1e6))
            time.sleep(0.05)
        ended = self.warm.wait(pid)
        assert ended.code == 0, ended
        shutil.rmtree(self.logs / run)
        early = statistics.median(mb for step, mb in seen if 0.05 * steps <= step <= 0.15 * steps)
        late = statistics.median(mb for step, mb in seen if step >= 0.9 * steps)
        return {"steps": steps, "early_mb": early, "late_mb": late, "growth_percent": 100 * (late / early - 1)}


def hardware() -> dict[str, str]:
    """The machine and the versions that the numbers are of."""
    cpu = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), ""
    )
    memory = os.sysconf("SC_PAGESIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{cpu or platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"
    return {"machine": machine, "python": platform.python_version(), "torch": torch.__version__}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="kills per stage")
    parser.add_argument("--experiment_kills", type=int, default=20, help="kills per experiment")
    parser.add_argument("--steps", type=int, default=60, help="steps of each killed run")
    parser.add_argument("--every", type=int, default=4, help="steps between its checkpoints")
    parser.add_argument(
        "--memory_steps", type=int, default=2000, help="steps of the runs whose memory is watched; 0: none"
    )
    parser.add_argument("--growth", type=float, default=2.0, help="percent that their memory may grow by")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--out", type=Path, default=REPO / "benchmarks/results/soak.json", help="where the outcome goes"
    )
    options = parser.parse_args()

    flags = " ".join(f"--{name} {value}" for name, value in vars(options).items() if name != "out")
    result: dict = {"command": f"python tests/soak.py {flags}", **hardware(), "stages": {}, "experiments": {}}
    with tempfile.TemporaryDirectory() as folder, Warm(Path(folder)) as warm:
        soak = Soak(warm, options.steps, options.every, options.seed)
        seconds = soak.prepare()
        for kind in STAGES:
            tally = soak.stage(kind, options.kills, seconds[kind])
            result["stages"][kind] = vars(tally)
            print(kind, vars(tally), flush=True)
        if options.memory_steps:
            result["memory"] = {kind: soak.memory(kind, options.memory_steps) for kind in STAGES}
            print("memory", result["memory"], flush=True)
    with tempfile.TemporaryDirectory() as folder, Warm(Path(folder), often=True) as warm:
        experiments = Experiments(warm, STAGES[VQGAN], STAGES[ABSORBING], options.seed)
        for name in EXPERIMENTS if options.experiment_kills else ():
            outcome = experiments.one(name, options.experiment_kills)
            result["experiments"][name] = vars(outcome)
            print(name, vars(outcome), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    tallies = [*result["stages"].values(), *result["experiments"].values()]
    grown = [m for m in result.get("memory", {}).values() if m["growth_percent"] >= options.growth]
    return 1 if grown or any(tally["problems"] for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
