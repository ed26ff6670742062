"""Checkpoints that the published code wrote, through the scripts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

NO_FLAGS = {"batch"}
DISCRIMINATOR = {"ndf", "disc_layers"}


@pytest.mark.parametrize("model", ["nearest_small", "gumbel_small"])
def test_published_checkpoints(new_shell, warm, golden_dir: Path, model: str) -> None:
    shell = new_shell(warm)
    for kind in ("vqgan", "absorbing", "autoregressive"):
        shutil.copytree(golden_dir / model / kind, shell.logs / kind)
    settings = json.loads((golden_dir / model / "hparams.json").read_text())
    assert {"codebook_size", "bert_n_emb"} <= settings.keys()
    flags = " ".join(
        f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in settings.items()
        if name not in NO_FLAGS | DISCRIMINATOR
    )
    side = settings["img_size"]
    sample = f"experiments/get_samples.py {{RUN}} {flags} --ae_load_dir vqgan --ae_load_step 10 --save_individually"
    shell.abreast(
        [
            f"{sample} --load_dir {kind} --load_step 20 --sampler {kind} --log_dir samples_{kind} --n_samples 3 --ema"
            for kind in ("absorbing", "autoregressive")
        ],
        [
            f"train_sampler.py {{RUN}} {flags} --toy_images 16 --train_steps 3 --log_dir new --ae_load_dir vqgan "
            "--ae_load_step 10 --ema"
        ],
    )
    for kind in ("absorbing", "autoregressive"):
        files = sorted((shell.logs / f"samples_{kind}" / "images").rglob("*.png"))
        assert [Image.open(file).size for file in files] == [(side, side)] * 3
    assert (shell.logs / "new/saved_models/absorbing_3.th").exists()
    assert (shell.logs / "vqgan/latents").is_dir()
