"""Trained models in a program of the user's own: `load_autoencoder` and `load_prior`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from hparams.errors import UserError
from models.prior.absorbing import AbsorbingDiffusion
from models.prior.autoregressive import AutoregressivePrior
from utils.pretrained.loading import load_autoencoder, load_prior

README = Path(__file__).parents[2] / "README.md"
K, N = 32, 64  # of the runs of `toy`
SIZES = {  # what they were made with, for folders without settings
    "nf": 32, "ch_mult": (1, 2), "res_blocks": 1, "attn_resolutions": [8], "emb_dim": 16, "codebook_size": K,
    "img_size": 16, "bert_n_emb": 32, "bert_n_head": 2, "bert_n_layers": 1, "total_steps": 16,
}  # fmt: skip


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


@pytest.mark.parametrize(("run", "quantizer"), [("vqgan", "nearest"), ("nested/gumbel", "gumbel")])
def test_the_autoencoder_encodes_and_decodes(toy, run: str, quantizer: str) -> None:
    autoencoder = load_autoencoder(run, root=toy.logs, device="cpu")
    images = torch.rand(3, 3, 16, 16, generator=seeded())
    ids = autoencoder.encode(images)
    assert (ids.shape, ids.dtype) == ((3, N), torch.int64)
    assert ids.min() >= 0
    assert ids.max() < K
    decoded = autoencoder.decode(ids)
    assert (decoded.shape, decoded.dtype) == (images.shape, torch.float32)
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    assert not autoencoder.training
    assert not any(parameter.requires_grad for parameter in autoencoder.parameters())
    assert type(autoencoder.quantize).__name__.lower().startswith(quantizer[:6] if quantizer == "gumbel" else "vector")


def test_steps_and_averages(toy) -> None:
    name = "generator.blocks.0.weight"
    for step, ema, file in ((None, True, "ema_20"), (10, True, "ema_10"), (10, False, "10"), (None, False, "20")):
        loaded = load_autoencoder("vqgan", step, ema=ema, root=str(toy.logs)).state_dict()[name]
        assert torch.equal(loaded, weights(toy.logs / f"vqgan/saved_models/vqgan_{file}.th")[f"ae.{name}"]), file
    raw = load_autoencoder("nested/gumbel", root=toy.logs).state_dict()[name]  # no average was saved
    assert torch.equal(raw, weights(toy.logs / "nested/gumbel/saved_models/vqgan_20.th")[f"ae.{name}"])


def test_the_absorbing_prior_gives_logits_and_samples(toy) -> None:
    prior = load_prior("absorbing", root=toy.logs)
    assert isinstance(prior, AbsorbingDiffusion)
    assert not prior.training
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
    autoencoder = load_autoencoder("vqgan", root=published, dataset="churches", bert_n_emb=7, **{
        name: value for name, value in SIZES.items() if name != "bert_n_emb"
    })  # fmt: skip
    images = torch.rand(1, 3, 16, 16, generator=seeded())
    assert torch.equal(autoencoder.encode(images), load_autoencoder("vqgan", root=toy.logs).encode(images))
    prior = load_prior("prior", root=published, **SIZES)  # one kind of file
    assert isinstance(prior, AbsorbingDiffusion)
    assert isinstance(load_prior("both", root=published, sampler="autoregressive", **SIZES), AutoregressivePrior)
    with pytest.raises(UserError, match=r"both kinds.*sampler='absorbing'"):
        load_prior("both", root=published, **SIZES)
    with pytest.raises(UserError, match="does not fit these settings"):
        load_prior("prior", root=published)  # the preset of 256-pixel models
    own = {name: SIZES[name] for name in ("codebook_size", "bert_n_emb", "bert_n_head", "bert_n_layers", "total_steps")}
    load_prior("prior", root=published, block_size=N, img_size=33, nf=5, **own)  # what concerns the autoencoder alone


def test_keywords_win_over_the_runs_settings(toy) -> None:
    assert load_autoencoder("vqgan", root=toy.logs).quantize.beta == 0.25
    assert load_autoencoder("vqgan", root=toy.logs, beta=0.5).quantize.beta == 0.5
    assert load_prior("absorbing", root=toy.logs).total_steps == 16
    with pytest.raises(UserError, match="shapes differ"):
        load_autoencoder("vqgan", root=toy.logs, codebook_size=64)


def test_what_is_no_flag_is_a_type_error(toy) -> None:
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
