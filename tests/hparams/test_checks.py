from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hparams.checks import visdom_address
from hparams.errors import UserError
from hparams.folders import require_run, run_folder
from hparams.resolve import resolve
from hparams.settings.experiments import FIDExperiment, LikelihoodExperiment, PRDCExperiment, SamplesExperiment
from hparams.settings.stages import PriorStage, Stage, VQGANStage
from stages import STAGES
from utils.machine.files import make_folder

Reconstruction, Neighbours = (
    STAGES[f"experiments/{name}.py"] for name in ("calc_VQGAN_FID", "calc_nearest_neighbours")
)
Larger, Inpainting = (STAGES[f"experiments/{name}.py"] for name in ("generate_big_samples", "inpaint"))
AE, MODELS = {"ae_load_dir": "ae"}, {"ae_load_dir": "ae", "load_dir": "prior"}
BASE: dict[type[Stage], dict[str, Any]] = {
    VQGANStage: {"dataset": "churches"},
    **{stage: {"dataset": "churches", **AE} for stage in (PriorStage, Reconstruction)},
    **{stage: {"dataset": "churches", **MODELS} for stage in (SamplesExperiment, PRDCExperiment)},
    **{stage: {"dataset": "toy_churches", **MODELS} for stage in (FIDExperiment, Neighbours)},
    **{stage: {"dataset": "ffhq", **MODELS} for stage in (LikelihoodExperiment, Larger, Inpainting)},
}
MISFITS: dict[type[Stage], list[tuple[dict[str, Any], str]]] = {
    VQGANStage: [
        ({"latent_shape": (1, 32, 32)}, "does not fit --img_size 256 with the 5 levels of --ch_mult 1 1 2 2 4: "),
        ({"latent_shape": (1, 32, 32)}, "^--latent_shape 1 32 32 .*: use --latent_shape 1 16 16$"),
        ({"latent_shape": (16, 16)}, "^--latent_shape 16 16 does not fit"),
        ({"img_size": 100}, "^--img_size 100 .* 4 times, as the 5 .* --ch_mult 1 1 2 2 4 need: use a multiple of 16$"),
        ({"nf": 100}, "^--nf 100 is not a multiple of 32, the groups of every normalisation: use --nf 96$"),
        ({"nf": 5}, "use --nf 32$"),
        ({"img_size": 16}, "^--disc_layers 3 leaves nothing of --img_size 16: use --disc_layers 2 or fewer"),
        ({"img_size": 4, "ch_mult": (1,), "disc_layers": 1}, "^--disc_layers 1 .*: use images of at least 6 pixels"),
        ({"img_size": 8, "ch_mult": (1, 1), "disc_layers": 1}, "^--perceptual lpips .* 16 .*: use --perceptual none"),
        ({"perceptual": "none", "perceptual_weights_file": "x"}, "^--perceptual_weights_file is not used with"),
        ({"n_channels": 1}, "^--n_channels 1: images are read as RGB, use --n_channels 3"),
        ({"keep_checkpoints": "0"}, "^--keep_checkpoints 0: use a whole number from 1 on, or all"),
        ({"load_optim": True}, "^--load_optim needs --load_step"),
        ({"load_dir": "other"}, "^--load_dir needs --load_step"),
        ({"device": "gpu"}, "^--device gpu: use auto, cpu, cuda or cuda:N"),
    ],
    PriorStage: [
        ({"latent_shape": (16, 16)}, "^--latent_shape 16 16 does not fit"),
        ({"total_steps": 1}, "^--total_steps 1: --reweighting published .* nothing .* learnt: use --reweighting paper"),
        ({"bert_n_head": 7}, "^--bert_n_head 7 does not divide --bert_n_emb 512: use --bert_n_emb 518"),
        ({"block_size": 100}, "^--block_size 100 does not fit --latent_shape 1 16 16: use --block_size 256"),
        ({"sample_steps": 257}, "^--sample_steps 257 is more than --total_steps 256: use 256 or fewer"),
        ({"ae_load_dir": None}, "^--ae_load_dir is required: name the run folder of the trained VQGAN"),
        ({"log_dir": "ae"}, "^--log_dir ae is also --ae_load_dir: use another --log_dir"),
    ],
    SamplesExperiment: [
        ({"load_dir": None}, "^--load_dir is required: name the run folder of the trained prior"),
        ({"log_dir": "prior/"}, "^--log_dir prior is also --load_dir: use another --log_dir"),
        ({"ae_load_dir": None}, "^--ae_load_dir is required"),
    ],
    FIDExperiment: [
        ({"feature_weights": "x"}, "^--feature_weights is not used with --features r64"),
        ({"n_samples": 100}, "^--kid_subset_size 200 .* the 100 images of --n_samples: use 50 .*--kid_subsets 0"),
        ({"latents_path": "x", "fake_images_path": "y"}, "^--latents_path and --fake_images_path both say what"),
        ({"latents_path": "x.npy", "ae_load_dir": None}, "^--ae_load_dir is required"),
        ({"kid_subsets": 0, "n_samples": 1}, "^--n_samples has 1 image, too few to compare"),
    ],
    PRDCExperiment: [
        ({"n_samples": 3}, "^--nearest_k 3 is not less than the 3 images of --n_samples: use more"),
        ({"fake_feats": "x", "latents_path": "y"}, "^--latents_path and --fake_feats .*: leave one of them out"),
    ],
    Reconstruction: [
        ({"ae_load_dir": None}, "^--ae_load_dir is required"),
        ({"n_samples": 999}, "^--kid_subset_size 1000 is more than the 999 images"),
    ],
    LikelihoodExperiment: [
        ({"protocol": "published", "bits": 8}, "log 32 per dimension, which is 5 bits, not --bits"),
        ({"elbo_steps": 513}, "^--elbo_steps 513 is more than twice the 256 terms of --code_bound"),
        ({"total_steps": 1000, "code_bound": "continuous", "elbo_steps": 513}, "continuous: use 512 or fewer"),
    ],
    Neighbours: [
        ({"lpips_weights": "x"}, "^--lpips_weights is not used with --distance r64"),
        ({"distance": "lpips", "img_size": 16}, "^--lpips_net alex needs .* at least 31 .* is 16: use --distance r64"),
    ],
    Larger: [
        ({"shape": (16, 15)}, "^--shape 16 15: give height and width in codes, at least 16 16"),
        ({"shape": (32,)}, "^--shape 32: give height and width"),
        ({"stride": 17}, "^--stride 17 leaves gaps between windows of 16x16 codes: use 16 or less"),
        ({"sampler": "autoregressive"}, "^--sampler autoregressive: .*use an absorbing prior"),
        ({"sample_type": "mlm"}, "^--sample_type mlm: larger images are drawn code by code: use"),
        ({"sample_steps": 257}, "^--sample_steps 257 is more than --total_steps 256"),
    ],
    Inpainting: [
        ({"sampler": "autoregressive"}, "^--sampler autoregressive: .*an absorbing prior sees: use one"),
        ({"sample_type": "mlm"}, "^--sample_type mlm: it would draw anew what is to be kept: use"),
        ({"region": (8, 8)}, "^--region 8 8: give top, left, height and width in pixels"),
        ({"region": (8, 8, 0, 8)}, "^--region 8 8 0 8: give top, left, height and width"),
        ({"region": (8, 0, 249, 256)}, "^--region 8 0 249 256 leaves the image, whose sides are"),
        ({"region": (0, 0, 8, 8), "mask_path": "m"}, "^--region and --mask_path both say what"),
    ],
}


