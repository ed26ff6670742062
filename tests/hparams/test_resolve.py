from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hparams.errors import UserError
from hparams.presets import preset
from hparams.resolve import StageT, resolve
from hparams.saved import to_flat
from hparams.settings.experiments import FIDExperiment, PriorExperiment, ReconstructionExperiment, SamplesExperiment
from hparams.settings.stages import PriorStage, Stage, VQGANStage
from stages import STAGES
from utils.runs.run_folder import save_settings


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def run(logs: Path, folder: str, **values: Any) -> None:
    """A run folder whose saved settings are ``values``."""
    (logs / folder).mkdir(parents=True)
    (logs / folder / "hparams.yaml").write_text(yaml.safe_dump(values))


def trained(logs: Path, stage_class: type[StageT], **typed: Any) -> StageT:
    """A run folder saved by a whole stage."""
    stage = resolve(stage_class, typed, logs=logs)
    save_settings(stage, logs / stage.run.log_dir / "hparams.yaml")
    return stage


# Every pair of layers. batch_size: default 20, preset 3 (VQGAN), saved 5, typed 7.


@pytest.mark.parametrize(
    ("saved", "typed", "expected"),
    [({}, {}, 3), ({"batch_size": 5}, {}, 5), ({}, {"batch_size": 7}, 7), ({"batch_size": 5}, {"global_batch": 7}, 7)],
)
def test_default_below_preset_below_saved_below_typed(
    saved: dict[str, Any], typed: dict[str, Any], expected: int, logs: Path
) -> None:
    run(logs, "mine", dataset="churches", **saved)
    stage = resolve(VQGANStage, {"log_dir": "mine", "resume": True, **typed}, logs=logs)
    assert stage.run.batch_size == expected


@pytest.mark.parametrize("stage_class", [VQGANStage, PriorStage])
@pytest.mark.parametrize(("saved", "expected"), [({}, False), ({"ema_warmup": True}, True), (None, True)])
def test_a_run_from_before_a_flag_of_its_preset_goes_on_without_it(
    stage_class: type[Stage], saved: dict[str, bool] | None, expected: bool, logs: Path
) -> None:
    """None: a new run."""
    if saved is not None:
        run(logs, "mine", dataset="toy_churches", ae_load_dir="ae", ema=True, **saved)
    typed = {"log_dir": "mine", "dataset": "toy_churches", "resume": saved is not None}
    if stage_class is PriorStage:
        typed["ae_load_dir"] = "ae"
    elif saved is not None:
        (logs / "mine/hparams.yaml").write_text((logs / "mine/hparams.yaml").read_text().replace("ae_load_dir: ae", ""))
    assert resolve(stage_class, typed, logs=logs).training.ema_warmup == expected


def test_typed_false_and_typed_default_override_too(logs: Path) -> None:
    run(logs, "mine", dataset="toy_churches", ema=True, diff_aug=True, beta=0.5)
    typed = {"log_dir": "mine", "resume": True, "ema": False, "diff_aug": False, "beta": 0.25}
    stage = resolve(VQGANStage, typed, logs=logs)
    assert (stage.training.ema, stage.vqgan.diff_aug, stage.autoencoder.beta) == (False, False, 0.25)


def test_resume_finds_the_default_folder(logs: Path) -> None:
    trained(logs, VQGANStage, dataset="churches", nf=64, log_dir="old")
    (logs / "old").rename(logs / "vqgan_churches")
    assert resolve(VQGANStage, {"resume": True, "dataset": "churches"}, logs=logs).autoencoder.nf == 64
    trained(logs, PriorStage, dataset="churches", ae_load_dir="ae", sampler="autoregressive", bert_n_emb=64)
    typed = {"resume": True, "dataset": "churches", "sampler": "autoregressive"}
    assert resolve(PriorStage, typed, logs=logs).prior.bert_n_emb == 64
    with pytest.raises(UserError, match="--log_dir is required to find the run"):
        resolve(VQGANStage, {"resume": True}, logs=logs)


