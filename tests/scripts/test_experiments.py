"""What experiments on the toy runs say, write and show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hparams.settings.data import DataSettings
from shown import shown
from utils.data.datasets import open_images
from utils.data.pictures import save_png
from utils.machine.devices import pick_amp_dtype, precision_name
from utils.machine.files import sha256_of
from utils.metrics.features import build_features
from utils.metrics.fid import FeatureStatistics, frechet_distance

CPU = torch.device("cpu")
N = 12
VAL = "--toy_images 96 {EVERYWHERE} --batch_size 8 --split val"  # 64 images
FID = f"experiments/calc_FID.py --dataset toy_churches {VAL} --kid_subset_size 10 --kid_subsets 5"
ELBO = "experiments/calc_approximate_ELBO.py {RUN} --load_dir absorbing --steps_per_eval 4 --lr 1e-3 --elbo_steps 16"
AUTOREGRESSIVE = "--load_dir autoregressive --sampler autoregressive"


def entries(shell: Any, run: str) -> list[dict[str, dict[str, Any]]]:
    return json.loads((shell.logs / run / "results.json").read_text())


@pytest.fixture(scope="module")
def scored(toy: Any, new_shell: Any) -> Any:
    """A shell beside the toy runs, in which each experiment has run."""
    shell = new_shell()
    shell.logs.symlink_to(toy.logs)
    (shell.folder / "data").symlink_to(toy.folder / "data")
    commands = {
        "fid": f"{FID} --load_dir absorbing --n_samples {N} --save_images --temp 0.9",
        "folder": f"{FID} --fake_images_path logs/scored/fid/images/samples --img_size 16",
        "nll": f"{ELBO} --train_steps 4",
        "prdc": f"experiments/calc_PRDC.py --dataset toy_churches {VAL} {AUTOREGRESSIVE} --n_samples {N} --amp",
        "recs": f"experiments/calc_VQGAN_FID.py {VAL} --ae_load_dir vqgan --n_samples {N} --kid_subset_size 10 "
        "--lpips_net vgg",
        "neighbours": f"experiments/calc_nearest_neighbours.py {{RUN}} {AUTOREGRESSIVE} --n_samples 3 --top_k 4 "
        "--train_images 20",
        "larger": "experiments/generate_big_samples.py {RUN} --load_dir absorbing --shape 8 9 --n_samples 2 "
        "--order random --stride 2 --amp --sinks summary",
    }
    words = [f"{command} --log_dir scored/{name}" for name, command in commands.items()]
    said = [out for chain in shell.abreast(words[:3], words[3:]) for out in chain]
    shell.ok(f"{ELBO} --train_steps 8 --amp --code_bound continuous --log_dir scored/nll")  # once more
    shell.said = dict(zip(commands, said, strict=True))
    return shell


REAL = {"dataset": "toy_churches", "split": "val", "img_size": 16}
R64_FEATURES = {"features": "r64", "feature_weights": "fixed"}
ABSORBING = {
    "dataset": "toy_churches", "prior": "logs/absorbing/saved_models/absorbing_ema_20.th",
    "autoencoder": "logs/vqgan/saved_models/vqgan_ema_20.th", "seed": 0,
}  # fmt: skip
OF_AUTOREGRESSIVE = ABSORBING | {"prior": "logs/autoregressive/saved_models/autoregressive_20.th"}
HALF = precision_name(pick_amp_dtype(CPU, True, "auto"))
CONDITIONS: dict[str, dict[str, Any]] = {
    "fid": {
        "metric": "FID", **R64_FEATURES, **REAL, **ABSORBING, "n_real": 64, "n_fake": N, "temp": 0.9,
        "sample_steps": 16, "dtype": "float32", "kid_subsets": 5, "kid_subset_size": 10,
    },
    "prdc": {
        "metric": "PRDC", **R64_FEATURES, **REAL, **OF_AUTOREGRESSIVE, "n_real": N, "n_fake": N, "temp": 1.0,
        "dtype": HALF, "nearest_k": 3,
    },
    "recs": {
        "metric": "reconstruction FID", **R64_FEATURES, **REAL, "n_real": N, "autoencoder": ABSORBING["autoencoder"],
        "dtype": "float32", "kid_subsets": 100, "kid_subset_size": 10,
    },
    "nll": {
        **ABSORBING, "dtype": "float32", "images": 64, "split": "val", "protocol": "dequantised", "bits": 8,
        "code_term": "bound of T = 16 steps, 16 evaluations per image", "head_steps": 4, "head_lr": 1e-3,
        "batch_size": 8,
    },
    "neighbours": {
        **OF_AUTOREGRESSIVE, "dtype": "float32", "distance": "squared distance of R64 features", "weights": "fixed",
        "samples": 3, "temp": 1.0, "split": "all", "training_images": 20,
    },
    "larger": {
        **ABSORBING, "dtype": HALF, "shape": "8x9", "images": 2, "order": "random", "sample_steps": 16, "stride": 2,
        "temp": 0.8,
    },
}  # fmt: skip
VALUES = {
    "fid": ["fid", "kid", "kid_std"],
    "prdc": ["precision", "recall", "density", "coverage"],
    "recs": ["fid", "kid", "kid_std", "psnr_db", "ssim", "codebook_used", "codebook_perplexity"],
}
PANES = {
    "fid": "samples", "recs": "originals_over_reconstructions", "nll": "pixel_bits_per_dim",
    "neighbours": "neighbours", "larger": "samples",
}  # fmt: skip


@pytest.mark.parametrize("run", CONDITIONS)
def test_results_name_all_that_they_depend_on(scored: Any, run: str) -> None:
    """And the dashboard shows what came of it."""
    entry = entries(scored, f"scored/{run}")[0]
    conditions, values = entry["conditions"], entry["values"]
    if run == "recs" and "lpips" in values:  # where its weights can be had
        conditions = {name: value for name, value in conditions.items() if not name.startswith("lpips")}
        assert entry["conditions"]["lpips_net"] == "vgg"
        assert entry["conditions"]["lpips_weights"]
    assert conditions == CONDITIONS[run]
    if run in VALUES:
        assert [name for name in values if name != "lpips"] == VALUES[run]
    named = [*values.items(), *entry["conditions"].items()]
    told = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in named]
    (line,) = (line for line in scored.said[run].splitlines() if line.startswith((f"{told[0]}, ", f"{told[0]} (")))
    assert all(each in line for each in told)
    folder = scored.logs / "scored" / run
    assert list(shown(folder).panes) == [*([PANES[run]] if run in PANES else []), "results"]
    assert (folder / "summary.png").exists() == (run == "larger")  # the others were told --sinks visdom


def test_saved_images_score_the_same(scored: Any) -> None:
    """Also when all is computed by hand."""
    files = sorted((scored.logs / "scored/fid/images/samples").iterdir())
    assert len(files) == N
    streamed, read = (entries(scored, f"scored/{run}")[0]["values"] for run in ("fid", "folder"))
    assert read == pytest.approx(streamed, rel=1e-4)

    where, extractor = scored.folder / "datasets.yaml", build_features("r64", None, CPU)
    which = DataSettings("toy_churches", None, str(where), 96)
    real = open_images(which, split="val", img_size=16, hold_out=True)
    fake = [np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files]
    sets = (extractor(torch.from_numpy(np.stack(images))).numpy() for images in (fake, [real[i] for i in range(64)]))
    statistics = (FeatureStatistics(x.mean(0, np.float64), np.cov(x, rowvar=False)) for x in sets)
    assert streamed["fid"] == pytest.approx(frechet_distance(*statistics), rel=1e-3)


def test_inception_with_weights_from_a_file(new_shell: Any, inception_file: Path) -> None:
    shell = new_shell()
    real, fake = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 16, 16), np.uint8)
    for folder, images in (("real", real), ("fake", fake)):
        for i, image in enumerate(images):
            save_png(shell.folder / folder / f"{i}.png", image)
    shell.ok(
        "experiments/calc_FID.py --dataset custom --custom_dataset_path real --split all --fake_images_path fake "
        f"--img_size 16 --features inception --feature_weights {inception_file} --kid_subsets 0 --log_dir fid "
        "{EVERYWHERE}"
    )
    (entry,) = entries(shell, "fid")
    wanted = {"features": "inception", "feature_weights": sha256_of(inception_file)[:8], "n_real": 4, "n_fake": 4}
    assert entry["conditions"].items() >= wanted.items()
    assert entry["values"]["fid"] > 0


def test_reconstructions(scored: Any) -> None:
    values = entries(scored, "scored/recs")[0]["values"]
    assert 5 < values["psnr_db"] < 50
    assert -1 <= values["ssim"] < 1
    assert 0 < values["codebook_used"] <= 1
    assert 1 <= values["codebook_perplexity"] <= 32
    assert ("lpips" in values) != ("no LPIPS: the weights of --lpips_net vgg cannot" in scored.said["recs"])


def test_the_first_lines_say_what_is_compared(scored: Any) -> None:
    said = dict(line.split(maxsplit=1) for line in scored.said["fid"].splitlines()[:8])
    assert said["run"] == "FID and KID, in logs/scored/fid"
    assert said["generated"] == f"{N} images, --n_samples"
    assert said["real"] == "64 images, the val split of toy_churches"
    assert said["prior"].endswith("/absorbing_ema_20.th")
    assert "\n  kid_subset_size " in scored.said["fid"]
    progress = [line.split("  ")[:2] for line in scored.said["fid"].splitlines()]
    for work in (["mean and covariance", "64/64 images"], ["KID", "5/5 subsets"]):
        assert work in progress
    assert "\nfeatures    r64 (weights fixed)\n" in scored.said["recs"]


def test_elbo_from_the_shell(scored: Any) -> None:
    t_step, continuous = entries(scored, "scored/nll")
    assert continuous["conditions"]["code_term"] == "continuous-time bound, 16 evaluations per image"
    for values in (t_step["values"], continuous["values"]):
        assert values["bits_per_dim"] == pytest.approx(values["pixel_bits_per_dim"] + values["code_bits_per_dim"])
        assert 0 < values["code_mc_error"] < values["code_bits_per_dim"]
        assert values["code_bits_per_token"] == pytest.approx(values["code_bits_per_dim"] * 3 * 16 * 16 / 64)
        assert values["standard_error"] > 0
    lines = [json.loads(line) for line in (scored.logs / "scored/nll/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "val"] == [4, 8]


def test_neighbours_from_the_shell(scored: Any) -> None:
    run = scored.logs / "scored/neighbours"
    samples = json.loads((run / "neighbours.json").read_text())["samples"]
    assert [len(row) for row in samples] == [4, 4, 4]
    for row in samples:
        assert [entry["distance"] for entry in row] == sorted(entry["distance"] for entry in row)
        assert all("toy_churches_train_lmdb:" in entry["source"] for entry in row)
    assert len(list((run / "images/samples").glob("*.png"))) == 3
    assert Image.open(run / "images/neighbours.png").size == (100 + 12 + 4 * 98 + 2, 3 * 98 + 2)
    (entry,) = entries(scored, "scored/neighbours")
    assert entry["values"]["nearest_least"] == min(row[0]["distance"] for row in samples)
    (codes,) = (run / "samples").glob("*/*.npy")  # from which an interrupted call goes on
    assert np.load(codes).shape == (3, 64)
    said = [line.split("  ")[:2] for line in scored.said["neighbours"].splitlines()]
    for work in ("sampling", "decoding"):
        assert [work, "3/3 images"] in said


def test_larger_images_from_the_shell(scored: Any) -> None:
    files = sorted((scored.logs / "scored/larger/images/samples").glob("*.png"))
    assert [Image.open(file).size for file in files] == [(18, 16)] * 2
    assert not np.array_equal(*(np.asarray(Image.open(file)) for file in files))
    assert entries(scored, "scored/larger")[0]["values"]["windows_per_image"] <= 2 * 16
    assert "\ndecoding  2/2 images" in scored.said["larger"]
