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
from utils.data.lmdb_images import write_lmdb

REPO = Path(__file__).parents[2]
SCRIPTS = {**STAGES, "experiments/replay_dashboard.py": Replay}
# Beside those of the README.
PUBLISHED = [
    "experiments/calc_approximate_ELBO.py --sampler absorbing --dataset ffhq --log_dir nll_churches "
    "--ae_load_dir vqgan_churches --ae_load_step 2200000 --load_dir absorbing_churches --load_step 2000000 --ema "
    "--steps_per_eval 5000 --train_steps 10000",
    # Every published flag of the two training scripts.
    "train_vqgan.py --dataset churches --batch_size 3 --lr 1e-4 --train_steps 2300000 --amp --ema --ema_beta 0.9 "
    "--steps_per_update_ema 5 --load_dir vqgan_churches --load_step 2200000 --load_optim --log_dir v "
    "--visdom_server http://localhost --visdom_port 8097 --steps_per_log 1 --steps_per_eval 2 "
    "--steps_per_checkpoint 3 --steps_per_display_output 4 --steps_per_save_output 5 --save_individually "
    "--quantizer nearest --codebook_size 1024 --emb_dim 256 --nf 128 --ch_mult 1 1 2 2 4 --res_blocks 2 "
    "--attn_resolutions 16 --img_size 256 --latent_shape 1 16 16 --n_channels 3 --ndf 64 --disc_layers 3 "
    "--disc_start_step 30001 --disc_weight_max 1 --perceptual_weight 1 --base_lr 4.5e-6 --beta 0.25 --diff_aug "
    "--horizontal_flip --gumbel_kl_weight 1e-8 --gumbel_straight_through",
    "train_sampler.py --sampler autoregressive --dataset churches --log_dir s --ae_load_dir vqgan_churches "
    "--ae_load_step 2200000 --bert_n_emb 512 --bert_n_head 8 --bert_n_layers 24 --block_size 256 --attn_pdrop 0.1 "
    "--embd_pdrop 0.1 --resid_pdrop 0.1 --loss_type elbo --mask_schedule fixed --total_steps 256 --sample_steps 100 "
    "--sample_type mlm --temp 0.9 --warmup_iters 10 --no_ema --horizontal_flip",
]


@pytest.fixture
def published(shell):
    """A folder with run folders in the published layout (empty files: a dry run reads none) and an LSUN layout."""
    for run, names in (
        ("vqgan_churches", ("vqgan_2200000", "vqgan_ema_2200000", "ae_optim_2200000", "disc_optim_2200000")),
        ("absorbing_churches", ("absorbing_2000000", "absorbing_ema_2000000", "absorbing_optim_2000000")),
    ):
        folder = shell.logs / run / "saved_models"
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}.th").touch()
    for split in ("train", "val"):
        write_lmdb(shell.folder / f"lsun/church_outdoor_{split}_lmdb", [(b"key", b"no image: a dry run decodes none")])
    (shell.folder / "faces").mkdir()
    for name in ("a.png", "b.png"):
        (shell.folder / "faces" / name).touch()
    (shell.folder / "datasets.yml").write_text("churches:\n  path: lsun\nffhq:\n  path: faces\n")
    return shell


def test_every_script_is_among_those_that_are_tried() -> None:
    files = [*REPO.glob("train_*.py"), *REPO.glob("experiments/[!_]*.py")]
    assert {file.relative_to(REPO).as_posix() for file in files} == set(SCRIPTS)


@pytest.mark.parametrize("script", list(SCRIPTS))
def test_help_tells_every_flag_and_does_not_wait_for_torch(shell, script: str) -> None:
    done = shell.run(f"{script} --help", "-X", "importtime")
    assert done.code == 0
    assert set(re.findall(r"--(\w+)", done.out)) >= settings_of(SCRIPTS[script]).keys()
    assert "example:" in done.out
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.err.splitlines() if "|" in line}
    assert "argparse" in imported
    assert not imported & {"torch", "torchvision", "lpips", "scipy"}
    assert shell.snapshot() == {}


@pytest.mark.parametrize("command", PUBLISHED)
def test_published_commands(published, command: str) -> None:
    before = published.snapshot()
    out = published.ok(f"{command} --dry_run")
    assert re.search(r"codebook_size +1024\n", out)
    assert published.snapshot() == before


def test_a_dry_run_prints_the_settings_in_force(toy) -> None:
    before = toy.snapshot()
    for command, shown in (
        ("train_vqgan.py {RUN} {VQGAN} --log_dir new", {"codebook_size": "32", "batch_size": "8", "log_dir": "new"}),
        (
            "train_sampler.py {RUN} --log_dir new --ae_load_dir nested/gumbel --ae_load_step 10",
            {"quantizer": "gumbel", "ae_load_step": "10", "block_size": "64"},
        ),
        (
            "experiments/get_samples.py --log_dir new --load_dir absorbing --temp 0.9",
            {"dataset": "toy_churches", "ae_load_dir": "vqgan", "bert_n_emb": "32", "temp": "0.9"},
        ),
        ("train_vqgan.py --log_dir vqgan --resume --train_steps 40", {"train_steps": "40", "ndf": "8"}),
    ):
        out = toy.ok(f"{command} --dry_run")
        for name, value in shown.items():
            assert re.search(rf"^ +{name} +{re.escape(value)}$", out, re.MULTILINE), (command, name)
    assert toy.snapshot() == before


@pytest.mark.parametrize("words", [["-m", "experiments.get_samples"], [str(REPO / "experiments" / "get_samples.py")]])
@pytest.mark.parametrize("place", ["the repository", "elsewhere"])
def test_both_ways_to_call_an_experiment(tmp_path: Path, words: list[str], place: str) -> None:
    folder = REPO if place == "the repository" else tmp_path
    help_text, refusal = (
        subprocess.run([sys.executable, *words, *flags], cwd=folder, capture_output=True, text=True)
        for flags in (["--help"], ["--dataset", "churches", "--load_dir", "no such run", "--ae_load_dir", "none"])
    )
    assert help_text.returncode == 0
    assert "--n_samples" in help_text.stdout
    assert refusal.returncode == 2
    assert refusal.stderr.startswith("get_samples.py: error: --load_dir")
