"""What does not work is refused by one line that names the flag or file and the fix; nothing is written."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

STAGE_1 = "train_vqgan.py {RUN} {VQGAN} --train_steps 4"
STAGE_2 = "train_sampler.py {RUN} {PRIOR} --train_steps 4"
SAMPLES = "experiments/get_samples.py {RUN} --n_samples 2"
NEIGHBOURS = "experiments/calc_nearest_neighbours.py {RUN} --n_samples 2"
INPAINT = "experiments/inpaint.py {RUN} --load_dir absorbing"
FID = "experiments/calc_FID.py {RUN} --log_dir scores"
PRDC = "experiments/calc_PRDC.py {RUN} --log_dir scores"

# Refused before torch is imported, in an empty folder: command, and what the line must say.
IN_AN_EMPTY_FOLDER = {
    "no data set": ("train_vqgan.py --log_dir x", ["--dataset is required"]),
    "no datasets file": ("train_vqgan.py --dataset churches", ["datasets.yaml", "--datasets_file"]),
    "no LMDB": ("train_vqgan.py --dataset bedrooms --datasets_file other.yaml", ["bedroom_train_lmdb", "other.yaml"]),
    "no dashes": (
        "experiments/generate_big_samples.py --sampler absorbing --dataset churches --log_dir big_samples_churches "
        "--ae_load_dir vqgan_churches --ae_load_step 2200000 load_dir absorbing_churches --load_step 2000000 --ema "
        "--shape 32 16",
        ["'load_dir'", "did you mean --load_dir?"],
    ),
    "no such autoencoder": ("train_sampler.py {RUN} --ae_load_dir v", ["--ae_load_dir", "logs/v"]),
    "no such prior": (f"{SAMPLES} --load_dir p --ae_load_dir v", ["--load_dir", "logs/p"]),
    "no such step's run": ("train_vqgan.py {RUN} --load_step 5 --log_dir new", ["--load_dir", "logs/new"]),
    "no features": (f"{PRDC} --fake_feats no.npy", ["--fake_feats no.npy", "no such file"]),
    "no LMDB but a file": (
        "train_vqgan.py --dataset churches --datasets_file other.yaml",
        ["no train LMDB", "other.yaml"],
    ),
    "an empty LMDB file": ("train_vqgan.py --dataset bedrooms --datasets_file cut.yaml", ["LMDB", "cut", "again"]),
}

# Refused before torch is imported, among finished runs.
AMONG_RUNS = {
    "missing autoencoder step": (f"{STAGE_2} --ae_load_dir vqgan --ae_load_step 7", ["--ae_load_step", "step 10, 20"]),
    "missing step to start from": (
        f"{STAGE_1} --log_dir new --load_dir vqgan --load_step 7",
        ["--load_step", "step 10, 20"],
    ),
    "no weights": (
        f"{FID} --load_dir absorbing --features inception --feature_weights no.pth",
        ["--feature_weights no.pth", "no such file"],
    ),
    "a prior where a VQGAN belongs": (f"{STAGE_2} --ae_load_dir absorbing", ["absorbing", "train_vqgan.py"]),
    "no such mask": (f"{INPAINT} --mask_path m.png", ["--mask_path m.png", "no such file"]),
    "a folder as mask": (f"{INPAINT} --mask_path .", ["--mask_path .", "is a folder"]),
    "likelihood without data": (
        "experiments/calc_approximate_ELBO.py --dataset custom --custom_dataset_path one/a.jpg --load_dir absorbing "
        "--log_dir new",
        ["one/a.jpg", "--custom_dataset_path"],
    ),
    "another kind of prior": (f"{SAMPLES} --load_dir absorbing --sampler autoregressive", ["autoregressive_<step>.th"]),
    "other settings than a run's": (
        f"{STAGE_1} --log_dir vqgan",
        ["--train_steps: the run in logs/vqgan has 20, this command 4", "--resume", "--log_dir"],
    ),
    "fresh start on another stage's run": (f"{STAGE_1} --log_dir absorbing", ["logs/absorbing", "--log_dir"]),
    "start from elsewhere on a run": (
        f"{STAGE_1} --log_dir vqgan --load_dir nested/gumbel --load_step 20 --quantizer gumbel",
        ["logs/vqgan", "--log_dir"],
    ),
    "samples into another run": (f"{SAMPLES} --load_dir absorbing --log_dir autoregressive", ["--log_dir"]),
    "misspelt saved setting": (f"{STAGE_2} --ae_load_dir misspelt", ["misspelt/hparams.yaml", "did you mean"]),
    "a step that was reached": (
        "train_vqgan.py --resume --log_dir vqgan --train_steps 7",
        ["--train_steps 7", "step 20"],
    ),
    "no average was saved, nor raw weights": (f"{SAMPLES} --load_dir only_ema --no_ema", ["--no_ema"]),
}

# Refused once the models are built or the data read.
LATE = {
    "codes unlike the checkpoint's": (
        f"{SAMPLES} --load_dir absorbing --log_dir new --codebook_size 64",
        ["vqgan_ema_20.th", "quantize.embedding.weight is [32, 16] there and [64, 16] here", "flags"],
    ),
    "resumed with other sizes": (
        "train_sampler.py --log_dir absorbing --resume --bert_n_layers 2 --train_steps 40",
        ["absorbing_20.th", "missing", "flags"],
    ),
    "resumed with an average that was not kept": (
        "train_vqgan.py --log_dir nested/gumbel --resume --ema --train_steps 40",
        ["--ema", "vqgan_ema_20.th", "--no_ema"],
    ),
    "more neighbours than images": (
        f"{NEIGHBOURS} --load_dir absorbing --log_dir begun/neighbours --sample_steps 1 --top_k 200",
        ["--top_k 200", "96 training images"],
    ),
    "weights of something else": (
        f"{NEIGHBOURS} --load_dir absorbing --log_dir new --distance lpips --lpips_net vgg "
        "--lpips_weights logs/absorbing/saved_models/absorbing_20.th",
        ["absorbing_20.th", "does not fit"],
    ),
    "no CUDA device": (f"{STAGE_1} --log_dir new --device cuda", ["--device cuda", "--device cpu"]),
    "no optimisers": (
        f"{STAGE_1} --log_dir new --load_dir vqgan --load_step 10 --load_optim",
        ["--load_optim", "steps with one: 20"],
    ),
    "perceptual weights without a network": (
        "train_vqgan.py --dataset custom --custom_dataset_path one --log_dir new {VQGAN} {EVERYWHERE} "
        "--perceptual lpips",
        ["--perceptual lpips", "vgg16-397923af.pth", "--perceptual_weights_file", "--perceptual none"],
    ),
    "Inception without a network": (
        f"{FID} --load_dir absorbing --features inception",
        ["--features inception", "weights-inception-2015-12-05-6726825d.pth", "https://", "--feature_weights"],
    ),
    "codes of another autoencoder": (
        f"{FID} --ae_load_dir vqgan --latents_path codes.npy",
        ["--latents_path codes.npy", "0..31", "another autoencoder"],
    ),
    "features that are not finite": (
        f"{PRDC} --fake_feats nan.npy --real_feats few.npy",
        ["--fake_feats nan.npy", "not finite"],
    ),
    "features of two kinds": (
        f"{PRDC} --fake_feats few.npy --real_feats wide.npy",
        ["--fake_feats few.npy has [n, 4]", "--real_feats wide.npy has [n, 5]"],
    ),
    "real images fewer than a subset": (
        f"{FID} --load_dir absorbing --n_samples 500 --split val --kid_subset_size 65",
        ["--kid_subset_size 65", "the 64 images of the val split of toy_churches"],
    ),
    "broken JPEG": (
        "train_vqgan.py --dataset custom --custom_dataset_path broken --log_dir begun {VQGAN} {EVERYWHERE} "
        "--perceptual none --batch_size 2 --num_workers 1",
        ["broken/b.jpg"],
    ),
}


@pytest.fixture
def wrong(shell) -> Any:
    (shell.folder / "e").mkdir()
    (shell.folder / "other.yaml").write_text("bedrooms: {paths: e}\nchurches: {paths: {train: other.yaml}}\n")
    (shell.folder / "cut.yaml").write_text("bedrooms: {paths: {train: cut}}\n")
    (shell.folder / "cut").mkdir()
    (shell.folder / "cut" / "data.mdb").write_bytes(b"")
    return shell


@pytest.fixture(scope="module")
def runs(toy, new_shell) -> Any:
    """A copy of the toy runs, with damaged ones beside them, in a place without a network."""
    nowhere = "http://127.0.0.1:9"
    proxies = {f"{scheme}_proxy": nowhere for scheme in ("http", "https")}
    shell = new_shell(**proxies, HTTP_PROXY=nowhere, HTTPS_PROXY=nowhere, no_proxy="", NO_PROXY="", TORCH_HOME="torch")
    for name in ("vqgan", "absorbing", "autoregressive", "nested/gumbel"):
        shutil.copytree(toy.logs / name, shell.logs / name)
    shutil.copytree(toy.folder / "data", shell.folder / "data")
    shutil.copytree(toy.logs / "absorbing", shell.logs / "only_ema")
    for step in (10, 20):
        (shell.logs / f"only_ema/saved_models/absorbing_{step}.th").unlink()
    (shell.logs / "vqgan/saved_models/vqgan_state_10.th").unlink()
    (shell.logs / "misspelt").mkdir()
    settings = (shell.logs / "vqgan/hparams.yaml").read_text()
    (shell.logs / "misspelt/hparams.yaml").write_text(settings.replace("codebook_size", "codebok_size"))

    for name in ("one", "broken"):
        (shell.folder / name).mkdir()
        for letter in "ab":
            noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(noise).save(shell.folder / name / f"{letter}.jpg")
    np.save(shell.folder / "codes.npy", np.full((3, 64), 32))
    np.save(shell.folder / "nan.npy", np.full((8, 4), np.nan, np.float32))
    for name, width in (("few", 4), ("wide", 5)):
        np.save(shell.folder / f"{name}.npy", np.zeros((8, width), np.float32))
    broken = shell.folder / "broken/b.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    return shell


@dataclass(frozen=True)
class Late:
    """What the commands of `LATE` left behind, and the folder before and after."""

    outcomes: dict[str, Any]
    before: dict[str, bytes]
    after: dict[str, bytes]


@pytest.fixture(scope="module")
def late(runs) -> Late:
    before = runs.snapshot()
    with ThreadPoolExecutor(2) as pool:
        outcomes = dict(zip(LATE, pool.map(runs.run, (command for command, _ in LATE.values())), strict=True))
    return Late(outcomes, before, runs.snapshot())


@pytest.mark.parametrize("name", list(IN_AN_EMPTY_FOLDER))
def test_refused_in_an_empty_folder(wrong, name: str) -> None:
    command, says = IN_AN_EMPTY_FOLDER[name]
    before = wrong.snapshot()
    line = wrong.refused(command)
    assert all(part in line for part in says), line
    assert wrong.snapshot() == before


@pytest.mark.parametrize("name", list(AMONG_RUNS))
def test_refused_among_runs(runs, name: str) -> None:
    command, says = AMONG_RUNS[name]
    before = runs.snapshot()
    line = runs.refused(command)
    assert all(part in line for part in says), line
    assert runs.snapshot() == before


@pytest.mark.parametrize("name", list(LATE))
def test_refused_late(runs, late: Late, name: str) -> None:
    if name == "no CUDA device" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    command, says = LATE[name]
    line = runs.line_of(late.outcomes[name], command)
    assert all(part in line for part in says), line


def test_late_refusals_leave_every_run_as_it_was(late: Late) -> None:
    """Only a run that has begun when it meets a broken image leaves a folder; torch makes one for downloads."""
    assert {path: content for path, content in late.after.items() if path in late.before} == late.before
    new = late.after.keys() - late.before.keys()
    assert [path for path in new if not path.startswith(("logs/begun", "torch"))] == []


def test_a_run_that_met_a_broken_image_starts_anew_without_it(runs, late: Late) -> None:
    (runs.folder / "broken/b.jpg").unlink()
    runs.ok(LATE["broken JPEG"][0] + " --dry_run")
