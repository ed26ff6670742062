"""Runs that are too short for their settings say so at their start, and their averages where they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.pretrained.loading import load_autoencoder, load_prior

AVERAGE = "note: --train_steps 8 is short for the moving average"
START = "note: 100% of logs/{}_ema_8.th is still the random start of its moving average"
AE, PRIOR = START.format("ae/saved_models/vqgan"), START.format("prior/saved_models/absorbing")
SAMPLES = (
    "experiments/get_samples.py --batch_size 4 --device cpu --num_workers 0 --visdom_port 9 --log_dir drawn "
    "--load_dir prior --ae_load_dir ae --n_samples 2"
)


def test_training_says_it_at_its_start(tiny_runs: Path) -> None:
    first, second = ((tiny_runs / f"logs/{run}/log.txt").read_text() for run in ("ae", "prior"))
    for log in (first, second):
        assert log.count(AVERAGE) == 1
        assert log.index(AVERAGE) < log.index("saved logs/")
    assert AE in second
    assert "note: --warmup_iters 30000 is beyond --train_steps 8" in second
    assert "--disc_start_step" not in first.replace("disc_start_step ", "")  # which is 2


def test_experiments_say_which_averages_are_mostly_their_start(tiny) -> None:
    said = tiny.run(SAMPLES).err
    assert f"{AE}, as it was trained for too few steps: --no_ema takes the raw weights\n" in said
    assert PRIOR in said
    assert "random start" not in tiny.run(f"{SAMPLES} --no_ema").err


def test_programs_are_warned(tiny_runs: Path) -> None:
    for load, run in ((load_autoencoder, "ae"), (load_prior, "prior")):
        with pytest.warns(UserWarning, match="random start of its moving average.*: ema=False takes the raw weights"):
            load(run, root=tiny_runs / "logs", device="cpu")
