"""No flag is parsed and dropped: each changes what it says it changes.

A row is a command that differs from its base command by the words in `changed`, and what must follow. The scripts run
in this process, for a few steps of a tiny model.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lpips
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from prdc import compute_prdc
from torch import Tensor

from hparams.errors import UserError
from utils.pretrained.loading import load_autoencoder

REPO = Path(__file__).parents[2]
PUBLISHED = (
    "dataset custom_dataset_path batch_size lr train_steps amp ema ema_beta no_ema steps_per_update_ema load_dir "
    "load_step load_optim log_dir visdom_server visdom_port steps_per_log steps_per_eval steps_per_checkpoint "
    "steps_per_display_output steps_per_save_output save_individually quantizer codebook_size emb_dim nf ch_mult "
    "res_blocks attn_resolutions img_size latent_shape n_channels ndf disc_layers disc_start_step disc_weight_max "
    "perceptual_weight base_lr beta diff_aug horizontal_flip gumbel_kl_weight gumbel_straight_through sampler "
    "ae_load_dir ae_load_step bert_n_emb bert_n_head bert_n_layers block_size attn_pdrop embd_pdrop resid_pdrop "
    "loss_type mask_schedule total_steps sample_steps sample_type temp warmup_iters n_samples"
)

_RUN = (
    "--dataset toy_churches --toy_images 16 --batch_size 4 --device cpu --num_workers 0 --visdom_port 9 --sinks visdom"
)
_LOOP = (
    "--train_steps 1 --no_amp --ema --ema_beta 0.9 --no_ema_warmup --steps_per_update_ema 10 --steps_per_log 1 "
    "--steps_per_eval 0 --steps_per_checkpoint 0 --steps_per_save_output 0 --steps_per_display_output 0"
)
STAGE_1 = (
    f"train_vqgan.py {_RUN} {_LOOP} --nf 32 --ch_mult 1 2 --res_blocks 1 --attn_resolutions 8 --emb_dim 16 "
    "--codebook_size 32 --img_size 16 --ndf 8 --disc_layers 1 --disc_start_step 0 --perceptual none "
    "--codebook_init uniform --restart_dead_codes 0 --disc_weight_max 1e9"
)
STAGE_2 = (
    f"train_sampler.py {_RUN} {_LOOP} --ae_load_dir ae --bert_n_emb 32 --bert_n_head 2 --bert_n_layers 1 "
    "--total_steps 16 --warmup_iters 0 --n_samples 2"
)
SAMPLES = f"experiments/get_samples.py {_RUN} --ae_load_dir ae --load_dir prior --n_samples 3 --save_individually"


@dataclass(frozen=True)
class Run:
    """What a command left behind."""

    folder: Path
    printed: str

    @cached_property
    def settings(self) -> dict[str, Any]:
        return yaml.safe_load((self.folder / "hparams.yaml").read_text())

    def metrics(self, split: str = "train") -> list[dict[str, Any]]:
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [line for line in lines if line["split"] == split]

    def first(self, name: str) -> float:
        """A term of the first update."""
        return self.metrics()[0][name]

    @cached_property
    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / "results.json").read_text())[-1]["values"]

    @property
    def features(self) -> int:
        """Of how many images."""
        (file,) = (self.folder / "features").glob("*/*.npy")
        return len(np.load(file))

    @property
    def files(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}

    @cached_property
    def images(self) -> np.ndarray:
        beside = ("unmasking", "inpainted", "neighbours")
        files = [file for file in sorted(self.folder.rglob("*.png")) if not file.name.startswith(beside)]
        return np.stack([np.asarray(Image.open(file)) for file in files])

    @property
    def unmasking(self) -> bytes:
        return (self.folder / "images/unmasking_1.png").read_bytes()

    def model(self, name: str) -> dict[str, Tensor]:
        return torch.load(self.folder / "saved_models" / f"{name}.th", weights_only=True)

    def shape(self, name: str) -> list[int]:
        """Of a weight after the first update, by the end of its name."""
        (file,) = (file for file in self.files if file.endswith("_1.th") and "ema" not in file and "state" not in file)
        (value,) = (value for key, value in self.model(Path(file).stem).items() if key.endswith(name))
        return list(value.shape)


Check = Callable[[Run, Run], bool]


@dataclass(frozen=True)
class Row:
    flags: str  # those that the row is about, by name
    changed: str  # words in which the command differs
    check: Check  # of the base command's run and this one's
    base: str = ""  # words that both have


def differs(name: str) -> Check:
    """A term of the first update is another one."""
    return lambda base, run: base.first(name) != run.first(name)


def scales(name: str, factor: float) -> Check:
    """A term of the first update is another multiple of the same quantity."""
    return lambda base, run: math.isclose(run.first(name), base.first(name) * factor, rel_tol=1e-5)


def moved_by(lr: float) -> Check:
    """The first update of Adam moves each weight by the learning rate; the average stays where the weights began."""

    def check(base: Run, run: Run) -> bool:
        kind = "vqgan" if "vqgan_1" in "".join(run.files) else "absorbing"
        after, before = run.model(f"{kind}_1"), run.model(f"{kind}_ema_1")
        name = "ae.generator.blocks.0.weight" if kind == "vqgan" else "_denoise_fn.head.weight"
        return math.isclose((after[name] - before[name]).abs().median().item(), lr, rel_tol=1e-3)

    return check


def average_is_the_model(base: Run, run: Run) -> bool:
    name = "ae.generator.blocks.0.weight"
    same = [torch.equal(r.model("vqgan_3")[name], r.model("vqgan_ema_3")[name]) for r in (base, run)]
    return same == [False, True]


def updates(kind: str, optimiser: str, count: int, step: int = 2) -> Check:
    """How many updates an optimiser has seen at a step."""

    def check(base: Run, run: Run) -> bool:
        state = run.model(f"{kind}_state_{step}")
        return state["trainer"]["optimisers"][optimiser]["state"][0]["step"] == count

    return check


def starts_from(run: Run, source: str, kind: str) -> bool:
    """The average, which is not updated so early, is that of the run that was loaded."""
    theirs = Run(run.folder.parent / source, "").model(f"{kind}_ema_1")
    return all(torch.equal(value, theirs[name]) for name, value in run.model(f"{kind}_ema_2").items())


def steps_of(split: str, *steps: int) -> Check:
    return lambda base, run: [line["step"] for line in run.metrics(split)] == list(steps)


def saved(stem: str, *steps: int) -> Check:
    """The steps of which there are files `<stem>_<step>.th`."""

    def check(base: Run, run: Run) -> bool:
        found = (re.fullmatch(rf"saved_models/{stem}_(\d+)\.th", file) for file in run.files)
        return sorted(int(match[1]) for match in found if match) == list(steps)

    return check


def other_images(base: Run, run: Run) -> bool:
    return base.images.shape == run.images.shape and not np.array_equal(base.images, run.images)


def other_samples(base: Run, run: Run) -> bool:
    """Also the one that is shown while it is unmasked."""
    return other_images(base, run) and base.unmasking != run.unmasking


def other_results(*names: str) -> Check:
    """Of all numbers of a result these alone are others."""

    def check(base: Run, run: Run) -> bool:
        assert base.results.keys() == run.results.keys()
        return {name for name, value in base.results.items() if run.results[name] != value} == set(names)

    return check


def says(text: str) -> Check:
    return lambda base, run: text in run.printed and text not in base.printed


CUSTOM = "--dataset custom --custom_dataset_path photographs"
PICTURES = "--steps_per_save_output 1"
GUMBEL = "--quantizer gumbel"
STAGE_1_ROWS = [
    Row("dataset custom_dataset_path", CUSTOM, says("8 training images")),
    Row("batch_size", "--batch_size 8", says("2 steps per epoch")),
    Row("lr", "--lr 3e-3", moved_by(3e-3)),
    Row("base_lr batch_size", "--base_lr 5e-4", moved_by(2e-3), base=CUSTOM),
    Row("train_steps", "--train_steps 2", saved("vqgan_state", 2)),
    Row("amp", "--amp --amp_dtype bfloat16", lambda b, r: says("bfloat16")(b, r) and differs("l1")(b, r)),
    Row("ema no_ema", "--no_ema", lambda b, r: [any("_ema_" in f for f in x.files) for x in (b, r)] == [True, False]),
    Row("ema_beta", "--ema_beta 0", average_is_the_model, base="--train_steps 3 --steps_per_update_ema 1"),
    Row("steps_per_update_ema", "--steps_per_update_ema 2", average_is_the_model, base="--train_steps 3 --ema_beta 0"),
    Row(
        "load_dir load_step",
        "--load_dir ae --load_step 1",
        lambda b, r: starts_from(r, "ae", "vqgan"),
        "--train_steps 2",
    ),
    Row("load_step", "--load_dir ae --load_step 1", updates("vqgan", "ae", 1), base="--train_steps 2"),
    Row("load_optim", "--load_optim", updates("vqgan", "ae", 2), base="--train_steps 2 --load_dir ae --load_step 1"),
    Row("load_optim", "--load_optim", updates("vqgan", "ae", 2, 3), "--train_steps 3 --load_dir theirs --load_step 1"),
    Row("log_dir", "--log_dir elsewhere/run", lambda b, r: r.folder.parts[-3:] == ("logs", "elsewhere", "run")),
    Row("visdom_server", "--visdom_server http://127.0.0.9", says("127.0.0.9:9")),
    Row("visdom_port", "--visdom_port 19", says(":19")),
    Row("steps_per_log", "--steps_per_log 2", steps_of("train", 2), base="--train_steps 3"),
    Row("steps_per_eval", "--steps_per_eval 2", steps_of("val", 2), base="--train_steps 3"),
    Row("steps_per_checkpoint", "--steps_per_checkpoint 2", saved("vqgan_ema", 2, 3), "--train_steps 3"),
    Row(
        "steps_per_display_output",
        "--steps_per_display_output 1",
        lambda b, r: "images" in {f.split("/")[0] for f in r.files - b.files},
    ),
    Row("steps_per_save_output", "--steps_per_save_output 2", lambda b, r: len(r.images) == 1, base="--train_steps 3"),
    Row(
        "save_individually", "--save_individually", lambda b, r: (len(b.images), len(r.images)) == (1, 8), base=PICTURES
    ),
    Row("quantizer", GUMBEL, lambda b, r: r.shape("quantize.proj.weight") == [32, 16, 1, 1]),
    Row("codebook_size", "--codebook_size 48", lambda b, r: r.shape("quantize.embedding.weight") == [48, 16]),
    Row("emb_dim", "--emb_dim 24", lambda b, r: r.shape("quantize.embedding.weight") == [32, 24]),
    Row("nf", "--nf 64", lambda b, r: r.shape("ae.encoder.blocks.0.weight") == [64, 3, 3, 3]),
    Row("ch_mult", "--ch_mult 1 3", lambda b, r: r.shape("ae.generator.blocks.0.weight") == [96, 16, 3, 3]),
    Row("res_blocks", "--res_blocks 2", lambda b, r: len(r.model("vqgan_1")) > len(b.model("vqgan_1"))),
    Row(
        "attn_resolutions", "--attn_resolutions 16", lambda b, r: r.model("vqgan_1").keys() != b.model("vqgan_1").keys()
    ),
    Row(
        "img_size latent_shape",
        "--img_size 32 --latent_shape 1 16 16",
        lambda b, r: [load_autoencoder(x.folder.name, root=x.folder.parent).latent_size[0] for x in (b, r)] == [8, 16],
    ),
    Row("ndf", "--ndf 16", lambda b, r: r.shape("disc.main.0.weight") == [16, 3, 4, 4]),
    Row("disc_layers", "--disc_layers 2", lambda b, r: len(r.model("vqgan_1")) > len(b.model("vqgan_1"))),
    Row("disc_start_step", "--disc_start_step 5", lambda b, r: b.first("disc_weight") > 0 == r.first("disc_weight")),
    Row(
        "disc_weight_max",
        "--disc_weight_max 1e-3",
        lambda b, r: math.isclose(r.first("disc_weight"), 1e-3, rel_tol=1e-6),
    ),
    Row("beta", "--beta 0.5", scales("codebook", 1.5 / 1.25), base="--beta 0.25"),
    Row(
        "perceptual_weight",
        "--perceptual_weight 3",
        scales("perceptual", 3),
        "--perceptual lpips --perceptual_weights_file vgg.pth",
    ),
    Row("diff_aug", "--diff_aug", lambda b, r: differs("g_loss")(b, r) and not differs("l1")(b, r)),
    Row(
        "horizontal_flip",
        "--horizontal_flip",
        lambda b, r: b.metrics()[-1]["l1"] != r.metrics()[-1]["l1"],
        "--train_steps 4",
    ),
    Row("gumbel_kl_weight", "--gumbel_kl_weight 1e-3", scales("codebook", 1e-3 / 1e-8), base=GUMBEL),
    Row("gumbel_straight_through", "--gumbel_straight_through", differs("l1"), base=GUMBEL),
]
STAGE_2_ROWS = [
    Row("sampler", "--sampler autoregressive", saved("autoregressive", 1)),
    Row("ae_load_dir", "--ae_load_dir ae2", says("logs/ae2/saved_models/vqgan_ema_1.th")),
    Row("ae_load_step", "--ae_load_step 1", says("logs/ae/saved_models/vqgan_ema_1.th")),
    Row("lr", "--lr 3e-3", moved_by(3e-3)),
    Row(
        "warmup_iters",
        "--warmup_iters 4",
        lambda b, r: [line["lr"] for line in r.metrics()] == pytest.approx([0, 2.5e-4]),
        "--train_steps 2",
    ),
    Row("bert_n_emb", "--bert_n_emb 48", lambda b, r: r.shape("tok_emb.weight") == [33, 48]),
    Row("bert_n_head", "--bert_n_head 4", differs("loss")),
    Row("bert_n_layers", "--bert_n_layers 2", lambda b, r: r.shape("blocks.1.ln1.weight") == [32]),
    Row("block_size", "--block_size 64", lambda b, r: r.shape("pos_emb") == [1, 64, 32]),
    Row("attn_pdrop", "--attn_pdrop 0.5", differs("loss")),
    Row("embd_pdrop", "--embd_pdrop 0.5", differs("loss")),
    Row("resid_pdrop", "--resid_pdrop 0.5", differs("loss")),
    Row(
        "loss_type", "--loss_type elbo", lambda b, r: differs("loss")(b, r) and not differs("elbo_bits_per_token")(b, r)
    ),
    Row("mask_schedule", "--mask_schedule fixed", differs("loss")),
    Row("total_steps", "--total_steps 32", lambda b, r: r.shape("Lt_history") == [33]),
    Row("horizontal_flip", "--horizontal_flip", says("32 x 64 codes")),
    Row(
        "load_dir load_step",
        "--load_dir prior --load_step 1",
        lambda b, r: starts_from(r, "prior", "absorbing"),
        "--train_steps 2",
    ),
    Row(
        "load_optim",
        "--load_optim",
        updates("absorbing", "absorbing", 2),
        "--train_steps 2 --load_dir prior --load_step 1",
    ),
    Row(
        "load_optim",
        "--load_optim",
        lambda b, r: updates("absorbing", "absorbing", 2, 3)(b, r) and steps_of("train", 3)(b, r),
        "--train_steps 3 --load_dir their_prior --load_step 1",
    ),
    Row(
        "n_samples",
        "--n_samples 3",
        lambda b, r: (len(b.images), len(r.images)) == (2, 3),
        f"{PICTURES} --save_individually",
    ),
    Row("temp", "--temp 0.1", other_samples, base=PICTURES),
    Row("sample_steps", "--sample_steps 3", other_samples, base=PICTURES),
    Row("sample_type", "--sample_type mlm", other_images, base=PICTURES),
]
SAMPLES_ROWS = [
    Row("n_samples", "--n_samples 5", lambda b, r: (len(b.images), len(r.images)) == (3, 5)),
    Row("save_individually", "--no_save_individually", lambda b, r: len(r.images) == 1),
    Row("temp", "--temp 0.1", other_images),
    Row("sample_steps", "--sample_steps 3", other_images),
    Row("sample_type", "--sample_type mlm", other_images),
    Row("ema no_ema", "--no_ema", lambda b, r: other_images(b, r) and says("absorbing_1.th")(b, r)),
    Row("load_step", "--load_step 1", says("absorbing_ema_1.th"), base="--load_dir longer"),
    Row("sampler load_dir", "--sampler autoregressive --load_dir causal", says("autoregressive_ema_1.th")),
]
_DRAWN = f"{_RUN} --ae_load_dir ae --load_dir prior"
INPAINT = f"experiments/inpaint.py {_DRAWN} --region 0 0 8 16 --n_images 2 --n_samples 1"
LARGER = f"experiments/generate_big_samples.py {_DRAWN} --shape 8 10 --order random --sample_steps 4 --n_samples 2"
ELBO = f"experiments/calc_approximate_ELBO.py {_DRAWN} --train_steps 0 --elbo_steps 4"
RECONSTRUCTIONS = (
    f"experiments/calc_VQGAN_FID.py {_RUN} --ae_load_dir ae --n_samples 12 --kid_subsets 2 --kid_subset_size 8"
)
_TOTAL = ("bits_per_dim", "standard_error")
_PIXELS = ("pixel_bits_per_dim", "pixel_standard_error")
_CODES = ("code_bits_per_dim", "code_standard_error", "code_mc_error", "code_bits_per_token")
EXPERIMENT_ROWS = {
    RECONSTRUCTIONS: [
        Row("", "--split val", lambda b, r: b.results["psnr_db"] != r.results["psnr_db"]),
        Row("", "--no_ema", lambda b, r: b.results["psnr_db"] != r.results["psnr_db"]),
        Row("", "--n_samples 10", lambda b, r: [x.features for x in (b, r)] == [12, 10]),
    ],
    INPAINT: [
        Row("", "--temp 0.1", other_images),
        Row("", "--sample_steps 3", other_images),
        Row("", "--split train", other_images),
        Row("", "--no_ema", other_images),
        Row("", "--n_images 3", lambda b, r: len(r.files) == len(b.files) + 1),
    ],
    LARGER: [
        Row("", "--temp 0.1", other_images),
        Row("", "--sample_steps 3", other_images),
        Row("", "--order raster", other_images),
        Row("", "--stride 2", other_results("windows_per_image")),
        Row("", "--no_ema", other_images),
    ],
    ELBO: [
        Row("", "--train_steps 2", other_results(*_TOTAL, *_PIXELS)),
        Row("", "--lr 1e-2", other_results(*_TOTAL, *_PIXELS), base="--train_steps 2"),
        Row("", "--steps_per_eval 1", steps_of("val", 1, 2), base="--train_steps 2"),
        Row("", "--elbo_steps 8", other_results(*_TOTAL, *_CODES)),
        Row("", "--code_bound continuous", other_results(*_TOTAL, *_CODES)),
        Row("", "--bits 5", lambda b, r: b.results["pixel_bits_per_dim"] - r.results["pixel_bits_per_dim"] > 2),
        Row("", "--protocol published", lambda b, r: b.results["code_mc_error"] and not r.results["code_mc_error"]),
        Row("", "--no_ema", other_results(*_TOTAL, *_PIXELS, *_CODES)),
    ],
}
REFUSED_ROWS = {"latent_shape": "--latent_shape 1 4 4", "n_channels": "--n_channels 1"}


class Scripts:
    """Runs commands in this process, each once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs: dict[str, Run] = {}

    def run(self, command: str) -> Run:
        if command not in self._runs:
            log_dir = f"run_{len(self._runs)}"
            words = shlex.split(command if "--log_dir" in command else f"{command} --log_dir {log_dir}")
            printed = io.StringIO()
            with (
                pytest.MonkeyPatch.context() as patch,
                contextlib.redirect_stdout(printed),
                contextlib.redirect_stderr(printed),
            ):
                patch.chdir(self.folder)
                patch.setattr(sys, "argv", words)
                runpy.run_path(str(REPO / words[0]))["main"]()
            self._runs[command] = Run(self.folder / "logs" / words[words.index("--log_dir") + 1], printed.getvalue())
        return self._runs[command]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Scripts:
    """Scripts in a folder with photographs, weights of LPIPS, and trained models to start from."""
    folder = tmp_path_factory.mktemp("flags")
    (folder / "photographs").mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"photographs/{i}.png")
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="deprecated"):
        torch.save(lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).state_dict(), folder / "vgg.pth")
    scripts = Scripts(folder)
    ae = scripts.run(f"{STAGE_1} --log_dir ae --train_steps 2 --steps_per_checkpoint 1")
    as_published(ae, folder / "logs/theirs/saved_models")
    scripts.run(f"{STAGE_1} --log_dir ae2")
    prior = scripts.run(f"{STAGE_2} --log_dir prior")
    as_published(prior, folder / "logs/their_prior/saved_models")
    scripts.run(f"{STAGE_2} --log_dir longer --train_steps 2 --steps_per_checkpoint 1")
    scripts.run(f"{STAGE_2} --log_dir causal --sampler autoregressive")
    return scripts


