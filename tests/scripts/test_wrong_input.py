"""What does not work is refused by one line that names the flag or file and the fix; nothing is written."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

STAGE_1 = "train_vqgan.py {RUN} {VQGAN} --train_steps 4"
STAGE_2 = "train_sampler.py {RUN} {PRIOR} --train_steps 4"
CUSTOM = "train_vqgan.py --dataset custom {VQGAN} {EVERYWHERE}"
BEDROOMS = "train_vqgan.py --dataset bedrooms --datasets_file"
SAMPLES = "experiments/get_samples.py {RUN} --n_samples 2"
NEIGHBOURS = "experiments/calc_nearest_neighbours.py {RUN} --n_samples 2 --load_dir absorbing"
INPAINT = "experiments/inpaint.py {RUN} --load_dir absorbing"
ELBO = "experiments/calc_approximate_ELBO.py --load_dir absorbing --log_dir new"
FID = "experiments/calc_FID.py {RUN} --log_dir scores"
PRDC = "experiments/calc_PRDC.py {RUN} --log_dir scores"
A_PRIOR_AS_LPIPS = "--distance lpips --lpips_net vgg --lpips_weights logs/absorbing/saved_models/absorbing_20.th"
BROKEN_JPEG = f"{CUSTOM} --custom_dataset_path broken --log_dir begun --perceptual none --batch_size 2 --num_workers 1"
NO_CUDA = f"{STAGE_1} --log_dir new --device cuda"

# Refused before torch is imported, in an empty folder: commands, and what the line must say.
IN_AN_EMPTY_FOLDER = {
    "train_vqgan.py --dataset churches": ["datasets.yaml", "--datasets_file"],
    "train_vqgan.py --dataset churches --datasets_file other.yaml": ["no train LMDB", "other.yaml"],  # but a file
    f"{BEDROOMS} other.yaml": ["bedroom_train_lmdb", "other.yaml"],
    f"{BEDROOMS} cut.yaml": ["LMDB", "cut", "again"],  # is empty
    "train_sampler.py {RUN} --ae_load_dir v": ["--ae_load_dir", "logs/v"],
    f"{SAMPLES} --load_dir p --ae_load_dir v": ["--load_dir", "logs/p"],
    "train_vqgan.py {RUN} --load_step 5 --log_dir new": ["--load_dir", "logs/new"],
    f"{PRDC} --fake_feats no.npy": ["--fake_feats no.npy", "no such file"],
}

# Refused before torch is imported, among finished runs.
OTHER_SETTINGS = ["--train_steps: the run in logs/vqgan has 20, this command 4", "--resume", "--log_dir"]
FROM_ELSEWHERE = "--load_dir nested/gumbel --load_step 20 --quantizer gumbel"
AMONG_RUNS = {
    f"{STAGE_2} --ae_load_dir vqgan --ae_load_step 7": ["--ae_load_step", "step 10, 20"],
    f"{STAGE_1} --log_dir new --load_dir vqgan --load_step 7": ["--load_step", "step 10, 20"],
    f"{FID} --load_dir absorbing --features inception --feature_weights x": ["--feature_weights x", "no such file"],
    f"{STAGE_2} --ae_load_dir absorbing": ["absorbing", "train_vqgan.py"],
    f"{INPAINT} --mask_path m.png": ["--mask_path m.png", "no such file"],
    f"{INPAINT} --mask_path .": ["--mask_path .", "is a folder"],
    f"{ELBO} --dataset custom --custom_dataset_path one/a.jpg": ["one/a.jpg", "--custom_dataset_path"],
    f"{SAMPLES} --load_dir absorbing --sampler autoregressive": ["autoregressive_<step>.th"],
    f"{STAGE_1} --log_dir vqgan": OTHER_SETTINGS,
    f"{STAGE_1} --log_dir absorbing": ["logs/absorbing", "--log_dir"],  # another stage's
    f"{STAGE_1} --log_dir vqgan {FROM_ELSEWHERE}": ["logs/vqgan", "--log_dir"],
    f"{SAMPLES} --load_dir absorbing --log_dir autoregressive": ["--log_dir"],
    f"{STAGE_2} --ae_load_dir misspelt": ["misspelt/hparams.yaml", "did you mean"],
    "train_vqgan.py --resume --log_dir vqgan --train_steps 7": ["--train_steps 7", "step 20"],
    f"{SAMPLES} --load_dir only_ema --no_ema": ["--no_ema"],
}

# Refused once the models are built or the data read.
OTHER_DEPTH = ["absorbing_20.th", "missing", "flags"]
OTHER_SIZES = ["vqgan_ema_20.th", "quantize.embedding.weight is [32, 16] there and [64, 16] here", "flags"]
NO_VGG = ["--perceptual lpips", "vgg16-397923af.pth", "--perceptual_weights_file", "--perceptual none"]
NO_INCEPTION = ["--features inception", "weights-inception-2015-12-05-6726825d.pth", "https://", "--feature_weights"]
FEW_IMAGES = ["--kid_subset_size 65", "the 64 images of the val split of toy_churches"]
LATE = {
    f"{SAMPLES} --load_dir absorbing --log_dir new --codebook_size 64": OTHER_SIZES,
    "train_sampler.py --log_dir absorbing --resume --bert_n_layers 2 --train_steps 40": OTHER_DEPTH,
    "train_vqgan.py --log_dir nested/gumbel --resume --ema --train_steps 40": ["--ema", "vqgan_ema_20.th", "--no_ema"],
    f"{NEIGHBOURS} --log_dir begun/n --sample_steps 1 --top_k 200": ["--top_k 200", "96 training images"],
    f"{NEIGHBOURS} --log_dir new {A_PRIOR_AS_LPIPS}": ["absorbing_20.th", "does not fit"],
    NO_CUDA: ["--device cuda", "--device cpu"],
    f"{STAGE_1} --log_dir new --load_dir vqgan --load_step 10 --load_optim": ["--load_optim", "steps with one: 20"],
    f"{CUSTOM} --custom_dataset_path one --log_dir new --perceptual lpips": NO_VGG,
    f"{FID} --load_dir absorbing --features inception": NO_INCEPTION,
    f"{FID} --ae_load_dir vqgan --latents_path codes.npy": ["--latents_path codes.npy", "0..31", "another autoencoder"],
    f"{PRDC} --fake_feats nan.npy --real_feats few.npy": ["--fake_feats nan.npy", "not finite"],
    f"{PRDC} --fake_feats few.npy --real_feats wide.npy": ["few.npy has [n, 4]", "--real_feats wide.npy has [n, 5]"],
    f"{FID} --load_dir absorbing --n_samples 500 --split val --kid_subset_size 65": FEW_IMAGES,
    BROKEN_JPEG: ["broken/b.jpg"],
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
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    shell = new_shell(**proxies, no_proxy="", NO_PROXY="", TORCH_HOME="torch")
    for name in ("vqgan", "absorbing", "autoregressive", "nested/gumbel"):
        shutil.copytree(toy.logs / name, shell.logs / name)
    shutil.copytree(toy.folder / "data", shell.folder / "data")
    shutil.copytree(toy.logs / "absorbing", shell.logs / "only_ema")
    for step in (10, 20):
        (shell.logs / f"only_ema/saved_models/absorbing_{step}.th").unlink()
    (shell.logs / "vqgan/saved_models/vqgan_state_10.th").unlink()
    (shell.logs / "misspelt").mkdir()
    (shell.logs / "misspelt/hparams.yaml").write_text("codebok_size: 32\n")
    for name in ("one", "broken"):
        (shell.folder / name).mkdir()
        for letter in "ab":
            noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(noise).save(shell.folder / name / f"{letter}.jpg")
    np.save(shell.folder / "codes.npy", np.full((3, 64), 32))
    np.save(shell.folder / "nan.npy", np.full((8, 4), np.nan, np.float32))
    np.save(shell.folder / "few.npy", np.zeros((8, 4), np.float32))
    np.save(shell.folder / "wide.npy", np.zeros((8, 5), np.float32))
    os.truncate(shell.folder / "broken/b.jpg", 100)
    return shell


def refuses(shell: Any, command: str, says: list[str]) -> None:
    before = shell.snapshot()
    line = shell.refused(command)
    assert [part for part in says if part not in line] == [], line
    assert shell.snapshot() == before


@pytest.mark.parametrize("command", IN_AN_EMPTY_FOLDER)
def test_refused_in_an_empty_folder(wrong, command: str) -> None:
    refuses(wrong, command, IN_AN_EMPTY_FOLDER[command])


@pytest.mark.parametrize("command", AMONG_RUNS)
def test_refused_among_runs(runs, command: str) -> None:
    refuses(runs, command, AMONG_RUNS[command])


def test_refused_late(runs) -> None:
    """Only a run that has begun when it meets a broken image leaves a folder; torch makes one for downloads."""
    before = runs.snapshot()
    with ThreadPoolExecutor(2) as pool:
        outcomes = dict(zip(LATE, pool.map(runs.run, LATE), strict=True))
    if torch.cuda.is_available():
        del outcomes[NO_CUDA]
    lines = {command: runs.line_of(done, command) for command, done in outcomes.items()}
    assert [line for command, line in lines.items() if any(part not in line for part in LATE[command])] == []
    after = runs.snapshot()
    assert {path: content for path, content in after.items() if path in before} == before
    assert [path for path in after.keys() - before.keys() if not path.startswith(("logs/begun", "torch"))] == []
    (runs.folder / "broken/b.jpg").unlink()  # and what met it starts anew
    runs.ok(f"{BROKEN_JPEG} --dry_run")
