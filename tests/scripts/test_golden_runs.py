"""Checkpoints that the published code wrote, through the scripts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

PRIORS = ("absorbing", "autoregressive")
UNUSED = ("batch", "ndf", "disc_layers")


@pytest.mark.parametrize("model", ["nearest_small", "gumbel_small"])
def test_published_checkpoints(shell, golden_dir: Path, model: str) -> None:
    for kind in ("vqgan", *PRIORS):
        shutil.copytree(golden_dir / model / kind, shell.logs / kind)
    settings = json.loads((golden_dir / model / "hparams.json").read_text())
    assert {"codebook_size", "bert_n_emb"} <= settings.keys()
    flags = [f"--{name} {value}" for name, value in settings.items() if name not in UNUSED]
    flags = "{RUN} --ae_load_dir vqgan --ae_load_step 10 --ema " + re.sub(r"[\[\],]", " ", " ".join(flags))
    sample = f"experiments/get_samples.py {flags} --load_step 20 --save_individually --n_samples 3"
    train = f"train_sampler.py {flags} --toy_images 16 --train_steps 3 --log_dir new"
    shell.abreast([f"{sample} --load_dir {kind} --sampler {kind} --log_dir of_{kind}" for kind in PRIORS], [train])
    for kind in PRIORS:
        files = sorted((shell.logs / f"of_{kind}/images").rglob("*.png"))
        assert [Image.open(file).size for file in files] == [(settings["img_size"],) * 2] * 3
    assert (shell.logs / "new/saved_models/absorbing_3.th").exists()
    assert (shell.logs / "vqgan/latents").is_dir()
