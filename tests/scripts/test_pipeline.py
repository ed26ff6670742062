"""Both stages and samples, from the shell: on toy churches, with published checkpoints, and of too short runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from shown import shown
from utils.pretrained.loading import load_autoencoder, load_prior
from warm import REPO

# Flags, and the prior and the autoencoder that they take: an average where there is one.
DRAWS = {
    "base": ("--load_dir absorbing", "absorbing_ema_20.th", "vqgan_ema_20.th"),
    "same_seed": ("--load_dir absorbing --load_step 20 --ema", "absorbing_ema_20.th", "vqgan_ema_20.th"),
    "other_seed": ("--load_dir absorbing --seed 1", "absorbing_ema_20.th", "vqgan_ema_20.th"),
    "raw_weights": ("--load_dir absorbing --load_step 10 --no_ema", "absorbing_10.th", "vqgan_20.th"),
    "autoregressive": ("--load_dir autoregressive --sampler autoregressive", "autoregressive_20.th", "vqgan_ema_20.th"),
    "gumbel": ("--load_dir gumbel_prior", "gumbel_prior/saved_models/absorbing_ema_20.th", "vqgan_20.th"),
}


def metrics(run: Path, split: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == split]


def settings_of(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "hparams.yaml").read_text())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*")}


@pytest.fixture(scope="module")
def drawn(toy) -> Any:
    """What `get_samples.py` printed and drew by way of drawing, uint8 [5,16,16,3]; `grids`: sizes of the first call."""
    script = "experiments/get_samples.py {RUN}"
    toy.ok(f"{script} --batch_size 32 --n_samples 70 --load_dir absorbing --log_dir drawn_base")
    grids = {path.name: Image.open(path).size for path in (toy.logs / "drawn_base" / "images").rglob("*.png")}
    script += " --n_samples 5 --batch_size 3 --save_individually"
    printed = toy.abreast(*([f"{script} {flags} --log_dir drawn_{name}"] for name, (flags, *_) in DRAWS.items()))
    images = {}
    for name in DRAWS:
        files = sorted((toy.logs / f"drawn_{name}" / "images").rglob("*.png"))
        assert [file.name for file in files] == [f"{i:06d}.png" for i in range(5)]  # nothing of the call before
        images[name] = np.stack([np.asarray(Image.open(file)) for file in files])
    printed = {name: out for name, (out,) in zip(DRAWS, printed, strict=True)}
    return SimpleNamespace(printed=printed, images=images, grids=grids)


@pytest.mark.parametrize(
    ("run", "parts", "pictures", "settings"),
    [
        (
            "vqgan", ("", "ema_", "state_"), {"originals_over_reconstructions": (8, 4)},
            {"codebook_size": 32, "ch_mult": [1, 2], "latent_shape": [1, 8, 8]},
        ),
        (
            "absorbing", ("", "ema_", "state_"), {"samples": (6, 1), "unmasking": None},
            {"block_size": 64, "codebook_size": 32, "ae_load_dir": "vqgan"},
        ),
        ("autoregressive", ("", "state_"), {}, {"sampler": "autoregressive", "ema": False}),
    ],
)  # fmt: skip
def test_run_folders(toy, run: str, parts: tuple, pictures: dict[str, Any], settings: dict[str, Any]) -> None:
    folder = toy.logs / run
    assert names(folder / "saved_models") == {f"{run}_{part}{step}.th" for part in parts for step in (10, 20)}
    assert names(folder / "images") == {f"{name}_{step}.png" for name in pictures for step in (10, 20)}
    for name, grid in pictures.items():
        with Image.open(folder / f"images/{name}_20.png") as picture:
            picture.load()
            assert (picture.format, picture.mode) == ("PNG", "RGB")
            # 16-pixel images are shown six times as large, with two pixels between them.
            assert grid is None or picture.size == tuple(98 * side + 2 for side in grid)
    assert settings_of(folder).items() >= settings.items()
    log = (folder / "log.txt").read_text()
    assert "codebook_size" in log
    assert "step 20/20  saved" in log


def test_pictures_of_single_images(toy) -> None:
    found = names(toy.logs / "nested/gumbel" / "images")  # --save_individually
    assert found == {f"originals_over_reconstructions_{step}_{i}.png" for step in (10, 20) for i in range(32)}


@pytest.mark.parametrize(
    ("run", "learnt", "trained", "validated"),
    [
        ("vqgan", "l1", {"loss", "codebook", "disc_weight", "batch_perplexity"}, {"psnr_db", "codebook_perplexity"}),
        ("absorbing", "elbo_bits_per_token", {"loss", "lr"}, {"loss", "elbo_bits_per_token"}),
        ("autoregressive", "elbo_bits_per_token", {"loss", "lr"}, {"loss", "elbo_bits_per_token"}),
    ],
)
def test_metrics(toy, run: str, learnt: str, trained: set[str], validated: set[str]) -> None:
    for split, steps, keys in (("train", [7, 14], trained), ("val", [10, 20], validated)):
        lines = metrics(toy.logs / run, split)
        assert [line["step"] for line in lines] == steps
        assert all(keys <= line.keys() and None not in line.values() for line in lines)
    first, second = metrics(toy.logs / run, "train")
    assert second[learnt] < first[learnt]


def test_the_discriminator_joins_when_told(toy) -> None:
    first, second = metrics(toy.logs / "vqgan", "train")
    assert first["disc_weight"] == 0
    assert "d_loss" not in first
    assert second["disc_weight"] > 0
    assert second["d_loss"] > 0


def test_without_a_server_one_line_warns_and_the_folder_has_everything(toy) -> None:
    assert (toy.logs / "vqgan" / "log.txt").read_text().count("dashboard:") == 1
    board, train = shown(toy.logs / "vqgan"), metrics(toy.logs / "vqgan", "train")
    curves = board.curves["l1"]
    assert (curves["train"].x, curves["train"].y) == ([7, 14], [line["l1"] for line in train])
    assert curves["val"].x == [10, 20]
    assert {name: curve.y for name, curve in board.curves["milliseconds"].items()} == {
        name: [line[f"{name}_ms"] for line in train] for name in ("data", "step", "other")
    }
    assert [step for step, _ in board.pictures["originals_over_reconstructions"]] == [10, 20]
    assert board.bars["code_counts"].sum() == 8 * 64  # images, and codes of each, in a step
    absorbing = shown(toy.logs / "absorbing")
    assert [step for step, _ in absorbing.pictures["samples"]] == [10, 20]
    assert absorbing.panes["loss_by_time"].first == 1


def test_flips_double_the_latents(toy) -> None:
    for run, wanted in {"vqgan": {(64, 1, 64), (96, 1, 64)}, "nested/gumbel": {(64, 1, 64), (96, 2, 64)}}.items():
        shapes = {np.load(file, mmap_mode="r").shape for file in (toy.logs / run / "latents").glob("*/*.npy")}
        assert shapes - {(8, 1, 64), (12, 1, 64)} == wanted  # reconstructions of few


def test_exactly_as_many_as_asked_of_the_newest_steps(toy, drawn) -> None:
    assert drawn.grids == {"samples_000.png": (8 * 98 + 2, 8 * 98 + 2), "samples_001.png": (6 * 98 + 2, 98 + 2)}
    settings = settings_of(toy.logs / "drawn_base")
    assert (settings["load_step"], settings["ae_load_step"]) == (20, 20)


def test_samples_are_images_that_differ_unless_all_is_the_same(drawn) -> None:
    for name, images in drawn.images.items():
        assert images.shape == (5, 16, 16, 3), name
        assert len({image.tobytes() for image in images}) == 5, name
        assert np.array_equal(drawn.images["base"], images) == (name in ("base", "same_seed")), name


def test_codes_that_are_drawn_are_not_drawn_again(toy, drawn) -> None:
    """So a call that was stopped while it decoded goes on."""
    flags = "--n_samples 5 --batch_size 3 --save_individually --load_dir absorbing --log_dir drawn_base"
    said = toy.ok(f"experiments/get_samples.py {{RUN}} {flags}").splitlines()
    assert any(line.startswith("decoding  5/5 images") for line in said)
    assert not any(line.startswith("sampling  ") for line in said)
    assert any(line.startswith("sampling  5/5 images") for line in drawn.printed["other_seed"].splitlines())
    files = sorted((toy.logs / "drawn_base/images/samples").iterdir())
    assert np.array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), drawn.images["base"])


def test_the_lines_say_what_runs_where_and_with_which_weights_and_settings(toy, drawn) -> None:
    for name, (_, prior, autoencoder) in DRAWS.items():
        assert drawn.printed[name].count("dashboard:") == 1  # there is none, but for the picture in the folder
        said = drawn.printed[name].splitlines()
        assert any(line.startswith("prior ") and f"/{prior}, " in line for line in said), name
        assert any(line.startswith("autoencoder ") and f"/{autoencoder}, " in line for line in said), name
    said = drawn.printed["base"].splitlines()
    assert said[0].startswith("run ")
    assert "of absorbing on toy_churches, in logs/" in said[0]
    assert [line.split()[0] for line in said[1:5]] == ["device", "precision", "prior", "autoencoder"]
    assert said[3].endswith(" M parameters")
    assert any(line.split() == ["sampler", "absorbing"] for line in said)
    assert list(shown(toy.logs / "drawn_gumbel").panes) == ["samples"]


AS_ON_MACOS = """
import os, runpy, signal, sys
del signal.sigwaitinfo, signal.sigtimedwait
for name in ("posix_fallocate", "posix_fadvise", "fdatasync", "sched_getaffinity", "pidfd_open", "eventfd",
             "memfd_create", "copy_file_range", "splice"):
    if hasattr(os, name):
        delattr(os, name)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_stage_2_calls_nothing_that_macos_lacks(tiny) -> None:
    shutil.rmtree(tiny.logs / "ae/latents")
    script, *words = f"{tiny.stage_2} --dataset custom --train_steps 2 --num_workers 1 --log_dir mac".split()
    command = [sys.executable, "-c", AS_ON_MACOS, REPO / script, *words]
    done = subprocess.run(command, cwd=tiny.folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert (tiny.logs / "mac/saved_models/absorbing_2.th").exists()
    assert list((tiny.logs / "ae/latents").glob("*/*.npy"))


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


# Runs that are too short for their settings.
AVERAGE = "note: --train_steps 8 is short for the moving average"
START = "note: 100% of logs/{}_ema_8.th is still the random start of its moving average"
AE, PRIOR = START.format("ae/saved_models/vqgan"), START.format("prior/saved_models/absorbing")
SAMPLES = "experiments/get_samples.py {MODELS} --log_dir drawn --n_samples 2"


def test_training_says_it_at_its_start(tiny_runs: Path) -> None:
    first, second = ((tiny_runs / f"logs/{run}/log.txt").read_text() for run in ("ae", "prior"))
    for log in (first, second):
        assert log.count(AVERAGE) == 1
        assert log.index(AVERAGE) < log.index("saved logs/")
    assert AE in second
    assert "note: --warmup_iters 30000 is beyond --train_steps 8" in second
    assert "--disc_start_step" not in first.replace("disc_start_step ", "")  # which is 2


def test_experiments_say_which_averages_are_mostly_their_start(tiny) -> None:
    said = tiny.run(SAMPLES).err
    assert f"{AE}, as it was trained for too few steps: --no_ema takes the raw weights\n" in said
    assert PRIOR in said
    assert "random start" not in tiny.run(f"{SAMPLES} --no_ema").err


def test_programs_are_warned(tiny_runs: Path) -> None:
    for load, run in ((load_autoencoder, "ae"), (load_prior, "prior")):
        with pytest.warns(UserWarning, match="random start of its moving average.*: ema=False takes the raw weights"):
            load(run, root=tiny_runs / "logs", device="cpu")
