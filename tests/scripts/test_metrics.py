"""FID, PRDC and reconstructions: what their numbers depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import utils.metrics.feature_sources as sources
from experiments import calc_FID, calc_PRDC, calc_VQGAN_FID
from hparams.cli import parse
from hparams.settings.data import DataSettings
from hparams.settings.experiments import FIDExperiment, PRDCExperiment, ReconstructionExperiment
from utils.data.datasets import open_images
from utils.data.pictures import save_png
from utils.metrics.features import FeatureExtractor
from utils.pretrained.perceptual import untrained_lpips
from utils.runs.job import open_job
from warm import Quarters

COMMON = "--dataset toy_churches --batch_size 8 --device cpu --num_workers 0 --sinks visdom --quiet"
VAL = "--toy_images 96 --split val --kid_subset_size 20 --n_samples 30"  # of 64 images
PRDC = PRDCExperiment, calc_PRDC.calculate


@pytest.fixture
def score(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs calc_FID, or another experiment, in this process, with quick features and run folders of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    for name in ("vqgan", "absorbing", "autoregressive"):
        (tmp_path / "logs" / name).symlink_to(toy.logs / name)
    (tmp_path / "data").symlink_to(toy.folder / "data")
    monkeypatch.setattr(sources, "build_features", lambda *_: FeatureExtractor("r64", "test", Quarters()))

    def run(words: str, stage: Any = FIDExperiment, work: Any = calc_FID.calculate) -> dict[str, Any]:
        settings = parse(stage, f"{COMMON} {words}".split(), description="", example="")
        with open_job(settings) as job:
            work(job, settings)
        return json.loads(Path("logs", settings.run.log_dir, "results.json").read_text())[-1]["values"]

    return run


@pytest.mark.parametrize("prior", ["absorbing", "autoregressive"])
def test_a_score_depends_on_its_settings_alone(score: Any, prior: str) -> None:
    words = f"{VAL} --sampler {prior} --load_dir {prior}"
    whole = score(f"{words} --log_dir whole")
    assert score(f"{words} --log_dir again") == whole
    for other in ("--seed 1", "--temp 0.5"):  # in the same folder, whose codes are of other samples
        assert score(f"{words} --log_dir whole {other}") != whole


def test_given_codes_are_decoded(score: Any) -> None:
    """Those that were sampled, from a file."""
    drawn = score(f"{VAL} --load_dir absorbing --log_dir drawn")
    (folder,) = Path("logs/drawn/samples").iterdir()
    codes = np.concatenate([np.load(file) for file in sorted(folder.iterdir())])
    np.save("codes.npy", codes)
    torch.save(torch.from_numpy(codes.astype(np.int64)), "codes.pt")
    for path in (folder, "codes.npy", "codes.pt"):
        assert score(f"{VAL} --ae_load_dir vqgan --log_dir given --latents_path {path}") == drawn
    for other in ("--amp --amp_dtype bfloat16", "--no_ema"):
        assert score(f"{VAL} --ae_load_dir vqgan --log_dir given --latents_path codes.pt {other}") != drawn


@pytest.mark.parametrize(("split", "n"), [("train", 96), ("val", 64)])
def test_a_set_is_at_no_distance_from_itself(score: Any, toy: Any, split: str, n: int) -> None:
    where = toy.folder / "datasets.yaml"
    which = DataSettings("toy_churches", None, str(where), 96)
    real = open_images(which, split=split, img_size=16, hold_out=True)
    for i in range(n):
        save_png(Path("same") / f"{i:03d}.png", real[i])
    assert len(real) == n
    words = f"--toy_images 96 --split {split} --n_samples 30 --fake_images_path same --img_size 16 --log_dir"
    fid = score(f"{words} fid --kid_subset_size {n}")
    rows = next(file for file in map(np.load, Path("logs/features").glob("*/*.npy")) if file.dtype == np.float32)
    assert rows.shape == (n, 12)
    assert abs(fid["fid"]) < 1e-6 * rows.var(0).sum()  # the roots of eigenvalues that are rounded
    kernel = (rows.astype(np.float64) @ rows.T / 12 + 1) ** 3
    own, others = np.diag(kernel).mean(), (kernel.sum() - np.trace(kernel)) / (n * (n - 1))
    assert fid["kid"] == pytest.approx(2 / n * (others - own), rel=1e-4)  # pairs across the sets include equal images
    assert fid["kid_std"] < 1e-4 * abs(fid["kid"])  # every subset is the whole set
    assert score(f"{words} prdc", *PRDC) == {"precision": 1, "recall": 1, "density": 1, "coverage": 1}


def test_what_a_file_held_tells_results_apart(score: Any) -> None:
    """LPIPS weights, and features, that are replaced under the same name: new numbers, and the old ones stay."""
    words = "--toy_images 96 --split val --ae_load_dir vqgan --n_samples 8 --kid_subset_size 5 --lpips_net vgg"
    words += " --lpips_weights weights.pth --log_dir recs"
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(untrained_lpips("vgg").state_dict(), "weights.pth")
        score(words, ReconstructionExperiment, calc_VQGAN_FID.calculate)
    first, second = json.loads(Path("logs/recs/results.json").read_text())
    assert first["values"]["lpips"] != second["values"]["lpips"]
    assert first["values"]["psnr_db"] == second["values"]["psnr_db"]
    picture = np.array(Image.open("logs/recs/images/originals_over_reconstructions.png"))
    grid = torch.from_numpy(picture).permute(2, 0, 1) / 255
    cells = grid[:, 2:, 2:].unfold(1, 96, 98).unfold(2, 96, 98)[..., ::6, ::6]  # [3,2,8,16,16]
    network = untrained_lpips("vgg").eval()
    network.load_state_dict(torch.load("weights.pth"))
    with torch.no_grad():  # in the range that LPIPS expects
        expected = network(*(2 * cells - 1).permute(1, 2, 0, 3, 4)).mean().item()
    assert second["values"]["lpips"] == pytest.approx(expected, rel=1e-4)

    np.save("real.npy", np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32))
    for shift in (0, 5):
        np.save("fake.npy", np.load("real.npy") + np.float32(shift))
        score("--real_feats real.npy --fake_feats fake.npy --log_dir prdc", *PRDC)
    same, other = json.loads(Path("logs/prdc/results.json").read_text())
    assert same["values"]["precision"] == 1 > other["values"]["precision"]
    assert same["conditions"]["fake_feats_n"] == 40
