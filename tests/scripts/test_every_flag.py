"""No flag is parsed and dropped: each changes what it says it changes.

A row is a command that differs from its base command by the words in `changed`, and what must follow. The scripts run
in this process, for a few steps of a tiny model.
"""

from __future__ import annotations

import io
import json
import math
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lpips
import numpy as np
import pytest
import torch
from PIL import Image
from prdc import compute_prdc

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

SMALL = "--toy_images 16 --batch_size 4 --device cpu --num_workers 0"
RUN = f"--dataset toy_churches {SMALL} --visdom_port 9 --sinks visdom"
_LOOP = (
    "--train_steps 1 --no_amp --ema --ema_beta 0.9 --no_ema_warmup --steps_per_update_ema 10 --steps_per_log 1 "
    "--steps_per_eval 0 --steps_per_checkpoint 0 --steps_per_save_output 0 --steps_per_display_output 0"
)
STAGE_1 = (
    f"train_vqgan.py {RUN} {_LOOP} --nf 32 --ch_mult 1 2 --res_blocks 1 --attn_resolutions 8 --emb_dim 16 "
    "--codebook_size 32 --img_size 16 --ndf 8 --disc_layers 1 --disc_start_step 0 --perceptual none "
    "--codebook_init uniform --restart_dead_codes 0 --disc_weight_max 1e9"
)
STAGE_2 = (
    f"train_sampler.py {RUN} {_LOOP} --ae_load_dir ae --bert_n_emb 32 --bert_n_head 2 --bert_n_layers 1 "
    "--total_steps 16 --warmup_iters 0 --n_samples 2"
)
SAMPLES = f"experiments/get_samples.py {RUN} --ae_load_dir ae --load_dir prior --n_samples 3 --save_individually"


@dataclass(frozen=True)
class Run:
    """What a command left behind."""

    folder: Path
    printed: str

    def metrics(self, split: str = "train") -> list[dict[str, Any]]:
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [line for line in lines if line["split"] == split]

    def first(self, name: str) -> float:
        return self.metrics()[0][name]

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / "results.json").read_text())[-1]["values"]

    @property
    def features(self) -> int:
        """Of how many images."""
        return len(np.load(next(self.folder.glob("features/*/*.npy"))))

    @property
    def files(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}

    @property
    def images(self) -> np.ndarray:
        beside = ("unmasking", "inpainted", "neighbours")
        files = [file for file in sorted(self.folder.rglob("*.png")) if not file.name.startswith(beside)]
        return np.stack([np.asarray(Image.open(file)) for file in files])

    def model(self, name: str) -> dict[str, torch.Tensor]:
        return torch.load(self.folder / "saved_models" / f"{name}.th", weights_only=True)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        (file,) = (file for file in self.files if file.endswith("_1.th") and "ema" not in file and "state" not in file)
        return self.model(Path(file).stem)


Check = Callable[[Run, Run], bool]


class Row(NamedTuple):
    changed: str  # words in which the command differs, flags and their values
    check: Check  # of the base command's run and this one's
    base: str = ""  # words that both have


def differs(name: str) -> Check:
    """A term of the first update is another one."""
    return lambda base, run: base.first(name) != run.first(name)


def shape(name: str, *sizes: int) -> Check:
    """Of a weight after the first update, by the end of its name."""
    return lambda base, run: [tuple(w.shape) for key, w in run.weights.items() if key.endswith(name)] == [sizes]


def more_weights(base: Run, run: Run) -> bool:
    return len(run.weights) > len(base.weights)


def scales(name: str, factor: float) -> Check:
    """A term of the first update is another multiple of the same quantity."""
    return lambda base, run: math.isclose(run.first(name), base.first(name) * factor, rel_tol=1e-5)


WEIGHT = {"vqgan": "ae.generator.blocks.0.weight", "absorbing": "_denoise_fn.head.weight"}