def test_resume_keeps_the_learning_rate_of_the_run(logs: Path) -> None:
    before = trained(logs, VQGANStage, dataset="churches", batch_size=4)
    after = resolve(VQGANStage, {"resume": True, "dataset": "churches", "global_batch": 8}, logs=logs)
    assert after.run.batch_size == 8
    assert after.training.lr == before.training.lr == pytest.approx(4.5e-6 * 4)


@pytest.mark.parametrize(
    ("typed", "processes", "expected"),
    [
        ({"batch_size": 4}, 2, (8, 4, 1)),
        ({"batch_size": 2, "accumulate_steps": 3}, 2, (12, 2, 3)),
        ({"global_batch": 12}, 2, (12, 6, 1)),
        ({"global_batch": 12, "accumulate_steps": 3}, 2, (12, 2, 3)),
        ({"global_batch": 12, "batch_size": 2}, 2, (12, 2, 3)),
    ],
)
def test_an_update_is_divided_over_processes_and_passes(
    typed: dict[str, int], processes: int, expected: tuple[int, int, int], logs: Path
) -> None:
    stage = resolve(VQGANStage, {"dataset": "churches", **typed}, logs=logs, processes=processes)
    assert (stage.training.global_batch, stage.run.batch_size, stage.training.accumulate_steps) == expected


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ({"global_batch": 9}, "--global_batch 9: 2 processes cannot share an update of 9 images evenly"),
        ({"global_batch": 12, "batch_size": 4}, "--batch_size 4: of updates of 12 images .* each process has 6"),
        ({"global_batch": 4, "accumulate_steps": 3}, "--accumulate_steps 3: .* each process has 2, which are not "),
        ({"global_batch": 12, "batch_size": 3, "accumulate_steps": 4}, "4 passes of --batch_size 3: change one"),
    ],
)
def test_an_update_that_cannot_be_divided_is_refused(typed: dict[str, int], message: str, logs: Path) -> None:
    with pytest.raises(UserError, match=message):
        resolve(VQGANStage, {"dataset": "churches", **typed}, logs=logs, processes=2)


def test_an_update_stays_as_large_as_in_a_run_of_before_processes_could_share_it(logs: Path) -> None:
    run(logs, "mine", dataset="churches", batch_size=6)
    stage = resolve(VQGANStage, {"resume": True, "log_dir": "mine"}, logs=logs, processes=2)
    assert (stage.training.global_batch, stage.run.batch_size) == (6, 3)


def test_resume_takes_no_other_start(logs: Path) -> None:
    for typed in ({"load_step": 5}, {"load_dir": "other"}, {"load_optim": True}):
        with pytest.raises(UserError, match="--resume continues"):
            resolve(VQGANStage, {"dataset": "churches", "resume": True, **typed}, logs=logs)


def test_load_step_alone_loads_from_the_run_itself(logs: Path) -> None:
    trained(logs, VQGANStage, dataset="churches", nf=64, lr=1.0, log_dir="mine")
    stage = resolve(VQGANStage, {"dataset": "churches", "log_dir": "mine", "load_step": 5}, logs=logs)
    assert (stage.training.load_dir, stage.autoencoder.nf) == ("mine", 64)
    assert stage.training.lr != 1.0