@pytest.mark.parametrize(
    ("stage_class", "typed", "message"), [(stage, *row) for stage, rows in MISFITS.items() for row in rows]
)
def test_misfits_name_flag_and_fix(
    stage_class: type[Stage], typed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "prior").mkdir()
    with pytest.raises(UserError) as error:
        resolve(stage_class, {**BASE[stage_class], **typed}, logs=tmp_path)
    assert re.search(message, str(error.value))
    assert "\n" not in str(error.value)


def patch_side(side: int, strided_layers: int) -> int:
    """Side of the discriminator's output: 4x4 convolutions, padding 1, strided ones and then two with stride 1."""
    for stride in [2] * strided_layers + [1, 1]:
        side = (side + 2 - 4) // stride + 1 if side >= 2 else 0
    return side


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
def test_discriminator_depth_is_refused_exactly_where_nothing_is_left(layers: int, tmp_path: Path) -> None:
    for side in range(1, 130):
        typed = {"dataset": "churches", "img_size": side, "ch_mult": (1,), "perceptual": "none", "disc_layers": layers}
        if patch_side(side, layers) >= 1:
            assert resolve(VQGANStage, typed, logs=tmp_path).vqgan.disc_layers == layers
            continue
        with pytest.raises(UserError, match="--disc_layers") as error:
            resolve(VQGANStage, typed, logs=tmp_path)
        if "or fewer" in str(error.value):
            deepest = int(str(error.value).split()[-3])
            assert patch_side(side, deepest) >= 1
            assert patch_side(side, deepest + 1) < 1