def moved_by(kind: str, lr: float) -> Check:
    """The first update of Adam moves each weight by the learning rate; the average stays where the weights began."""

    def check(base: Run, run: Run) -> bool:
        after, before = (run.model(f"{name}_1")[WEIGHT[kind]] for name in (kind, f"{kind}_ema"))
        return math.isclose((after - before).abs().median().item(), lr, rel_tol=1e-3)

    return check


def average_is_the_model(base: Run, run: Run) -> bool:
    models = [[r.model(name)[WEIGHT["vqgan"]] for name in ("vqgan_3", "vqgan_ema_3")] for r in (base, run)]
    return [torch.equal(*pair) for pair in models] == [False, True]


def updates(kind: str, optimiser: str, count: int, step: int = 2) -> Check:
    """How many updates an optimiser has seen at a step."""

    def check(base: Run, run: Run) -> bool:
        optimisers = run.model(f"{kind}_state_{step}")["trainer"]["optimisers"]
        return optimisers[optimiser]["state"][0]["step"] == count

    return check


def starts_from(source: str, kind: str) -> Check:
    """The average, which is not updated so early, is that of the run that was loaded."""

    def check(base: Run, run: Run) -> bool:
        theirs = Run(run.folder.parent / source, "").model(f"{kind}_ema_1")
        return all(torch.equal(value, theirs[name]) for name, value in run.model(f"{kind}_ema_2").items())

    return check


def steps_of(split: str, *steps: int) -> Check:
    return lambda base, run: [line["step"] for line in run.metrics(split)] == list(steps)


def saved(stem: str, *steps: int) -> Check:
    """The steps of which there are files `<stem>_<step>.th`."""
    names = {f"{stem}_{step}.th" for step in steps}
    return lambda base, run: {file.name for file in run.folder.glob(f"saved_models/{stem}_[0-9]*.th")} == names


def other_images(base: Run, run: Run) -> bool:
    return base.images.shape == run.images.shape and not np.array_equal(base.images, run.images)


def other_samples(base: Run, run: Run) -> bool:
    """Also the one that is shown while it is unmasked."""
    shown = {(x.folder / "images/unmasking_1.png").read_bytes() for x in (base, run)}
    return other_images(base, run) and len(shown) == 2


def other_results(*names: str) -> Check:
    """Of all numbers of a result these alone are others."""

    def check(base: Run, run: Run) -> bool:
        assert base.results.keys() == run.results.keys()
        return {name for name, value in base.results.items() if run.results[name] != value} == set(names)

    return check


def says(text: str) -> Check:
    return lambda base, run: text in run.printed and text not in base.printed


def image_counts(base_count: int, count: int) -> Check:
    return lambda base, run: (len(base.images), len(run.images)) == (base_count, count)


