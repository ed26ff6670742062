from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hparams.errors import UserError
from hparams.fields import values_of
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


def check(logs: Path, stage_class: type[Stage], typed: dict[str, Any], processes: int = 1, /, **expected: Any) -> None:
    """What typed flags resolve to has these values."""
    values = values_of(resolve(stage_class, typed, logs=logs, processes=processes))
    assert {name: values[name] for name in expected} == expected


def refused(logs: Path, stage_class: type[Stage], typed: dict[str, Any], message: str, processes: int = 1) -> None:
    with pytest.raises(UserError, match=message):
        resolve(stage_class, typed, logs=logs, processes=processes)


def test_default_below_preset_below_saved_below_typed(logs: Path) -> None:
    """Every pair of layers. batch_size: default 20, preset 3 (VQGAN), saved 5, typed 7."""
    five = {"batch_size": 5}
    for n, (saved, typed, expected) in enumerate(
        [({}, {}, 3), (five, {}, 5), ({}, {"batch_size": 7}, 7), (five, {"global_batch": 7}, 7)]
    ):
        run(logs, f"run_{n}", dataset="churches", **saved)
        check(logs, VQGANStage, {"log_dir": f"run_{n}", "resume": True, **typed}, batch_size=expected)


@pytest.mark.parametrize(("stage_class", "ae"), [(VQGANStage, {}), (PriorStage, {"ae_load_dir": "ae"})])
def test_a_run_from_before_a_flag_of_its_preset_goes_on_without_it(
    stage_class: type[Stage], ae: dict[str, str], logs: Path
) -> None:
    check(logs, stage_class, {"dataset": "toy_churches", "log_dir": "new", **ae}, ema_warmup=True)
    for name, saved in (("old", {}), ("later", {"ema_warmup": True})):
        run(logs, name, dataset="toy_churches", ema=True, **ae, **saved)
        check(logs, stage_class, {"log_dir": name, "resume": True}, ema_warmup=bool(saved))


def test_typed_false_and_typed_default_override_too(logs: Path) -> None:
    run(logs, "mine", dataset="toy_churches", ema=True, diff_aug=True, beta=0.5)
    values = {"ema": False, "diff_aug": False, "beta": 0.25}
    check(logs, VQGANStage, {"log_dir": "mine", "resume": True, **values}, **values)


def test_resume_finds_the_default_folder(logs: Path) -> None:
    trained(logs, VQGANStage, dataset="churches", nf=64, log_dir="old")
    (logs / "old").rename(logs / "vqgan_churches")
    check(logs, VQGANStage, {"resume": True, "dataset": "churches"}, nf=64)
    trained(logs, PriorStage, dataset="churches", ae_load_dir="ae", sampler="autoregressive", bert_n_emb=64)
    check(logs, PriorStage, {"resume": True, "dataset": "churches", "sampler": "autoregressive"}, bert_n_emb=64)
    refused(logs, VQGANStage, {"resume": True}, "--log_dir is required to find the run")


def test_resume_keeps_the_learning_rate_of_the_run(logs: Path) -> None:
    before = trained(logs, VQGANStage, dataset="churches", batch_size=4)
    assert before.training.lr == pytest.approx(4.5e-6 * 4)
    typed = {"resume": True, "dataset": "churches", "global_batch": 8}
    check(logs, VQGANStage, typed, batch_size=8, lr=before.training.lr)


def test_an_update_is_divided_over_processes_and_passes(logs: Path) -> None:
    for typed, expected in (
        ({"batch_size": 4}, (8, 4, 1)),
        ({"batch_size": 2, "accumulate_steps": 3}, (12, 2, 3)),
        ({"global_batch": 12}, (12, 6, 1)),
        ({"global_batch": 12, "accumulate_steps": 3}, (12, 2, 3)),
        ({"global_batch": 12, "batch_size": 2}, (12, 2, 3)),
    ):
        shares = dict(zip(("global_batch", "batch_size", "accumulate_steps"), expected, strict=True))
        check(logs, VQGANStage, {"dataset": "churches", **typed}, 2, **shares)


def test_an_update_that_cannot_be_divided_is_refused(logs: Path) -> None:
    for typed, message in (
        ({"global_batch": 9}, "--global_batch 9: 2 processes cannot share an update of 9 images evenly"),
        ({"global_batch": 12, "batch_size": 4}, "--batch_size 4: of updates of 12 images .* each process has 6"),
        ({"global_batch": 4, "accumulate_steps": 3}, "--accumulate_steps 3: .* each process has 2, which are not "),
        ({"global_batch": 12, "batch_size": 3, "accumulate_steps": 4}, "4 passes of --batch_size 3: change one"),
    ):
        refused(logs, VQGANStage, {"dataset": "churches", **typed}, message, 2)


def test_an_update_stays_as_large_as_in_a_run_of_before_processes_could_share_it(logs: Path) -> None:
    run(logs, "mine", dataset="churches", batch_size=6)
    check(logs, VQGANStage, {"resume": True, "log_dir": "mine"}, 2, global_batch=6, batch_size=3)


