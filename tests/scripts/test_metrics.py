"""FID, PRDC and reconstructions from a shell, and what another seed does to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image

import utils.metrics.feature_sources as sources
from experiments import calc_FID, calc_PRDC, calc_VQGAN_FID
from hparams.cli import parse
from hparams.settings.experiments import FIDExperiment, PRDCExperiment, ReconstructionExperiment
from shown import shown
from utils.data.datasets import open_images
from utils.data.pictures import save_png
from utils.machine.devices import pick_amp_dtype, precision_name
from utils.machine.files import sha256_of
from utils.metrics.features import FeatureExtractor, build_features
from utils.pretrained.perceptual import untrained_lpips
from utils.runs.job import open_job
from warm import Quarters

CPU = torch.device("cpu")
N = 12
VAL = "--toy_images 96 {EVERYWHERE} --batch_size 8 --split val"  # 64 images
FID = f"experiments/calc_FID.py --dataset toy_churches {VAL} --kid_subset_size 10 --kid_subsets 5"
PRDC = f"experiments/calc_PRDC.py --dataset toy_churches {VAL}"


def entries(shell: Any, run: str) -> list[dict[str, dict[str, Any]]]:
    return json.loads((shell.logs / run / "results.json").read_text())


@pytest.fixture(scope="module")
def scored(toy: Any, warm: Any, new_shell: Any) -> Any:
    """A shell beside the toy runs, in which each script has run."""
    shell = new_shell(warm)
    shell.logs.symlink_to(toy.logs)
    (shell.folder / "data").symlink_to(toy.folder / "data")
    (fid, folder), (prdc, recs) = shell.abreast(
        [
            f"{FID} --load_dir absorbing --log_dir scored/fid --n_samples {N} --save_images --temp 0.9",
            f"{FID} --log_dir scored/folder --fake_images_path logs/scored/fid/images/samples --img_size 16",
        ],
        [
            f"{PRDC} --load_dir autoregressive --sampler autoregressive --log_dir scored/prdc --n_samples {N} --amp",
            f"experiments/calc_VQGAN_FID.py {VAL} --ae_load_dir vqgan --log_dir scored/recs --n_samples {N} "
            "--kid_subset_size 10 --lpips_net vgg",
        ],
    )
    shell.said = {"fid": fid, "folder": folder, "prdc": prdc, "recs": recs}
    return shell


REAL = {"dataset": "toy_churches", "split": "val", "img_size": 16}
R64_FEATURES = {"features": "r64", "feature_weights": "fixed"}
CONDITIONS = {
    "fid": {
        "metric": "FID",
        **R64_FEATURES,
        **REAL,
        "n_real": 64,
        "n_fake": N,
        "temp": 0.9,
        "sample_steps": 16,
        "prior": "logs/absorbing/saved_models/absorbing_ema_20.th",
        "autoencoder": "logs/vqgan/saved_models/vqgan_ema_20.th",
        "dtype": "float32",
        "seed": 0,
        "kid_subsets": 5,
        "kid_subset_size": 10,
    },
    "prdc": {
        "metric": "PRDC",
        **R64_FEATURES,
        **REAL,
        "n_real": N,
        "n_fake": N,
        "temp": 1.0,
        "prior": "logs/autoregressive/saved_models/autoregressive_20.th",
        "autoencoder": "logs/vqgan/saved_models/vqgan_ema_20.th",
        "dtype": precision_name(pick_amp_dtype(CPU, True, "auto")),
        "seed": 0,
        "nearest_k": 3,
    },
    "recs": {
        "metric": "reconstruction FID",
        **R64_FEATURES,
        **REAL,
        "n_real": N,
        "autoencoder": "logs/vqgan/saved_models/vqgan_ema_20.th",
        "dtype": "float32",
        "kid_subsets": 100,
        "kid_subset_size": 10,
    },
}
VALUES = {
    "fid": ["fid", "kid", "kid_std"],
    "prdc": ["precision", "recall", "density", "coverage"],
    "recs": ["fid", "kid", "kid_std", "psnr_db", "ssim", "codebook_used", "codebook_perplexity"],
}


@pytest.mark.parametrize("run", CONDITIONS)
def test_results_name_all_that_they_depend_on(scored: Any, run: str) -> None:
    (entry,) = entries(scored, f"scored/{run}")
    conditions, values = entry["conditions"], entry["values"]
    if run == "recs" and "lpips" in values:  # where its weights can be had
        conditions = {name: value for name, value in conditions.items() if not name.startswith("lpips")}
        assert entry["conditions"]["lpips_net"] == "vgg"
        assert entry["conditions"]["lpips_weights"]
    assert conditions == CONDITIONS[run]
    assert [name for name in values if name != "lpips"] == VALUES[run]
    first = f"{VALUES[run][0]} {values[VALUES[run][0]]:.4g}, "
    (line,) = (line for line in scored.said[run].splitlines() if line.startswith(first))
    for name, value in [*values.items(), *entry["conditions"].items()]:
        assert f"{name} {value:.4g}" in line if isinstance(value, float) else f"{name} {value}" in line


def test_saved_images_score_the_same(scored: Any, registered_r64: str) -> None:
    """Also by torch-fidelity itself, with R64 as an extractor of the user's own."""
    images = scored.logs / "scored/fid/images/samples"
    assert len(list(images.iterdir())) == N
    streamed, read = (entries(scored, f"scored/{run}")[0]["values"] for run in ("fid", "folder"))
    assert read == pytest.approx(streamed, rel=1e-4)

    where = scored.folder / "datasets.yaml"
    real = open_images("toy_churches", split="val", img_size=16, toy_images=96, datasets_file=where, hold_out=True)
    for i in range(len(real)):
        save_png(scored.folder / "real" / f"{i:03d}.png", real[i])
    expected = torch_fidelity.calculate_metrics(
        input1=str(images),
        input2=str(scored.folder / "real"),
        cuda=False,
        fid=True,
        feature_extractor=registered_r64,
        save_cpu_ram=True,
        verbose=False,
        cache=False,
    )
    assert streamed["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)


def test_inception_with_weights_from_a_file(new_shell: Any, warm: Any, inception_file: Path) -> None:
    shell = new_shell(warm)
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
    extractor = build_features("inception", str(inception_file), CPU)
    x, y = (extractor(torch.from_numpy(images)).numpy() for images in (fake, real))
    (kept,) = (shell.logs / "fid/features").glob("*/*.npy")
    np.testing.assert_allclose(np.load(kept), x, rtol=1e-3, atol=1e-5 * x.max())
    assert 0 < np.square(x.mean(0) - y.mean(0)).sum() < entry["values"]["fid"]


def test_reconstructions(scored: Any) -> None:
    (entry,) = entries(scored, "scored/recs")
    assert entry["conditions"]["metric"] == "reconstruction FID"
    values = entry["values"]
    assert 5 < values["psnr_db"] < 50
    assert -1 <= values["ssim"] < 1
    assert 0 < values["codebook_used"] <= 1
    assert 1 <= values["codebook_perplexity"] <= 32
    assert ("lpips" in values) != ("no LPIPS: the weights of --lpips_net vgg cannot" in scored.said["recs"])
    assert (scored.logs / "scored/recs/images/originals_over_reconstructions.png").exists()


@pytest.mark.parametrize(
    ("run", "panes"),
    [("fid", ["samples", "results"]), ("prdc", ["results"]), ("recs", ["originals_over_reconstructions", "results"])],
)
def test_the_dashboard_shows_what_came_of_it(scored: Any, run: str, panes: list[str]) -> None:
    assert list(shown(scored.logs / "scored" / run).panes) == panes


def test_the_first_lines_say_what_is_compared(scored: Any) -> None:
    said = dict(line.split(maxsplit=1) for line in scored.said["fid"].splitlines()[:8])
    assert said["run"] == "FID and KID, in logs/scored/fid"
    assert said["generated"] == f"{N} images, --n_samples"
    assert said["real"] == "64 images, the val split of toy_churches"
    assert said["prior"].endswith("/absorbing_ema_20.th")
    assert "\n  kid_subset_size " in scored.said["fid"]
    assert "\nfeatures    r64 (weights fixed)\n" in scored.said["recs"]


@pytest.fixture
def score(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs calc_FID, or calc_PRDC, in this process, with quick features and run folders of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    for name in ("vqgan", "absorbing", "autoregressive"):
        (tmp_path / "logs" / name).symlink_to(toy.logs / name)
    (tmp_path / "data").symlink_to(toy.folder / "data")
    monkeypatch.setattr(sources, "build_features", lambda *_: FeatureExtractor("r64", "test", Quarters()))

    def run(words: str, *, prdc: bool = False) -> dict[str, Any]:
        common = f"--dataset toy_churches {VAL} --n_samples 30 --quiet"
        common = common.replace("{EVERYWHERE}", "--device cpu --num_workers 0 --sinks visdom")
        if prdc:
            settings = parse(PRDCExperiment, f"{common} {words}".split(), description="", example="")
            work = calc_PRDC.calculate
        else:
            words = f"{common} --kid_subset_size 20 {words}"
            settings = parse(FIDExperiment, words.split(), description="", example="")
            work = calc_FID.calculate
        with open_job(settings) as job:
            work(job, settings)
        return json.loads(Path("logs", settings.run.log_dir, "results.json").read_text())[-1]["values"]

    return run


@pytest.mark.parametrize("prior", ["absorbing", "autoregressive"])
def test_a_score_depends_on_its_settings_alone(score: Any, prior: str) -> None:
    words = f"--sampler {prior} --load_dir {prior}"
    whole = score(f"{words} --log_dir whole")
    assert score(f"{words} --log_dir again") == whole
    for other in ("--seed 1", "--temp 0.5"):  # in the same folder, whose codes are of other samples
        assert score(f"{words} --log_dir whole {other}") != whole


def test_given_codes_are_decoded(score: Any) -> None:
    """Those that were sampled, from a file."""
    drawn = score("--load_dir absorbing --log_dir drawn")
    (folder,) = Path("logs/drawn/samples").iterdir()
    codes = np.concatenate([np.load(file) for file in sorted(folder.iterdir())])
    np.save("codes.npy", codes)
    torch.save(torch.from_numpy(codes.astype(np.int64)), "codes.pt")
    for path in (folder, "codes.npy", "codes.pt"):
        assert score(f"--ae_load_dir vqgan --log_dir given --latents_path {path}") == drawn
    for other in ("--amp --amp_dtype bfloat16", "--no_ema"):
        assert score(f"--ae_load_dir vqgan --log_dir given --latents_path codes.pt {other}") != drawn


@pytest.mark.parametrize(("split", "n"), [("train", 96), ("val", 64)])
def test_a_set_is_at_no_distance_from_itself(score: Any, toy: Any, split: str, n: int) -> None:
    where = toy.folder / "datasets.yaml"
    real = open_images("toy_churches", split=split, img_size=16, toy_images=96, datasets_file=where, hold_out=True)
    for i in range(n):
        save_png(Path("same") / f"{i:03d}.png", real[i])
    assert len(real) == n
    words = f"--fake_images_path same --img_size 16 --split {split} --log_dir"
    fid = score(f"{words} fid --kid_subset_size {n}")
    rows = next(file for file in map(np.load, Path("logs/features").glob("*/*.npy")) if file.dtype == np.float32)
    assert rows.shape == (n, 12)
    assert abs(fid["fid"]) < 1e-6 * rows.var(0).sum()  # the roots of eigenvalues that are rounded
    kernel = (rows.astype(np.float64) @ rows.T / 12 + 1) ** 3
    own, others = np.diag(kernel).mean(), (kernel.sum() - np.trace(kernel)) / (n * (n - 1))
    assert fid["kid"] == pytest.approx(2 / n * (others - own), rel=1e-4)  # pairs across the sets include equal images
    assert fid["kid_std"] < 1e-4 * abs(fid["kid"])  # every subset is the whole set
    assert score(f"{words} prdc", prdc=True) == {"precision": 1, "recall": 1, "density": 1, "coverage": 1}


def test_what_a_file_held_tells_results_apart(score: Any) -> None:
    """LPIPS weights, and features, that are replaced under the same name: new numbers, and the old ones stay."""
    words = f"--dataset toy_churches {VAL} --ae_load_dir vqgan --n_samples 8 --kid_subset_size 5 --quiet"
    words = words.replace("{EVERYWHERE}", "--device cpu --num_workers 0 --sinks visdom")
    words += " --lpips_net vgg --lpips_weights weights.pth"
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(untrained_lpips("vgg").state_dict(), "weights.pth")
        settings = parse(ReconstructionExperiment, f"{words} --log_dir recs".split(), description="", example="")
        with open_job(settings) as job:
            calc_VQGAN_FID.calculate(job, settings)
    first, second = json.loads(Path("logs/recs/results.json").read_text())
    assert first["values"]["lpips"] != second["values"]["lpips"]
    assert first["values"]["psnr_db"] == second["values"]["psnr_db"]
    with Image.open("logs/recs/images/originals_over_reconstructions.png") as picture:
        grid = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    cells = grid[:, 2:, 2:].unfold(1, 96, 98).unfold(2, 96, 98)[..., ::6, ::6]  # [3,2,8,16,16]
    network = untrained_lpips("vgg").eval()
    network.load_state_dict(torch.load("weights.pth"))
    with torch.no_grad():  # in the range that LPIPS expects
        expected = network(*(2 * cells - 1).permute(1, 2, 0, 3, 4)).mean().item()
    assert second["values"]["lpips"] == pytest.approx(expected, rel=1e-4)

    np.save("real.npy", np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32))
    words = "--dataset toy_churches --device cpu --sinks visdom --quiet --log_dir prdc"
    words += " --real_feats real.npy --fake_feats fake.npy"
    for shift in (0, 5):
        np.save("fake.npy", np.load("real.npy") + np.float32(shift))
        settings = parse(PRDCExperiment, words.split(), description="", example="")
        with open_job(settings) as job:
            calc_PRDC.calculate(job, settings)
    same, other = json.loads(Path("logs/prdc/results.json").read_text())
    assert same["values"]["precision"] == 1 > other["values"]["precision"]
    assert same["conditions"]["fake_feats_n"] == 40