def test_vqgan_from_another_run_takes_architecture_and_data_only(logs: Path) -> None:
    trained(
        logs, VQGANStage, dataset="custom", custom_dataset_path="photos", nf=64, img_size=128, log_dir="old", seed=3,
        lr=1.0, disc_weight_max=0.5, batch_size=9, train_steps=7, ndf=32, disc_layers=2,
    )  # fmt: skip
    stage = resolve(VQGANStage, {"log_dir": "new", "load_dir": "old", "load_step": 5}, logs=logs)
    assert (stage.vqgan.ndf, stage.vqgan.disc_layers) == (32, 2)
    assert (stage.run.dataset, stage.run.custom_dataset_path) == ("custom", "photos")
    assert (stage.autoencoder.nf, stage.autoencoder.img_size, stage.autoencoder.latent_shape) == (64, 128, (1, 8, 8))
    assert (stage.run.log_dir, stage.run.seed, stage.run.batch_size) == ("new", 0, 3)
    assert (stage.vqgan.disc_weight_max, stage.training.train_steps) == (1.0, 2_200_000)
    typed = {"log_dir": "new", "load_dir": "old", "load_step": 5, "dataset": "churches", "nf": 32}
    stage = resolve(VQGANStage, typed, logs=logs)
    assert (stage.run.dataset, stage.autoencoder.nf, stage.autoencoder.img_size) == ("churches", 32, 128)


def test_the_autoencoders_run_feeds_the_autoencoder_only(logs: Path) -> None:
    trained(logs, VQGANStage, dataset="custom", log_dir="ae", codebook_size=512, img_size=128, batch_size=9, seed=4)
    stage = resolve(PriorStage, {"dataset": "ffhq", "ae_load_dir": "ae"}, logs=logs)
    assert (stage.autoencoder.codebook_size, stage.autoencoder.img_size, stage.prior.block_size) == (512, 128, 64)
    assert (stage.run.dataset, stage.run.batch_size, stage.run.seed) == ("ffhq", 20, 0)
    assert stage.training.lr == 1e-4
    with pytest.raises(UserError, match="--dataset is required"):
        resolve(PriorStage, {"ae_load_dir": "ae"}, logs=logs)


def test_experiment_rebuilds_what_was_trained(logs: Path) -> None:
    trained(logs, VQGANStage, dataset="toy_churches", log_dir="ae", codebook_size=64, emb_dim=16)
    prior = trained(
        logs, PriorStage, dataset="toy_churches", log_dir="prior", ae_load_dir="ae", ae_load_step=5, bert_n_emb=48,
        toy_images=99, batch_size=9, amp=False, seed=4, device="cpu", ema=True, load_step=0, temp=0.5, n_samples=3,
        save_individually=True,
    )  # fmt: skip
    stage = resolve(SamplesExperiment, {"load_dir": "prior"}, logs=logs)
    assert (stage.autoencoder, stage.prior, stage.source) == (prior.autoencoder, prior.prior, prior.source)
    assert (stage.run.dataset, stage.run.toy_images) == ("toy_churches", 99)
    untouched = (stage.run.seed, stage.run.device, stage.sampling.temp, stage.sampling.n_samples)
    assert untouched == (0, "auto", 1.0, 64)
    assert stage.run.batch_size == preset(SamplesExperiment.preset_tables, "toy_churches")["batch_size"]
    assert stage.checkpoint.ema is None
    assert stage.checkpoint.load_step is None
    assert not stage.output.save_individually
    assert stage.run.log_dir == "samples_toy_churches"


def test_the_autoencoders_run_wins_over_the_priors(logs: Path) -> None:
    run(logs, "prior", dataset="churches", ae_load_dir="first", ae_load_step=5, nf=64, emb_dim=32)
    run(logs, "first", nf=96)
    run(logs, "second", codebook_size=512)
    stage = resolve(SamplesExperiment, {"load_dir": "prior"}, logs=logs)
    assert (stage.autoencoder.nf, stage.autoencoder.emb_dim, stage.source.ae_load_step) == (96, 32, 5)
    stage = resolve(SamplesExperiment, {"load_dir": "prior", "ae_load_dir": "second"}, logs=logs)
    assert (stage.autoencoder.nf, stage.autoencoder.codebook_size) == (64, 512)
    assert stage.source.ae_load_step is None, "a step of the first run says nothing about the second"
    typed = {"load_dir": "prior", "ae_load_dir": "first/", "nf": 32}
    stage = resolve(SamplesExperiment, typed, logs=logs)
    assert (stage.autoencoder.nf, stage.source.ae_load_step) == (32, 5)


