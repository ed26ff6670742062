"""Every script on an emulated CUDA device, whose tensors must not meet the host's."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from stages import STAGES

ROOT = Path(__file__).parents[2]
DATA = "--dataset toy_churches --toy_images 40 --img_size 16"
VQGAN = f"{DATA} --nf 32 --ch_mult 1 2 --attn_resolutions 8 --codebook_size 16 --emb_dim 8 --ndf 8 --disc_layers 1"
CARE = "--codebook_init encoder --restart_dead_codes 3"
PRIOR = f"{DATA} --ae_load_dir vqgan --bert_n_emb 32 --bert_n_head 2 --bert_n_layers 1 --total_steps 8"
SAVES = "--steps_per_checkpoint 8 --steps_per_eval 4 --steps_per_log 2"
OF_PRIOR = "--load_dir prior --n_samples"
COMMANDS = [
    f"train_vqgan.py --log_dir vqgan {VQGAN} {CARE} {SAVES} --train_steps 8 --disc_start_step 3",
    f"train_sampler.py --log_dir prior {PRIOR} {SAVES} --train_steps 8",
    f"train_sampler.py --log_dir ar --sampler autoregressive {PRIOR} --train_steps 2",
    "train_vqgan.py --log_dir vqgan --resume --train_steps 10",
    "train_sampler.py --log_dir prior --resume --train_steps 10",
    "experiments/get_samples.py --log_dir samples_ar --sampler autoregressive --load_dir ar --n_samples 10",
    f"experiments/calc_FID.py --log_dir fid {OF_PRIOR} 20 --kid_subsets 2 --kid_subset_size 10",
    f"experiments/calc_PRDC.py --log_dir prdc {OF_PRIOR} 20",
    "experiments/calc_VQGAN_FID.py --log_dir rfid --ae_load_dir vqgan --kid_subsets 0",
    "experiments/calc_approximate_ELBO.py --log_dir elbo --load_dir prior --train_steps 2",
    f"experiments/calc_nearest_neighbours.py --log_dir neighbours {OF_PRIOR} 4",
    f"experiments/generate_big_samples.py --log_dir big {OF_PRIOR} 2 --shape 8 9",
    f"experiments/inpaint.py --log_dir inpainted {OF_PRIOR} 2",
]


def test_every_script(
    cuda: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --amp; training steps and rounds of sampling are replayed as graphs."""
    assert {command.split()[0] for command in COMMANDS} == STAGES.keys()
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS:
        script, *words = command.split()
        monkeypatch.setattr(sys, "argv", [script, *words, *["--amp", "--batch_size", "8", "--visdom_port", "9"]])
        runpy.run_path(str(ROOT / script))["main"]()
        assert "cuda (emulated)" in capsys.readouterr().out, command
    results = [tmp_path / f"logs/{name}/results.json" for name in ("fid", "prdc", "rfid", "elbo", "neighbours")]
    assert all(entry["values"] for file in results for entry in json.loads(file.read_text()))
    for pictures in ("samples_ar", "neighbours", "big", "inpainted"):
        assert list((tmp_path / f"logs/{pictures}/images").rglob("*.png")), pictures
