"""Kills experiments at random moments and starts them again, for `soak.py`: they must end as undisturbed ones."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from compare import differences_of_folders
from warm import Warm

RUN = "--dataset custom --batch_size 4 --device cpu --num_workers 0 --visdom_port 9 --ae_load_dir ae"
PRIOR = f"{RUN} --load_dir prior"
FEATURES = "--features r64 --split all"
EXPERIMENTS = {
    "calc_FID": f"{PRIOR} {FEATURES} --n_samples 24 --kid_subset_size 5 --kid_subsets 4 --save_images",
    "calc_PRDC": f"{PRIOR} {FEATURES} --n_samples 24",
    "calc_VQGAN_FID": f"{RUN} {FEATURES} --kid_subset_size 5 --kid_subsets 4",
    "calc_approximate_ELBO": f"{PRIOR} --train_steps 12 --steps_per_eval 4",
    "calc_nearest_neighbours": f"{PRIOR} --n_samples 4 --distance r64 --top_k 3",
    "generate_big_samples": f"{PRIOR} --n_samples 2 --shape 8 12",
    "inpaint": f"{PRIOR} --n_images 10",
    "get_samples": f"{PRIOR} --n_samples 40 --save_individually",
}
# Whose content grows or changes before an experiment is done, and which tell of time or processes.
GROWING = ("*.th", "*.jsonl", "log.txt", "hparams.yaml")
ABOUT_THE_PROCESS = (".lock", "log.txt", "newest.json", "summary.png")


@dataclass
class Tally:
    """What happened to one experiment."""

    kills: int = 0
    kills_that_left_work: int = 0
    runs: int = 0
    problems: list[str] = field(default_factory=list)


class Experiments:
    """Experiments on two small models, in a folder of their own; what is done is noted after each batch."""

    def __init__(self, warm: Warm, stage_1: str, stage_2: str, seed: int) -> None:
        self.warm = warm
        self.logs = warm.folder / "logs"
        self.dice = random.Random(seed)
        pixels = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 3), np.uint8)
        (warm.folder / "photos").mkdir()
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(warm.folder / f"photos/{number:02}.png")
        (warm.folder / "datasets.yaml").write_text("custom: {paths: photos}\n")
        warm.ok(f"{stage_1} --dataset custom --perceptual none --train_steps 4 --log_dir ae")
        warm.ok(f"{stage_2} --dataset custom --train_steps 4 --log_dir prior")

    def one(self, name: str, kills: int) -> Tally:
        """Kill an experiment up to three times before each of its ends, until it was killed so often."""
        tally, command = Tally(), f"experiments/{name}.py {EXPERIMENTS[name]} --log_dir run"
        self.forget()
        begin = time.monotonic()
        reference = self.end(name, command, "reference")
        seconds = time.monotonic() - begin
        while tally.kills < kills:
            self.forget()
            for life in range(min(3, kills - tally.kills)):
                begin = time.monotonic()
                if not self.one_life(command, seconds, reference, tally):
                    if life == 0:  # the whole of it took less than it did before
                        seconds = time.monotonic() - begin
                    break
            tally.problems += differences_of_folders(self.end(name, command, "ended"), reference, ABOUT_THE_PROCESS)
            tally.runs += 1
        return tally

    def forget(self) -> None:
        """Remove what experiments leave, the caches that they share too."""
        for made in ("run", "ended", "features", "ae/latents"):
            shutil.rmtree(self.logs / made, ignore_errors=True)

    def end(self, name: str, command: str, where: str) -> Path:
        """Run an experiment to its end; its folder, and the caches in it, are moved."""
        self.warm.ok(command)
        folder = self.logs / where / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        (self.logs / "run").rename(folder)
        for cache in ("features", "ae/latents"):
            if (self.logs / cache).exists():
                (self.logs / cache).rename(folder / f"shared_{Path(cache).name}")
        return folder

    def one_life(self, command: str, seconds: float, reference: Path, tally: Tally) -> bool:
        """Start an experiment, or go on with it, and kill it; False if it came to its end first."""
        pid = self.warm.start(command)
        time.sleep(self.dice.uniform(0.2, 1) * seconds)
        if self.warm.code(pid) is None:
            os.kill(pid, signal.SIGKILL)
        ended = self.warm.wait(pid)
        if ended.code == 0:
            return False
        if ended.code != -signal.SIGKILL:
            tally.problems.append(f"ended with {ended.code} before it was killed: {ended.err[-500:]}")
            return False
        tally.kills += 1
        left = [file for file in (self.logs / "run").rglob("*") if file.is_file()]
        tally.kills_that_left_work += any(file.match("*.npy") or file.match("*.th") for file in left)
        if left:
            ignored = (*ABOUT_THE_PROCESS, *GROWING)
            tally.problems += differences_of_folders(self.logs / "run", reference, ignored, part=True)
        return True
