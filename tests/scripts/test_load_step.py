"""Weights and optimisers in the published layout as a start."""

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
    """A logs folder: runs of 20 steps, as the authors leave theirs, continued to 24."""
    shell = new_shell(warm)
    shutil.copytree(toy.folder / "data", shell.folder / "data")
    for name in ("vqgan", "absorbing"):
        shutil.copytree(toy.logs / name, shell.logs / name)
        as_published(shell.logs / name, shell.logs / f"published_{name}")
    shell.abreast(
        [f"{STAGE_1} --load_dir published_vqgan --load_step 20 --load_optim --log_dir from_published"],
        [f"{STAGE_2} --load_step 20 --load_optim --log_dir published_absorbing"],
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
    assert steps(continued / "from_published") == [22, 23, 24]
    assert steps(continued / "published_absorbing") == [22, 23, 24]


def test_optimisers_go_on_with_load_optim(continued: Path) -> None:
    published = continued / "from_published/saved_models/vqgan_state_24.th"
    assert moments(published, "ae")["step"] == 20 + 3
    assert (
        moments(published, "disc")["step"]
        == moments(continued / "vqgan/saved_models/vqgan_state_20.th", "disc")["step"] + 3
    )
    published = continued / "published_absorbing/saved_models/absorbing_state_24.th"
    assert moments(published, "absorbing")["step"] == 20 + 3
