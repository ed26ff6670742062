"""Trained models in a program of the user's own: `load_autoencoder` and `load_prior`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_models import seeded

from hparams.errors import UserError
from models.prior.absorbing import AbsorbingDiffusion
from models.prior.autoregressive import AutoregressivePrior
from utils.pretrained.loading import load_autoencoder, load_prior

README = Path(__file__).parents[2] / "README.md"
K, N = 32, 64  # of the runs of `toy`
PRIOR = {"codebook_size": K, "bert_n_emb": 32, "bert_n_head": 2, "bert_n_layers": 1, "total_steps": 16}
SIZES: dict[str, Any] = PRIOR | {  # what they were made with, for folders without settings
    "nf": 32, "ch_mult": (1, 2), "res_blocks": 1, "attn_resolutions": [8], "emb_dim": 16, "img_size": 16,
}  # fmt: skip


@pytest.fixture
def published(toy, tmp_path: Path) -> Path:
    """A logs folder with the runs of `toy` as the authors leave theirs: model files only."""
    for run, kinds in {"vqgan": ["vqgan"], "prior": ["absorbing"], "both": ["absorbing", "autoregressive"]}.items():
        (tmp_path / run / "saved_models").mkdir(parents=True)
        for kind in kinds:
            for file in (toy.logs / kind / "saved_models").glob(f"{kind}_*20.th"):
                if "state" not in file.name:
                    shutil.copy(file, tmp_path / run / "saved_models")
    return tmp_path


@pytest.mark.parametrize(("run", "quantizer"), [("vqgan", "VectorQuantizer"), ("nested/gumbel", "GumbelQuantizer")])
def test_the_autoencoder_encodes_and_decodes(toy, run: str, quantizer: str) -> None:
    autoencoder = load_autoencoder(run, root=toy.logs, device="cpu")
    images = torch.rand(3, 3, 16, 16, generator=seeded())
    ids = autoencoder.encode(images)
    assert (ids.shape, ids.dtype) == ((3, N), torch.int64)
    assert 0 <= ids.min() <= ids.max() < K
    decoded = autoencoder.decode(ids)
    assert (decoded.shape, decoded.dtype) == (images.shape, torch.float32)
    assert 0 <= decoded.min() <= decoded.max() <= 1
    assert not autoencoder.training
    assert not any(parameter.requires_grad for parameter in autoencoder.parameters())
    assert type(autoencoder.quantize).__name__ == quantizer


def test_steps_and_averages(toy) -> None:
    name = "generator.blocks.0.weight"
    for run, step, ema, file in (
        ("vqgan", None, True, "ema_20"), ("vqgan", 10, True, "ema_10"), ("vqgan", 10, False, "10"),
        ("vqgan", None, False, "20"), ("nested/gumbel", None, True, "20"),  # no average was saved
    ):  # fmt: skip
        loaded = load_autoencoder(run, step, ema=ema, root=str(toy.logs)).state_dict()[name]
        saved = torch.load(toy.logs / run / f"saved_models/vqgan_{file}.th", weights_only=True)
        assert torch.equal(loaded, saved[f"ae.{name}"]), file


def test_the_absorbing_prior_gives_logits_and_samples(toy) -> None:
    prior = load_prior("absorbing", root=toy.logs)
    assert isinstance(prior, AbsorbingDiffusion)
    assert not prior.training
    assert prior.total_steps == 16  # as its run's settings say
    logits = prior.logits(torch.full((2, N), K))
    assert (logits.shape, logits.dtype) == ((2, N, K), torch.float32)
    ids = prior.sample(3, generator=seeded(), temp=0.9, sample_steps=4)
    assert (ids.shape, ids.dtype) == ((3, N), torch.int64)
    assert ids.max() < K
    assert torch.equal(ids, prior.sample(3, generator=seeded(), temp=0.9, sample_steps=4))
    torch.manual_seed(1)
    first = prior.sample(2)
    torch.manual_seed(1)
    assert torch.equal(first, prior.sample(2))
    assert not torch.equal(first, prior.sample(2))


def test_the_autoregressive_prior_too(toy) -> None:
    prior = load_prior("autoregressive", root=toy.logs)
    assert isinstance(prior, AutoregressivePrior)
    assert prior.logits(torch.randint(K, (2, N), generator=seeded())).shape == (2, N, K)
    assert prior.sample(2, generator=seeded()).shape == (2, N)


def test_published_folders_take_their_sizes_from_keywords(published: Path, toy) -> None:
    autoencoder = load_autoencoder("vqgan", root=published, dataset="churches", **SIZES | {"bert_n_emb": 7})
    images = torch.rand(1, 3, 16, 16, generator=seeded())
    assert torch.equal(autoencoder.encode(images), load_autoencoder("vqgan", root=toy.logs).encode(images))
    assert isinstance(load_prior("prior", root=published, **SIZES), AbsorbingDiffusion)  # one kind of file
    assert isinstance(load_prior("both", root=published, sampler="autoregressive", **SIZES), AutoregressivePrior)
    with pytest.raises(UserError, match=r"both kinds.*sampler='absorbing'"):
        load_prior("both", root=published, **SIZES)
    with pytest.raises(UserError, match="does not fit these settings"):
        load_prior("prior", root=published)  # the preset of 256-pixel models
    load_prior("prior", root=published, block_size=N, img_size=33, nf=5, **PRIOR)  # img_size is the autoencoder's alone


def test_keywords_win_over_the_runs_settings(toy) -> None:
    assert load_autoencoder("vqgan", root=toy.logs).quantize.beta == 0.25
    assert load_autoencoder("vqgan", root=toy.logs, beta=0.5).quantize.beta == 0.5
    with pytest.raises(TypeError, match="no flag is named bert_layers"):
        load_prior("absorbing", root=toy.logs, bert_layers=3)
    with pytest.raises(TypeError, match="no flag is named nff"):
        load_autoencoder("vqgan", root=toy.logs, nff=3, batch_size=2, sampler="absorbing")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"log_dir": "nowhere", "step": 7}, "^log_dir: there is no run folder"),
        ({"log_dir": "vqgan", "step": 7}, "step: .* has no vqgan of step 7; it has step 10, 20"),
        ({"log_dir": "absorbing"}, "train_vqgan.py"),
        ({"log_dir": "../vqgan"}, "log_dir"),
        ({"log_dir": "vqgan", "codebook_size": 64}, "shapes differ"),
        ({"log_dir": "vqgan", "nf": "many"}, "nf: 'many' is not"),
        ({"log_dir": "vqgan", "nf": 33}, "--nf 33 is not a multiple"),
        ({"log_dir": "vqgan", "device": "cuda:9"}, "CUDA devices"),
    ],
)
def test_mistakes_are_named(toy, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_autoencoder(**arguments, root=toy.logs)


def test_the_example_of_the_readme(toy, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in example.splitlines() if line]) == 6
    for run, name in (("vqgan", "demo/vqgan"), ("absorbing", "demo/absorbing")):
        shutil.copytree(toy.logs / run, tmp_path / "logs" / name)
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    (picture,) = tmp_path.glob("*.png")
    with Image.open(picture) as image:
        assert len(set(image.convert("L").tobytes())) > 1
