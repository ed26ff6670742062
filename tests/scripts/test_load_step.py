"""Weights as a start: from a run of this project, and from files in the published layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

RUN = "{RUN} --train_steps 24 --steps_per_log 1 --ema --ema_beta 0.9 --steps_per_update_ema 1 --no_amp"
STAGE_1 = f"train_vqgan.py {RUN} {{VQGAN}} --disc_start_step 8 --lr 1e-3"
STAGE_2 = f"train_sampler.py {RUN} {{PRIOR}} --ae_load_dir vqgan --total_steps 16 --warmup_iters 0 --lr 1e-3"


def moments(file: Path, name: str) -> dict:
    return torch.load(file, weights_only=True)["trainer"]["optimisers"][name]["state"][0]


def steps(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["split"] == "train"]


@pytest.fixture(scope="module")
def continued(toy, warm, new_shell: Callable) -> Path:
    """A logs folder: runs of 20 steps continued to 24, with and without optimisers, from both layouts."""
    shell = new_shell(warm)
    shutil.copytree(toy.folder / "data", shell.folder / "data")
    for name in ("vqgan", "absorbing"):
        shutil.copytree(toy.logs / name, shell.logs / name)
        as_published(shell.logs / name, shell.logs / f"published_{name}")
    shell.abreast(
        [
            f"{STAGE_1} --load_dir vqgan --load_step 20 --log_dir weights",
            f"{STAGE_1} --load_dir published_vqgan --load_step 20 --load_optim --log_dir from_published",
        ],
        [
            f"{STAGE_2} --load_dir absorbing --load_step 20 --load_optim --log_dir optimiser",
            f"{STAGE_2} --load_step 20 --load_optim --log_dir published_absorbing",
        ],
    )
    return shell.logs


def as_published(run: Path, published: Path) -> None:
    """The same weights as the published code leaves them: no settings, no state, an optimiser to a file."""
    target = published / "saved_models"
    target.mkdir(parents=True)
    for file in (run / "saved_models").glob("*_20.th"):
        if "state" not in file.name:
            shutil.copy(file, target)
            continue
        state = torch.load(file, weights_only=True)
        for name, optimiser in state["trainer"]["optimisers"].items():
            torch.save(optimiser, target / f"{name}_optim_20.th")


def test_steps_go_on_where_the_weights_end(continued: Path) -> None:
    """A published file of step s holds s + 1 updates."""
    assert steps(continued / "weights") == [21, 22, 23, 24]
    assert steps(continued / "optimiser") == [21, 22, 23, 24]
    assert steps(continued / "from_published") == [22, 23, 24]
    assert steps(continued / "published_absorbing") == [22, 23, 24]


def test_weights_alone_start_with_fresh_optimisers(continued: Path) -> None:
    state = continued / "weights/saved_models/vqgan_state_24.th"
    assert moments(state, "ae")["step"] == 4
    assert moments(state, "disc")["step"] == 4


def test_optimisers_go_on_with_load_optim(continued: Path) -> None:
    assert moments(continued / "optimiser/saved_models/absorbing_state_24.th", "absorbing")["step"] == 24
    published = continued / "from_published/saved_models/vqgan_state_24.th"
    assert moments(published, "ae")["step"] == 20 + 3
    assert (
        moments(published, "disc")["step"]
        == moments(continued / "vqgan/saved_models/vqgan_state_20.th", "disc")["step"] + 3
    )
    published = continued / "published_absorbing/saved_models/absorbing_state_24.th"
    assert moments(published, "absorbing")["step"] == 20 + 3


def test_loaded_weights_are_what_training_starts_from(continued: Path) -> None:
    """Four updates move them by little: no weight stands where a fresh model's would."""
    name = "ae.generator.blocks.0.weight"
    start, end = (
        torch.load(continued / run / "saved_models" / f"vqgan_{step}.th", weights_only=True)[name]
        for run, step in (("vqgan", 20), ("weights", 24))
    )
    assert 0 < (end - start).abs().max() < 0.01 < start.abs().max()


def test_the_average_starts_from_the_average(continued: Path) -> None:
    name = "ae.generator.blocks.0.weight"
    start, end = (
        torch.load(continued / run / "saved_models" / f"vqgan_ema_{step}.th", weights_only=True)[name]
        for run, step in (("vqgan", 20), ("weights", 24))
    )
    assert 0 < (end - start).abs().max() < 0.01