def test_the_authors_folders_without_settings_get_the_preset(logs: Path) -> None:
    (logs / "vqgan_churches" / "saved_models").mkdir(parents=True)
    typed = {"dataset": "churches", "ae_load_dir": "vqgan_churches", "load_dir": "absorbing_churches"}
    stage = resolve(SamplesExperiment, typed, logs=logs)
    assert (stage.autoencoder.latent_shape, stage.prior.bert_n_layers) == ((1, 16, 16), 24)


def test_saved_settings_that_do_not_fit_are_refused(logs: Path) -> None:
    run(logs, "prior", dataset="churches", ae_load_dir="ae", block_size=64)
    misfit = "--block_size 64 does not fit --latent_shape 1 16 16: name the autoencoder that the prior learnt from"
    with pytest.raises(UserError, match=misfit):
        resolve(SamplesExperiment, {"load_dir": "prior"}, logs=logs)
    run(logs, "escape", dataset="churches", ae_load_dir="../../etc")
    with pytest.raises(UserError, match=r"--ae_load_dir '\.\./\.\./etc': give a name below logs/"):
        resolve(SamplesExperiment, {"load_dir": "escape"}, logs=logs)


ELSEWHERE = ["/data/photos", "../photos", "a/../../photos", "~/photos", "$HOME/photos", "logs/theirs/photos"]