CUSTOM = "--dataset custom --custom_dataset_path photographs"
PICTURES = "--steps_per_save_output 1"
GUMBEL = "--quantizer gumbel"
STAGE_1_ROWS = [
    Row(CUSTOM, says("8 training images")),
    Row("--batch_size 8", says("2 steps per epoch")),
    Row("--lr 3e-3", moved_by("vqgan", 3e-3)),
    Row("--base_lr 5e-4", moved_by("vqgan", 2e-3), CUSTOM),
    Row("--train_steps 2", saved("vqgan_state", 2)),
    Row("--amp --amp_dtype bfloat16", lambda b, r: says("bfloat16")(b, r) and differs("l1")(b, r)),
    Row("--no_ema", lambda b, r: [any("_ema_" in file for file in x.files) for x in (b, r)] == [True, False]),
    Row("--ema_beta 0", average_is_the_model, "--train_steps 3 --steps_per_update_ema 1"),
    Row("--steps_per_update_ema 2", average_is_the_model, "--train_steps 3 --ema_beta 0"),
    Row("--load_dir ae --load_step 1", starts_from("ae", "vqgan"), "--train_steps 2"),
    Row("--load_dir ae --load_step 1", updates("vqgan", "ae", 1), "--train_steps 2"),
    Row("--load_optim", updates("vqgan", "ae", 2), "--train_steps 2 --load_dir ae --load_step 1"),
    Row("--load_optim", updates("vqgan", "ae", 2, 3), "--train_steps 3 --load_dir theirs --load_step 1"),
    Row("--log_dir elsewhere/run", lambda b, r: r.folder.parts[-3:] == ("logs", "elsewhere", "run")),
    Row("--visdom_server http://127.0.0.9", says("127.0.0.9:9")),
    Row("--visdom_port 19", says(":19")),
    Row("--steps_per_log 2", steps_of("train", 2), "--train_steps 3"),
    Row("--steps_per_eval 2", steps_of("val", 2), "--train_steps 3"),
    Row("--steps_per_checkpoint 2", saved("vqgan_ema", 2, 3), "--train_steps 3"),
    Row("--steps_per_display_output 1", lambda b, r: any(file.startswith("images/") for file in r.files - b.files)),
    Row("--steps_per_save_output 2", lambda b, r: len(r.images) == 1, "--train_steps 3"),
    Row("--save_individually", image_counts(1, 8), PICTURES),
    Row(GUMBEL, shape("quantize.proj.weight", 32, 16, 1, 1)),
    Row("--codebook_size 48", shape("quantize.embedding.weight", 48, 16)),
    Row("--emb_dim 24", shape("quantize.embedding.weight", 32, 24)),
    Row("--nf 64", shape("ae.encoder.blocks.0.weight", 64, 3, 3, 3)),
    Row("--ch_mult 1 3", shape("ae.generator.blocks.0.weight", 96, 16, 3, 3)),
    *(Row(flag, more_weights) for flag in ("--res_blocks 2", "--disc_layers 2")),
    Row("--attn_resolutions 16", lambda b, r: r.weights.keys() != b.weights.keys()),
    Row(
        "--img_size 32 --latent_shape 1 16 16",
        lambda b, r: [load_autoencoder(x.folder.name, root=x.folder.parent).latent_size[0] for x in (b, r)] == [8, 16],
    ),
    Row("--ndf 16", shape("disc.main.0.weight", 16, 3, 4, 4)),
    Row("--disc_start_step 5", lambda b, r: b.first("disc_weight") > 0 == r.first("disc_weight")),
    Row("--disc_weight_max 1e-3", lambda b, r: math.isclose(r.first("disc_weight"), 1e-3, rel_tol=1e-6)),
    Row("--beta 0.5", scales("codebook", 1.5 / 1.25), "--beta 0.25"),
    Row("--perceptual_weight 3", scales("perceptual", 3), "--perceptual lpips --perceptual_weights_file vgg.pth"),
    Row("--diff_aug", lambda b, r: differs("g_loss")(b, r) and not differs("l1")(b, r)),
    Row("--horizontal_flip", lambda b, r: b.metrics()[-1]["l1"] != r.metrics()[-1]["l1"], "--train_steps 4"),
    Row("--gumbel_kl_weight 1e-3", scales("codebook", 1e-3 / 1e-8), GUMBEL),
    Row("--gumbel_straight_through", differs("l1"), GUMBEL),
]
LOADED_PRIOR = "--load_dir prior --load_step 1"
THEIR_PRIOR = "--train_steps 3 --load_dir their_prior --load_step 1"
DRAWN_OTHERWISE = ("--temp 0.1", "--sample_steps 3", "--sample_type mlm")
STAGE_2_ROWS = [
    Row("--sampler autoregressive", saved("autoregressive", 1)),
    Row("--ae_load_dir ae2", says("logs/ae2/saved_models/vqgan_ema_1.th")),
    Row("--ae_load_step 1", says("logs/ae/saved_models/vqgan_ema_1.th")),
    Row("--lr 3e-3", moved_by("absorbing", 3e-3)),
    Row(
        "--warmup_iters 4", lambda b, r: [x["lr"] for x in r.metrics()] == pytest.approx([0, 2.5e-4]), "--train_steps 2"
    ),
    Row("--bert_n_emb 48", shape("tok_emb.weight", 33, 48)),
    Row("--bert_n_layers 2", shape("blocks.1.ln1.weight", 32)),
    Row("--block_size 64", shape("pos_emb", 1, 64, 32)),
    *(Row(flag, differs("loss")) for flag in ("--attn_pdrop 0.5", "--embd_pdrop 0.5", "--resid_pdrop 0.5")),
    *(Row(flag, differs("loss")) for flag in ("--bert_n_head 4", "--mask_schedule fixed")),
    Row("--loss_type elbo", lambda b, r: differs("loss")(b, r) and not differs("elbo_bits_per_token")(b, r)),
    Row("--total_steps 32", shape("Lt_history", 33)),
    Row("--horizontal_flip", says("32 x 64 codes")),
    Row(LOADED_PRIOR, starts_from("prior", "absorbing"), "--train_steps 2"),
    Row("--load_optim", updates("absorbing", "absorbing", 2), f"--train_steps 2 {LOADED_PRIOR}"),
    Row("--load_optim", updates("absorbing", "absorbing", 2, 3), THEIR_PRIOR),
    Row("--load_optim", steps_of("train", 3), THEIR_PRIOR),
    Row("--n_samples 3", image_counts(2, 3), f"{PICTURES} --save_individually"),
    *(Row(flag, other_images if "mlm" in flag else other_samples, PICTURES) for flag in DRAWN_OTHERWISE),
]
SAMPLES_ROWS = [
    Row("--n_samples 5", image_counts(3, 5)),
    Row("--no_save_individually", lambda b, r: len(r.images) == 1),
    *(Row(flag, other_images) for flag in DRAWN_OTHERWISE),
    Row("--no_ema", lambda b, r: other_images(b, r) and says("absorbing_1.th")(b, r)),
    Row("--load_step 1", says("absorbing_ema_1.th"), "--load_dir longer"),
    Row("--sampler autoregressive --load_dir causal", says("autoregressive_ema_1.th")),
]
_DRAWN = f"{RUN} --ae_load_dir ae --load_dir prior"
INPAINT = f"experiments/inpaint.py {_DRAWN} --region 0 0 8 16 --n_images 2 --n_samples 1"
LARGER = f"experiments/generate_big_samples.py {_DRAWN} --shape 8 10 --order random --sample_steps 4 --n_samples 2"
ELBO = f"experiments/calc_approximate_ELBO.py {_DRAWN} --train_steps 0 --elbo_steps 4"
_KID = "--kid_subsets 2 --kid_subset_size 8"
RECONSTRUCTIONS = f"experiments/calc_VQGAN_FID.py {RUN} --ae_load_dir ae --n_samples 12 {_KID}"
_TOTAL = ("bits_per_dim", "standard_error")
_PIXELS = ("pixel_bits_per_dim", "pixel_standard_error")
_CODES = ("code_bits_per_dim", "code_standard_error", "code_mc_error", "code_bits_per_token")
EXPERIMENT_ROWS = {
    RECONSTRUCTIONS: [
        *(Row(flag, lambda b, r: b.results["psnr_db"] != r.results["psnr_db"]) for flag in ("--split val", "--no_ema")),
        Row("--n_samples 10", lambda b, r: [x.features for x in (b, r)] == [12, 10]),
    ],
    INPAINT: [
        *(Row(flag, other_images) for flag in ("--temp 0.1", "--sample_steps 3", "--split train", "--no_ema")),
        Row("--n_images 3", lambda b, r: len(r.files) == len(b.files) + 1),
    ],
    LARGER: [
        *(Row(flag, other_images) for flag in ("--temp 0.1", "--sample_steps 3", "--order raster", "--no_ema")),
        Row("--stride 2", other_results("windows_per_image")),
    ],
    ELBO: [
        Row("--train_steps 2", other_results(*_TOTAL, *_PIXELS)),
        Row("--lr 1e-2", other_results(*_TOTAL, *_PIXELS), "--train_steps 2"),
        Row("--steps_per_eval 1", steps_of("val", 1, 2), "--train_steps 2"),
        Row("--elbo_steps 8", other_results(*_TOTAL, *_CODES)),
        Row("--code_bound continuous", other_results(*_TOTAL, *_CODES)),
        Row("--bits 5", lambda b, r: b.results["pixel_bits_per_dim"] - r.results["pixel_bits_per_dim"] > 2),
        Row("--protocol published", lambda b, r: b.results["code_mc_error"] and not r.results["code_mc_error"]),
        Row("--no_ema", other_results(*_TOTAL, *_PIXELS, *_CODES)),
    ],
}
REFUSED = ("--latent_shape 1 4 4", "--n_channels 1")