def test_resume_takes_no_other_start(logs: Path) -> None:
    for typed in ({"load_step": 5}, {"load_dir": "other"}, {"load_optim": True}):
        refused(logs, VQGANStage, {"dataset": "churches", "resume": True, **typed}, "--resume continues")


def test_load_step_alone_loads_from_the_run_itself(logs: Path) -> None:
    trained(logs, VQGANStage, dataset="churches", nf=64, lr=1.0, log_dir="mine")
    typed = {"dataset": "churches", "log_dir": "mine", "load_step": 5}
    check(logs, VQGANStage, typed, load_dir="mine", nf=64, lr=pytest.approx(4.5e-6 * 3))


def test_vqgan_from_another_run_takes_architecture_and_data_only(logs: Path) -> None:
    theirs = {"dataset": "custom", "custom_dataset_path": "photos", "nf": 64, "img_size": 128, "ndf": 32}
    not_taken = {"seed": 3, "lr": 1.0, "disc_weight_max": 0.5, "batch_size": 9, "train_steps": 7}
    trained(logs, VQGANStage, log_dir="old", disc_layers=2, **theirs, **not_taken)
    typed = {"log_dir": "new", "load_dir": "old", "load_step": 5}
    own = {"seed": 0, "batch_size": 3, "disc_weight_max": 1.0, "train_steps": 2_200_000}
    check(logs, VQGANStage, typed, log_dir="new", disc_layers=2, latent_shape=(1, 8, 8), **theirs, **own)
    values = {"dataset": "churches", "nf": 32}
    check(logs, VQGANStage, typed | values, img_size=128, **values)


def test_the_autoencoders_run_feeds_the_autoencoder_only(logs: Path) -> None:
    trained(logs, VQGANStage, dataset="custom", log_dir="ae", codebook_size=512, img_size=128, batch_size=9, seed=4)
    theirs, own = {"codebook_size": 512, "img_size": 128, "block_size": 64}, {"batch_size": 20, "seed": 0, "lr": 1e-4}
    check(logs, PriorStage, {"dataset": "ffhq", "ae_load_dir": "ae"}, dataset="ffhq", **theirs, **own)
    refused(logs, PriorStage, {"ae_load_dir": "ae"}, "--dataset is required")


def test_experiment_rebuilds_what_was_trained(logs: Path) -> None:
    trained(logs, VQGANStage, dataset="toy_churches", log_dir="ae", codebook_size=64, emb_dim=16)
    data = {"dataset": "toy_churches", "toy_images": 99}
    not_taken = {"batch_size": 9, "amp": False, "seed": 4, "device": "cpu", "ema": True, "temp": 0.5, "n_samples": 3}
    not_taken |= {"save_individually": True, "load_step": 0}
    trained_on = {"log_dir": "prior", "ae_load_dir": "ae", "ae_load_step": 5}
    prior = trained(logs, PriorStage, bert_n_emb=48, **data, **not_taken, **trained_on)
    stage = resolve(SamplesExperiment, {"load_dir": "prior"}, logs=logs)
    assert (stage.autoencoder, stage.prior, stage.source) == (prior.autoencoder, prior.prior, prior.source)
    own = {"seed": 0, "device": "auto", "temp": 1.0, "n_samples": 64, "ema": None, "load_step": None}
    own |= {"save_individually": False, "log_dir": "samples_toy_churches"}
    own["batch_size"] = preset(SamplesExperiment.preset_tables, "toy_churches")["batch_size"]
    check(logs, SamplesExperiment, {"load_dir": "prior"}, **data, **own)


def test_the_autoencoders_run_wins_over_the_priors(logs: Path) -> None:
    run(logs, "prior", dataset="churches", ae_load_dir="first", ae_load_step=5, nf=64, emb_dim=32)
    run(logs, "first", nf=96)
    run(logs, "second", codebook_size=512)
    typed = {"load_dir": "prior"}
    check(logs, SamplesExperiment, typed, nf=96, emb_dim=32, ae_load_step=5)
    # A step of the first run says nothing about the second.
    check(logs, SamplesExperiment, typed | {"ae_load_dir": "second"}, nf=64, codebook_size=512, ae_load_step=None)
    check(logs, SamplesExperiment, typed | {"ae_load_dir": "first/", "nf": 32}, nf=32, ae_load_step=5)


def test_the_authors_folders_without_settings_get_the_preset(logs: Path) -> None:
    (logs / "vqgan_churches" / "saved_models").mkdir(parents=True)
    typed = {"dataset": "churches", "ae_load_dir": "vqgan_churches", "load_dir": "absorbing_churches"}
    check(logs, SamplesExperiment, typed, latent_shape=(1, 16, 16), bert_n_layers=24)


