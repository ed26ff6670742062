"""The scripts as a user runs them: in a working directory of their own, with small models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from warm import Shell


@pytest.fixture(scope="session")
def new_shell(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Shell]:
    """Makes shells in empty folders."""
    return lambda **env: Shell(tmp_path_factory.mktemp("shell"), **env)


@pytest.fixture
def shell(new_shell: Callable[..., Shell]) -> Shell:
    """A shell in an empty folder."""
    return new_shell()


@pytest.fixture(scope="session")
def tiny_runs(new_shell: Callable[..., Shell]) -> Path:
    """A folder with runs of both stages on 24 photos, `ae` and `prior`, saved at steps 4 and 8. Not to be changed."""
    shell = new_shell()
    shell.train_tiny_models()
    return shell.folder


@pytest.fixture
def tiny(tiny_runs: Path, tmp_path: Path) -> Shell:
    """A shell in a copy of the tiny runs' folder, to write to."""
    return Shell(shutil.copytree(tiny_runs, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def toy(new_shell: Callable[..., Shell]) -> Shell:
    """A shell whose logs/ holds runs on toy churches, 20 steps each. Tests must not write to these runs.

    `vqgan`, with `absorbing` and `autoregressive` priors; `nested/gumbel`, a VQGAN too, with `gumbel_prior`.
    """
    shell = new_shell()
    # 7 divides neither 20 nor 10; every setting that matters is typed, so that presets may change.
    cadences = "--train_steps 20 --steps_per_log 7 --steps_per_eval 10 --steps_per_checkpoint 10"
    averages = f"{cadences} --amp --ema --ema_beta 0.9 --steps_per_update_ema 3"
    care = "--codebook_init encoder --restart_dead_codes 5"
    vqgan = f"train_vqgan.py {{RUN}} {{VQGAN}} {averages} --disc_start_step 8"
    prior = f"train_sampler.py {{RUN}} {{PRIOR}} {averages} --warmup_iters 5 --lr 3e-3"
    pictures = "--steps_per_save_output 10 --steps_per_display_output 10"
    shell.abreast(
        [
            f"{vqgan} --log_dir vqgan {pictures} {care}",
            f"{prior} --log_dir absorbing --ae_load_dir vqgan --total_steps 16 --n_samples 6 {pictures}",
            f"{prior} --log_dir autoregressive --sampler autoregressive --ae_load_dir vqgan --no_ema --no_amp",
        ],
        [
            f"{vqgan} --log_dir nested/gumbel --quantizer gumbel --no_ema --steps_per_save_output 10 "
            "--save_individually --horizontal_flip",
            f"{prior} --log_dir gumbel_prior --ae_load_dir nested/gumbel --horizontal_flip --loss_type elbo "
            "--mask_schedule fixed",
        ],
    )
    return shell
