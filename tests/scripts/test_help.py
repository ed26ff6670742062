"""`--help`, `--dry_run`, and the ways to call a script."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hparams.fields import settings_of
from hparams.settings.tools import Replay
from stages import STAGES

REPO = Path(__file__).parents[2]
SCRIPTS = {**STAGES, "experiments/replay_dashboard.py": Replay}


def test_every_script_is_among_those_that_are_tried() -> None:
    files = [*REPO.glob("train_*.py"), *REPO.glob("experiments/[!_]*.py")]
    assert {file.relative_to(REPO).as_posix() for file in files} == set(SCRIPTS)


@pytest.mark.parametrize("script", list(SCRIPTS))
def test_help_tells_every_flag_and_does_not_wait_for_torch(tmp_path: Path, script: str) -> None:
    command = [sys.executable, "-X", "importtime", REPO / script, "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert set(re.findall(r"--(\w+)", done.stdout)) >= settings_of(SCRIPTS[script]).keys()
    assert "example:" in done.stdout
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "argparse" in imported
    assert not imported & {"torch", "torchvision", "lpips", "scipy"}
    assert not list(tmp_path.iterdir())


def test_a_dry_run_prints_the_settings_in_force(toy) -> None:
    before = toy.snapshot()
    gumbel = "--ae_load_dir nested/gumbel --ae_load_step 10"
    for command, shown in {
        "train_vqgan.py {RUN} {VQGAN} --log_dir new": "codebook_size 32, batch_size 8, log_dir new",
        f"train_sampler.py {{RUN}} --log_dir new {gumbel}": "quantizer gumbel, ae_load_step 10, block_size 64",
        "experiments/get_samples.py --log_dir new --load_dir absorbing --temp 0.9": "ae_load_dir vqgan, temp 0.9",
        "train_vqgan.py --log_dir vqgan --resume --train_steps 40": "dataset toy_churches, train_steps 40, ndf 8",
    }.items():
        rows = [line.split() for line in toy.ok(f"{command} --dry_run").splitlines() if line.startswith("  ")]
        assert [row for row in shown.split(", ") if row.split() not in rows] == [], command
    assert toy.snapshot() == before


@pytest.mark.parametrize("words", [["-m", "experiments.get_samples"], [str(REPO / "experiments" / "get_samples.py")]])
@pytest.mark.parametrize("place", ["the repository", "elsewhere"])
def test_both_ways_to_call_an_experiment(tmp_path: Path, words: list[str], place: str) -> None:
    folder = REPO if place == "the repository" else tmp_path
    flags = ["--dataset", "churches", "--load_dir", "no such run", "--ae_load_dir", "none"]
    done = subprocess.run([sys.executable, *words, *flags], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("get_samples.py: error: --load_dir")