class Scripts:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs: dict[str, Run] = {}  # each command runs once

    def run(self, command: str) -> Run:
        if command not in self._runs:
            named = command if "--log_dir" in command else f"{command} --log_dir run_{len(self._runs)}"
            words, printed = shlex.split(named), io.StringIO()
            with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed):
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
    ae = f"{STAGE_1} --log_dir ae --train_steps 2 --steps_per_checkpoint 1"
    as_published(scripts.run(ae), folder / "logs/theirs/saved_models")
    scripts.run(f"{STAGE_1} --log_dir ae2")
    as_published(scripts.run(f"{STAGE_2} --log_dir prior"), folder / "logs/their_prior/saved_models")
    scripts.run(f"{STAGE_2} --log_dir longer --train_steps 2 --steps_per_checkpoint 1")
    scripts.run(f"{STAGE_2} --log_dir causal --sampler autoregressive")
    return scripts


def as_published(run: Run, published: Path) -> None:
    """The weights of step 1 as the authors leave theirs, after 2 updates: no settings, optimisers in files."""
    published.mkdir(parents=True)
    for file in (run.folder / "saved_models").glob("*_1.th"):
        if "state" in file.name:
            for name, optimiser in run.model(file.stem)["trainer"]["optimisers"].items():
                torch.save(optimiser, published / f"{name}_optim_1.th")
        else:
            shutil.copy(file, published)