def test_processes_share_the_updates_of_the_head_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "MASTER_ADDR": "localhost", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "prior").mkdir()
    odd = {**BASE[LikelihoodExperiment], "batch_size": 5}
    with pytest.raises(UserError, match="--batch_size 5: 2 processes cannot share an update of the log-sigma head"):
        resolve(LikelihoodExperiment, odd | {"train_steps": 10}, logs=tmp_path, processes=2)
    resolve(LikelihoodExperiment, odd | {"train_steps": 0}, logs=tmp_path, processes=2)


def test_run_folder() -> None:
    names = {"a": "a", "a/b/": "a/b", "./a//b": "a/b", "...": "...", "x" * 255: "x" * 255}
    assert {name: run_folder("--log_dir", name) for name in names} == names
    with pytest.raises(UserError, match=r"^--log_dir xxx.*: too long"):  # no file system takes it
        run_folder("--log_dir", "x" * 256)


@pytest.mark.parametrize("name", ["", ".", "/", "/tmp/x", "..", "../x", "a/../../x", "a/..", "~/x", "a\nb", "a\0b"])
@pytest.mark.parametrize("flag", ["log_dir", "ae_load_dir", "load_dir"])
def test_run_folders_never_leave_logs(name: str, flag: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^--{flag} .* give a name below logs/"):
        resolve(SamplesExperiment, {**BASE[SamplesExperiment], flag: name}, logs=tmp_path)


def test_a_run_that_is_not_there_is_told_with_what_to_name(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    with pytest.raises(UserError, match=r"there is no .*logs/ here, run this in the folder that has it$"):
        require_run("--load_dir", logs, "demo/ae")
    (logs / "demo" / "ae").mkdir(parents=True)
    require_run("--load_dir", logs, "demo/ae")
    for name in ("typo", "demo/typo", "logs/demo/ae", "logs/typo"):
        fix = "leave out logs/, and name demo/ae$" if name.endswith("/ae") else r"name a folder under .*/logs/$"
        with pytest.raises(UserError, match=rf"^--load_dir: there is no run folder .*{name}; {fix}"):
            require_run("--load_dir", logs, name)


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    """A disk that is not mounted, maybe. Python says that the file exists."""
    logs = tmp_path / "logs"
    logs.symlink_to("/disk/runs")
    with pytest.raises(UserError, match=rf"^{logs} is a link to /disk/runs, which is not there: make that folder"):
        resolve(VQGANStage, BASE[VQGANStage], logs=logs)
    with pytest.raises(UserError, match="is a link to /disk/runs"):
        require_run("--load_dir", logs, "vqgan")
    logs.unlink()
    logs.mkdir()
    (logs / "a").symlink_to("gone")
    with pytest.raises(UserError, match=rf"^{logs}/a is a link to gone"):
        resolve(VQGANStage, BASE[VQGANStage] | {"log_dir": "a/b"}, logs=logs)
    with pytest.raises(FileNotFoundError, match="a link to gone, which is not there"):  # which may pass in a run
        make_folder(logs / "a/b")
    (logs / "gone").mkdir()
    resolve(VQGANStage, BASE[VQGANStage] | {"log_dir": "a/b"}, logs=logs)
    (logs / "file").touch()
    with pytest.raises(UserError, match=rf"^{logs}/file is a file, where a folder belongs"):
        resolve(VQGANStage, BASE[VQGANStage] | {"log_dir": "file/b"}, logs=logs)


def test_addresses_of_a_dashboard() -> None:
    for server in ("http://localhost", "http://10.0.0.7", "https://me:word@visdom.lab", "http://[::1]"):
        assert visdom_address(server, 8097) == f"{server}:8097"
    for path in ("/lab/visdom", "lab/visdom", "lab/visdom/", "/lab/visdom/"):
        assert visdom_address("localhost", 8097, path) == "http://localhost:8097/lab/visdom"
    assert visdom_address("localhost", 8097, "/") == visdom_address("localhost", 8097, "") == "http://localhost:8097"


NO_PATHS = ("/a?b", "a#b", "a b", "http://host/a", "//a//b", "../a", "a\\b", "é")
NO_SERVERS = ("", "htp:/x", "ftp://lab", "http://", "http://my lab", "a:8097", "http://a/b", "a?b", "http://[::1")


@pytest.mark.parametrize(
    ("flag", "value", "why"),
    [("visdom_base_url", path, "the path of an address: give it as /visdom") for path in NO_PATHS]
    + [("visdom_server", server, "an address: give them as") for server in NO_SERVERS],
)
@pytest.mark.parametrize("stage_class", [VQGANStage, FIDExperiment])
def test_what_is_no_address_is_refused_before_any_work(
    stage_class: type[Stage], flag: str, value: str, why: str
) -> None:
    with pytest.raises(UserError, match=f"^--{flag} .*: not {why}"):
        resolve(stage_class, BASE[stage_class] | {flag: value})


def test_a_gpu_that_is_named_is_shared_by_gloo_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL wants one for each process."""
    for name, value in {"RANK": "0", "MASTER_ADDR": "localhost", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    named = {"dataset": "churches", "device": "cuda:1"}
    for backend in ("auto", "nccl"):
        with pytest.raises(UserError, match="--device cuda:1 is one GPU for 2 processes: use --device cuda for one"):
            resolve(VQGANStage, named | {"dist_backend": backend}, logs=tmp_path)
    resolve(VQGANStage, named | {"dist_backend": "gloo"}, logs=tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # each on a machine of its own
    resolve(VQGANStage, named, logs=tmp_path)


def test_what_fits_is_taken(tmp_path: Path) -> None:
    """What is given needs no trained models."""
    for stage_class, typed in (
        *((VQGANStage, {"device": device}) for device in ("auto", "cpu", "cuda", "cuda:1")),
        (FIDExperiment, {"fake_images_path": "folder"}),
        (FIDExperiment, {"latents_path": "codes.npy", "ae_load_dir": "ae"}),
        (PRDCExperiment, {"fake_feats": "features.npy"}),
        (FIDExperiment, {"kid_subsets": 0, "n_samples": 2, "ae_load_dir": "ae", "load_dir": "prior"}),
        (SamplesExperiment, {"n_samples": 1, "ae_load_dir": "ae", "load_dir": "prior"}),
    ):
        resolve(stage_class, {"dataset": "churches", **typed}, logs=tmp_path)