@pytest.mark.parametrize("path", ELSEWHERE)
@pytest.mark.parametrize(("name", "dataset"), [("custom_dataset_path", "custom"), ("datasets_file", "ffhq")])
def test_data_elsewhere_are_read_only_where_a_typed_flag_says_so(
    name: str, dataset: str, path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    logs = Path("logs")
    run(logs, "prior", dataset=dataset, ae_load_dir="ae", **{name: path})
    run(logs, "ae", dataset=dataset, **{name: path})
    prior, ae = {"load_dir": "prior"}, {"ae_load_dir": "ae"}
    for stage_class, typed in (
        (FIDExperiment, prior),
        (ReconstructionExperiment, ae),
        (VQGANStage, {"load_dir": "ae"}),
    ):
        if stage_class is VQGANStage:
            typed = {**typed, "load_step": 5, "log_dir": "new"}
        with pytest.raises(UserError, match=rf"hparams.yaml: {name} .* say so by --{name}$"):
            resolve(stage_class, typed, logs=logs)
        stage = resolve(stage_class, {**typed, name: path}, logs=logs)
        assert getattr(stage.run, name) == path
        resolve(stage_class, {**typed, "dataset": "churches", "datasets_file": "datasets.yaml"}, logs=logs)
    resolve(SamplesExperiment, prior, logs=logs)  # opens no data set
    own = resolve(VQGANStage, {"resume": True, "log_dir": "ae"}, logs=logs)
    assert getattr(own.run, name) == path


@pytest.mark.parametrize("path", ["photos", "data/photos", "./photos", "logs_of_photos"])
def test_data_in_this_folder_are_found_again(path: str, logs: Path) -> None:
    run(logs, "prior", dataset="custom", custom_dataset_path=path, ae_load_dir="ae")
    assert resolve(FIDExperiment, {"load_dir": "prior"}, logs=logs).run.custom_dataset_path == path
    run(logs, "other", dataset="ffhq", datasets_file=path, ae_load_dir="ae")
    assert resolve(FIDExperiment, {"load_dir": "other"}, logs=logs).run.datasets_file == path


def test_null_in_a_saved_file_says_nothing(logs: Path) -> None:
    run(logs, "mine", dataset="churches", lr=None, ae_load_dir="ae", block_size=None, ae_load_step=None)
    stage = resolve(PriorStage, {"log_dir": "mine", "resume": True}, logs=logs)
    assert (stage.training.lr, stage.prior.block_size, stage.source.ae_load_step) == (2e-4, 256, None)


@pytest.mark.parametrize(
    ("typed", "shape", "codes"),
    [
        ({"img_size": 64}, (1, 4, 4), 16),
        ({"img_size": 64, "ch_mult": (1, 2)}, (1, 32, 32), 1024),
        ({"ch_mult": (1,), "img_size": 33}, (1, 33, 33), 1089),
        ({"latent_shape": (1, 16, 16)}, (1, 16, 16), 256),
    ],
)
def test_shapes_are_derived(typed: dict[str, Any], shape: tuple[int, ...], codes: int, logs: Path) -> None:
    stage = resolve(PriorStage, {"dataset": "churches", "ae_load_dir": "ae", **typed}, logs=logs)
    assert stage.autoencoder.latent_shape == shape
    assert stage.prior.block_size == codes


def test_other_derived_values(logs: Path) -> None:
    stage = resolve(VQGANStage, {"dataset": "churches", "batch_size": 4, "base_lr": 1e-6}, logs=logs)
    assert stage.training.lr == pytest.approx(4e-6)
    assert resolve(VQGANStage, {"dataset": "churches", "lr": 0.5}, logs=logs).training.lr == 0.5
    prior = resolve(PriorStage, {"dataset": "churches", "ae_load_dir": "ae", "total_steps": 50}, logs=logs)
    assert prior.sampling.sample_steps == 50
    assert prior.run.log_dir == "absorbing_churches"


def test_nothing_is_left_underived(logs: Path) -> None:
    may_be_none = {
        "custom_dataset_path", "load_dir", "perceptual_weights_file", "ae_load_step", "load_step", "ema",
        "feature_weights", "latents_path", "fake_images_path", "real_feats", "fake_feats", "lpips_weights",
        "train_images", "mask_path",
    }  # fmt: skip
    for stage_class in STAGES.values():
        typed: dict[str, Any] = {"dataset": "ffhq"}
        if stage_class is not VQGANStage:
            typed["ae_load_dir"] = "ae"
        if issubclass(stage_class, PriorExperiment):
            typed["load_dir"] = "prior"
        flat = to_flat(resolve(stage_class, typed, logs=logs))
        unsettled = {name for name, value in flat.items() if value is None}
        if stage_class is ReconstructionExperiment:
            unsettled.remove("n_samples")  # all of the split
        assert unsettled <= may_be_none


def test_unknown_names_are_the_programmers_error(logs: Path) -> None:
    with pytest.raises(TypeError, match="VQGANStage has no setting nff"):
        resolve(VQGANStage, {"dataset": "churches", "nff": 3}, logs=logs)


def test_a_misspelt_run_is_named_by_its_own_flag(logs: Path) -> None:
    with pytest.raises(UserError, match=r"--load_dir: there is no run folder .*typo"):
        resolve(SamplesExperiment, {"dataset": "toy_churches", "load_dir": "typo"}, logs=logs)
    with pytest.raises(UserError, match=r"--load_dir: there is no run folder .*typo"):  # which would name the data set
        resolve(SamplesExperiment, {"load_dir": "typo", "ae_load_dir": "ae"}, logs=logs)
    with pytest.raises(UserError, match=r"--ae_load_dir: there is no run folder .*typo"):
        resolve(ReconstructionExperiment, {"ae_load_dir": "typo"}, logs=logs)


def test_resume_needs_a_run_folder(logs: Path) -> None:
    with pytest.raises(UserError, match=r"--resume: there is no run folder .*typo"):
        resolve(VQGANStage, {"resume": True, "log_dir": "typo"}, logs=logs)
    (logs / "killed").mkdir(parents=True)  # before it wrote its settings
    with pytest.raises(UserError, match=r"--resume: .*killed has no hparams\.yaml: give all flags"):
        resolve(VQGANStage, {"resume": True, "log_dir": "killed"}, logs=logs)
    assert resolve(VQGANStage, {"resume": True, "log_dir": "killed", "dataset": "churches"}, logs=logs).training.resume