def test_saved_settings_that_do_not_fit_are_refused(logs: Path) -> None:
    run(logs, "prior", dataset="churches", ae_load_dir="ae", block_size=64)
    misfit = "--block_size 64 does not fit --latent_shape 1 16 16: name the autoencoder that the prior learnt from"
    refused(logs, SamplesExperiment, {"load_dir": "prior"}, misfit)
    run(logs, "escape", dataset="churches", ae_load_dir="../../etc")
    escape = r"--ae_load_dir '\.\./\.\./etc': give a name below logs/"
    refused(logs, SamplesExperiment, {"load_dir": "escape"}, escape)


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
    for stage_class, typed in (
        (FIDExperiment, {"load_dir": "prior"}),
        (ReconstructionExperiment, {"ae_load_dir": "ae"}),
        (VQGANStage, {"load_dir": "ae", "load_step": 5, "log_dir": "new"}),
    ):
        refused(logs, stage_class, typed, rf"hparams.yaml: {name} .* say so by --{name}$")
        check(logs, stage_class, {**typed, name: path}, **{name: path})
        resolve(stage_class, {**typed, "dataset": "churches", "datasets_file": "datasets.yaml"}, logs=logs)
    resolve(SamplesExperiment, {"load_dir": "prior"}, logs=logs)  # opens no data set
    check(logs, VQGANStage, {"resume": True, "log_dir": "ae"}, **{name: path})


@pytest.mark.parametrize("path", ["photos", "data/photos", "./photos", "logs_of_photos"])
def test_data_in_this_folder_are_found_again(path: str, logs: Path) -> None:
    for dataset, name in (("custom", "custom_dataset_path"), ("ffhq", "datasets_file")):
        run(logs, dataset, dataset=dataset, ae_load_dir="ae", **{name: path})
        check(logs, FIDExperiment, {"load_dir": dataset}, **{name: path})


def test_null_in_a_saved_file_says_nothing(logs: Path) -> None:
    run(logs, "mine", dataset="churches", lr=None, ae_load_dir="ae", block_size=None, ae_load_step=None)
    check(logs, PriorStage, {"log_dir": "mine", "resume": True}, lr=2e-4, block_size=256, ae_load_step=None)


def test_shapes_are_derived(logs: Path) -> None:
    for typed, shape, codes in (
        ({"img_size": 64}, (1, 4, 4), 16),
        ({"img_size": 64, "ch_mult": (1, 2)}, (1, 32, 32), 1024),
        ({"ch_mult": (1,), "img_size": 33}, (1, 33, 33), 1089),
        ({"latent_shape": (1, 16, 16)}, (1, 16, 16), 256),
    ):
        typed |= {"dataset": "churches", "ae_load_dir": "ae"}
        check(logs, PriorStage, typed, latent_shape=shape, block_size=codes)


def test_other_derived_values(logs: Path) -> None:
    check(logs, VQGANStage, {"dataset": "churches", "batch_size": 4, "base_lr": 1e-6}, lr=pytest.approx(4e-6))
    check(logs, VQGANStage, {"dataset": "churches", "lr": 0.5}, lr=0.5)
    typed = {"dataset": "churches", "ae_load_dir": "ae", "total_steps": 50}
    check(logs, PriorStage, typed, sample_steps=50, log_dir="absorbing_churches")


def test_nothing_is_left_underived(logs: Path) -> None:
    may_be_none = {
        *("custom_dataset_path", "load_dir", "perceptual_weights_file", "ae_load_step", "load_step", "ema"),
        *("feature_weights", "latents_path", "fake_images_path", "real_feats", "fake_feats", "lpips_weights"),
        *("train_images", "mask_path"),
    }
    for stage_class in STAGES.values():
        typed: dict[str, Any] = {"dataset": "ffhq"}
        typed |= {"ae_load_dir": "ae"} if stage_class is not VQGANStage else {}
        typed |= {"load_dir": "prior"} if issubclass(stage_class, PriorExperiment) else {}
        flat = to_flat(resolve(stage_class, typed, logs=logs))
        all_of_the_split = {"n_samples"} if stage_class is ReconstructionExperiment else set()
        assert {name for name, value in flat.items() if value is None} <= may_be_none | all_of_the_split


def test_unknown_names_are_the_programmers_error(logs: Path) -> None:
    with pytest.raises(TypeError, match="VQGANStage has no setting nff"):
        resolve(VQGANStage, {"dataset": "churches", "nff": 3}, logs=logs)


def test_a_run_that_is_not_there_is_named_by_its_own_flag(logs: Path) -> None:
    for stage_class, typed, flag in (
        (SamplesExperiment, {"dataset": "toy_churches", "load_dir": "typo"}, "load_dir"),
        (SamplesExperiment, {"load_dir": "typo", "ae_load_dir": "ae"}, "load_dir"),  # which would name the data set
        (ReconstructionExperiment, {"ae_load_dir": "typo"}, "ae_load_dir"),
        (VQGANStage, {"resume": True, "log_dir": "typo"}, "resume"),
    ):
        refused(logs, stage_class, typed, rf"^--{flag}: there is no run folder .*typo")


def test_resume_needs_settings(logs: Path) -> None:
    (logs / "killed").mkdir(parents=True)  # before it wrote its settings
    typed = {"resume": True, "log_dir": "killed"}
    refused(logs, VQGANStage, typed, r"--resume: .*killed has no hparams\.yaml: give all flags")
    check(logs, VQGANStage, typed | {"dataset": "churches"}, resume=True)