def as_published(run: Run, published: Path) -> None:
    """The weights of step 1 as the authors leave theirs, after 2 updates: no settings, optimisers in files."""
    published.mkdir(parents=True)
    for file in (run.folder / "saved_models").glob("*_1.th"):
        if "state" not in file.name:
            shutil.copy(file, published)
            continue
        for name, optimiser in run.model(file.stem)["trainer"]["optimisers"].items():
            torch.save(optimiser, published / f"{name}_optim_1.th")


ROWS = {STAGE_1: STAGE_1_ROWS, STAGE_2: STAGE_2_ROWS, SAMPLES: SAMPLES_ROWS, **EXPERIMENT_ROWS}


@pytest.mark.parametrize(
    ("command", "row"),
    [
        pytest.param(command, row, id=f"{Path(command.split()[0]).stem} {row.base} {row.changed}"[:80])
        for command, rows in ROWS.items()
        for row in rows
    ],
)
def test_a_flag_does_what_it_says(scripts: Scripts, command: str, row: Row) -> None:
    command = " ".join([command, *row.base.split()])
    assert row.check(scripts.run(command), scripts.run(f"{command} {row.changed}"))


@pytest.mark.parametrize("flag", REFUSED_ROWS)
def test_what_follows_from_other_flags_must_agree(scripts: Scripts, flag: str) -> None:
    with pytest.raises(UserError, match=f"^--{flag}"):
        scripts.run(f"{STAGE_1} {REFUSED_ROWS[flag]}")


def test_every_published_flag_has_a_row() -> None:
    rows = [*STAGE_1_ROWS, *STAGE_2_ROWS, *SAMPLES_ROWS]
    assert {flag for row in rows for flag in row.flags.split()} | REFUSED_ROWS.keys() == set(PUBLISHED.split())


def test_prdc_compares_the_features_that_are_given(scripts: Scripts) -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(40, 8)), rng.normal(0.5, size=(40, 8))
    np.save(scripts.folder / "real.npy", real.astype(np.float32))
    np.save(scripts.folder / "fake.npy", fake.astype(np.float32))
    command = "experiments/calc_PRDC.py --dataset toy_churches --device cpu --visdom_port 9 --fake_feats fake.npy"
    for name, other, k in (("real", real, 3), ("real", real, 5), ("fake", fake, 3)):
        run = scripts.run(f"{command} --real_feats {name}.npy --nearest_k {k}")
        (entry,) = json.loads((run.folder / "results.json").read_text())
        for key, value in compute_prdc(other.astype(np.float32), fake.astype(np.float32), nearest_k=k).items():
            assert entry["values"][key] == pytest.approx(value, abs=1e-6)