ROWS = {STAGE_1: STAGE_1_ROWS, STAGE_2: STAGE_2_ROWS, SAMPLES: SAMPLES_ROWS, **EXPERIMENT_ROWS}


@pytest.mark.parametrize(
    ("command", "row"),
    [(command, row) for command, rows in ROWS.items() for row in rows],
    ids=lambda given: Path(given.split()[0]).stem if isinstance(given, str) else f"{given.base} {given.changed}"[:60],
)
def test_a_flag_does_what_it_says(scripts: Scripts, command: str, row: Row) -> None:
    command = " ".join([command, *row.base.split()])
    assert row.check(scripts.run(command), scripts.run(f"{command} {row.changed}"))


def test_what_follows_from_other_flags_must_agree(scripts: Scripts) -> None:
    for words in REFUSED:
        with pytest.raises(UserError, match=f"^{words.split()[0]}"):
            scripts.run(f"{STAGE_1} {words}")


def test_every_published_flag_has_a_row() -> None:
    changed = [*(row.changed for row in [*STAGE_1_ROWS, *STAGE_2_ROWS, *SAMPLES_ROWS]), *REFUSED]
    flags = {word.removeprefix("--") for words in changed for word in words.split() if word.startswith("--")}
    assert set(PUBLISHED.split()) - flags - {flag.removeprefix("no_") for flag in flags} == set()


def test_prdc_compares_the_features_that_are_given(scripts: Scripts) -> None:
    rng = np.random.default_rng(0)
    given = {}
    for name, mean in (("real", 0), ("fake", 0.5)):
        given[name] = rng.normal(mean, size=(40, 8)).astype(np.float32)
        np.save(scripts.folder / f"{name}.npy", given[name])
    command = "experiments/calc_PRDC.py --dataset toy_churches --device cpu --visdom_port 9 --fake_feats fake.npy"
    for name, k in (("real", 3), ("real", 5), ("fake", 3)):
        results = scripts.run(f"{command} --real_feats {name}.npy --nearest_k {k}").results
        expected = compute_prdc(given[name], given["fake"], nearest_k=k)
        assert {key: results[key] for key in expected} == pytest.approx(expected, abs=1e-6)
