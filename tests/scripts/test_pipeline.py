"""Both stages and samples on toy churches, from the shell."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from shown import shown

REPO = Path(__file__).parents[2]
DRAWS = {
    "base": "--load_dir absorbing",
    "same_seed": "--load_dir absorbing --load_step 20 --ema",
    "other_seed": "--load_dir absorbing --seed 1",
    "raw_weights": "--load_dir absorbing --load_step 10 --no_ema",
    "autoregressive": "--load_dir autoregressive --sampler autoregressive",
    "gumbel": "--load_dir gumbel_prior",
}


@dataclass(frozen=True)
class Drawn:
    """What `get_samples.py` printed and drew by way of drawing, uint8 [5,16,16,3]; `grids`: sizes of the first call."""

    printed: dict[str, str]
    images: dict[str, np.ndarray]
    grids: dict[str, tuple[int, int]]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def setting(run: Path, name: str) -> Any:
    return yaml.safe_load((run / "hparams.yaml").read_text())[name]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def drawn(toy) -> Drawn:
    script = "experiments/get_samples.py {RUN}"
    toy.ok(f"{script} --batch_size 32 --n_samples 70 --load_dir absorbing --log_dir drawn_base")
    grids = {path.name: Image.open(path).size for path in (toy.logs / "drawn_base" / "images").rglob("*.png")}
    flags = "--n_samples 5 --batch_size 3 --save_individually"
    printed = toy.abreast(*([f"{script} {flags} {draw} --log_dir drawn_{name}"] for name, draw in DRAWS.items()))
    images = {}
    for name in DRAWS:
        files = sorted((toy.logs / f"drawn_{name}" / "images").rglob("*.png"))
        assert [file.name for file in files] == [f"{i:06d}.png" for i in range(5)]  # nothing of the call before
        images[name] = np.stack([np.asarray(Image.open(file)) for file in files])
    return Drawn(dict(zip(DRAWS, (out for (out,) in printed), strict=True)), images, grids)


@pytest.mark.parametrize(
    ("run", "parts", "pictures", "settings"),
    [
        (
            "vqgan",
            ("", "ema_", "state_"),
            ("originals_over_reconstructions",),
            {"codebook_size": 32, "ch_mult": [1, 2], "latent_shape": [1, 8, 8]},
        ),
        (
            "absorbing",
            ("", "ema_", "state_"),
            ("samples", "unmasking"),
            {"block_size": 64, "codebook_size": 32, "ae_load_dir": "vqgan"},
        ),
        ("autoregressive", ("", "state_"), (), {"sampler": "autoregressive", "ema": False}),
    ],
)
def test_run_folders(
    toy, run: str, parts: tuple[str, ...], pictures: tuple[str, ...], settings: dict[str, Any]
) -> None:
    folder = toy.logs / run
    assert names(folder / "saved_models") == {f"{run}_{part}{step}.th" for part in parts for step in (10, 20)}
    assert {file.name for file in folder.glob("images/*")} == {f"{p}_{step}.png" for p in pictures for step in (10, 20)}
    assert yaml.safe_load((folder / "hparams.yaml").read_text()).items() >= settings.items()
    log = (folder / "log.txt").read_text()
    assert "codebook_size" in log
    assert "step 20/20  saved" in log


@pytest.mark.parametrize(
    ("run", "trained", "validated"),
    [
        ("vqgan", {"loss", "l1", "codebook", "disc_weight", "batch_perplexity"}, {"psnr_db", "codebook_perplexity"}),
        ("absorbing", {"loss", "elbo_bits_per_token", "lr"}, {"loss", "elbo_bits_per_token"}),
        ("autoregressive", {"loss", "elbo_bits_per_token", "lr"}, {"loss", "elbo_bits_per_token"}),
    ],
)
def test_metrics(toy, run: str, trained: set[str], validated: set[str]) -> None:
    lines = metrics(toy.logs / run)
    for split, steps, keys in (("train", [7, 14], trained), ("val", [10, 20], validated)):
        of_split = [line for line in lines if line["split"] == split]
        assert [line["step"] for line in of_split] == steps
        assert all(keys <= line.keys() and None not in line.values() for line in of_split)
    learnt = "l1" if run == "vqgan" else "elbo_bits_per_token"
    first, second = (line[learnt] for line in lines if line["split"] == "train")
    assert second < first


def test_the_discriminator_joins_when_told(toy) -> None:
    first, second = (line for line in metrics(toy.logs / "vqgan") if line["split"] == "train")
    assert first["disc_weight"] == 0
    assert "d_loss" not in first
    assert second["disc_weight"] > 0
    assert second["d_loss"] > 0


def test_pictures_are_pngs_of_the_right_size(toy) -> None:
    # 16-pixel images are shown six times as large, with two pixels between them.
    for run, name, columns, rows in (
        ("vqgan", "originals_over_reconstructions_20", 8, 4),
        ("absorbing", "samples_20", 6, 1),
    ):
        with Image.open(toy.logs / run / "images" / f"{name}.png") as picture:
            picture.load()
            assert (picture.format, picture.mode) == ("PNG", "RGB")
            assert picture.size == (columns * 98 + 2, rows * 98 + 2)
    found = names(toy.logs / "nested/gumbel" / "images")  # --save_individually
    assert found == {f"originals_over_reconstructions_{step}_{i}.png" for step in (10, 20) for i in range(32)}


def test_without_a_server_one_line_warns_and_the_folder_has_everything(toy) -> None:
    log = (toy.logs / "vqgan" / "log.txt").read_text()
    assert log.count("dashboard:") == 1
    board = shown(toy.logs / "vqgan")
    train = [line for line in metrics(toy.logs / "vqgan") if line["split"] == "train"]
    curves = board.curves["l1"]
    assert (curves["train"].x, curves["train"].y) == ([7, 14], [line["l1"] for line in train])
    assert curves["val"].x == [10, 20]
    assert {name: curve.y for name, curve in board.curves["milliseconds"].items()} == {
        name: [line[f"{name}_ms"] for line in train] for name in ("data", "step", "other")
    }
    assert [step for step, _ in board.pictures["originals_over_reconstructions"]] == [10, 20]
    assert [step for step, _ in shown(toy.logs / "absorbing").pictures["samples"]] == [10, 20]


def test_bars_are_those_of_the_last_log(toy) -> None:
    """Codes, most used first; times from 1."""
    codes = shown(toy.logs / "vqgan").bars["code_counts"]
    assert len(codes) == setting(toy.logs / "vqgan", "codebook_size")
    assert sorted(codes, reverse=True) == list(codes)
    assert codes.sum() == 8 * 64  # images, and codes of each, in a step
    board = shown(toy.logs / "absorbing")
    assert len(board.bars["loss_by_time"]) == setting(toy.logs / "absorbing", "total_steps")
    assert board.panes["loss_by_time"].first == 1


def test_flips_double_the_latents(toy) -> None:
    for run, wanted in {"vqgan": {(64, 1, 64), (96, 1, 64)}, "nested/gumbel": {(64, 1, 64), (96, 2, 64)}}.items():
        shapes = {np.load(file, mmap_mode="r").shape for file in (toy.logs / run / "latents").glob("*/*.npy")}
        assert shapes - {(8, 1, 64), (12, 1, 64)} == wanted  # reconstructions of few


def test_an_experiments_settings_say_which_steps_were_the_newest(toy, drawn) -> None:
    run = toy.logs / "drawn_base"
    assert (setting(run, "load_step"), setting(run, "ae_load_step")) == (20, 20)


def test_exactly_as_many_as_asked(drawn) -> None:
    assert drawn.grids == {"samples_000.png": (8 * 98 + 2, 8 * 98 + 2), "samples_001.png": (6 * 98 + 2, 98 + 2)}


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


@pytest.mark.parametrize(
    ("name", "prior", "autoencoder"),
    [
        ("base", "absorbing_ema_20.th", "vqgan_ema_20.th"),
        ("same_seed", "absorbing_ema_20.th", "vqgan_ema_20.th"),
        ("raw_weights", "absorbing_10.th", "vqgan_20.th"),
        ("autoregressive", "autoregressive_20.th", "vqgan_ema_20.th"),
        ("gumbel", "absorbing_ema_20.th", "vqgan_20.th"),
    ],
)
def test_the_average_is_used_where_there_is_one_and_it_is_said(drawn, name: str, prior: str, autoencoder: str) -> None:
    said = drawn.printed[name].splitlines()
    assert any(line.startswith("prior ") and f"/{prior}, " in line for line in said)
    assert any(line.startswith("autoencoder ") and f"/{autoencoder}, " in line for line in said)


def test_the_first_lines_say_what_runs_where_and_with_which_settings(drawn) -> None:
    said = drawn.printed["base"].splitlines()
    assert said[0].startswith("run ")
    assert "of absorbing on toy_churches, in logs/" in said[0]
    assert [line.split()[0] for line in said[1:5]] == ["device", "precision", "prior", "autoencoder"]
    assert said[3].endswith(" M parameters")
    assert any(line.split() == ["sampler", "absorbing"] for line in said)


def test_drawing_without_a_dashboard_warns_once_and_keeps_the_picture(toy, drawn) -> None:
    assert all(out.count("dashboard:") == 1 for out in drawn.printed.values())
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


def test_stage_2_calls_nothing_that_macos_lacks(tiny: Any) -> None:
    shutil.rmtree(tiny.folder / "logs/ae/latents")
    script, *words = f"{tiny.stage_2} --dataset custom --train_steps 2 --num_workers 1 --log_dir mac".split()
    command = [sys.executable, "-c", AS_ON_MACOS, REPO / script, *words]
    done = subprocess.run(command, cwd=tiny.folder, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert (tiny.folder / "logs/mac/saved_models/absorbing_2.th").exists()
    assert list((tiny.folder / "logs/ae/latents").glob("*/*.npy"))
