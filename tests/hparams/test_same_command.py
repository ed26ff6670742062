"""A training command that is started again goes on with its run, and one of other settings does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hparams.errors import UserError
from hparams.resolve import resolve
from hparams.saved import to_flat
from hparams.settings.stages import PriorStage, Stage, VQGANStage
from utils.runs.run_folder import save_settings

FIRST = {"dataset": "churches", "log_dir": "run", "batch_size": 4, "seed": 3}
SECOND = {"dataset": "churches", "log_dir": "run", "ae_load_dir": "ae", "lr": 1e-3}


def begun(logs: Path, stage_class: type[Stage], typed: dict[str, Any], processes: int = 1, **saved: Any) -> Any:
    """The settings of a run that has saved a step."""
    stage = resolve(stage_class, typed | saved, logs=logs, processes=processes)
    save_settings(stage, logs / stage.run.log_dir / "hparams.yaml")
    (logs / stage.run.log_dir / "saved_models").mkdir()
    kind = stage.prior.sampler if isinstance(stage, PriorStage) else "vqgan"
    (logs / stage.run.log_dir / f"saved_models/{kind}_state_5.th").touch()
    return stage


@pytest.mark.parametrize(
    ("stage_class", "typed"),
    [
        (VQGANStage, FIRST),
        (VQGANStage, {"dataset": "toy_churches"}),
        (PriorStage, SECOND),
        (PriorStage, SECOND | {"sampler": "autoregressive", "load_dir": "other", "load_step": 7, "load_optim": True}),
    ],
)
def test_the_same_command_has_the_settings_of_its_run(
    stage_class: type[Stage], typed: dict[str, Any], tmp_path: Path
) -> None:
    stage = begun(tmp_path, stage_class, typed)
    assert resolve(stage_class, typed, logs=tmp_path) == stage
    # Of a machine, of this call, or another spelling.
    more = {"device": "cpu", "num_workers": 1, "visdom_port": 9, "sinks": (), "quiet": True}
    assert resolve(stage_class, typed | more | {"log_dir": stage.run.log_dir + "/"}, logs=tmp_path).run.quiet


@pytest.mark.parametrize(
    ("stage_class", "changes", "line"),
    [
        (VQGANStage, {"lr": 1e-4}, "--lr: the run in .*run has 1.8e-05, this command 0.0001: --resume goes on"),
        (VQGANStage, {"seed": 0}, "--seed: the run in .*run has 3, this command 0: .* another --log_dir"),
        (VQGANStage, {"seed": None}, "--seed: .* has 3, this command 0:"),
        (VQGANStage, {"ema": True, "nf": 64}, r"--(ema|nf): .* has (off|128), .* \(--(ema|nf) too\): "),
        (VQGANStage, {"train_steps": 5}, "--train_steps: .* has 2200000, this command 5"),
        (VQGANStage, {"batch_size": 8}, "--batch_size: .* has 4, this command 8"),
        (VQGANStage, {"global_batch": 8}, "--global_batch: .* has 4, this command 8"),
        (VQGANStage, {"ch_mult": (1, 1, 2, 2, 2)}, "--ch_mult: .* has 1 1 2 2 4, this command 1 1 2 2 2"),
        (VQGANStage, {"perceptual_weights_file": "x"}, "--perceptual_weights_file: .* has none, this command x"),
        (VQGANStage, {"dataset": "ffhq"}, "--dataset: .* has churches, this command ffhq"),
        (VQGANStage, {"load_dir": "a", "load_step": 9}, "--load_.*: the run .* this command"),
        (PriorStage, {"ae_load_dir": "other"}, "--ae_load_dir: .* has ae, this command other"),
        (PriorStage, {"ae_load_step": 7}, "--ae_load_step: .* has 20, this command 7"),
        (PriorStage, {"n_samples": 8}, "--n_samples: .* has 64, this command 8"),
    ],
)
def test_a_difference_is_refused_by_its_flag_and_both_values(
    stage_class: type[Stage], changes: dict[str, Any], line: str, tmp_path: Path
) -> None:
    """The typed flags' come first: of VQGANs, --lr follows from the batch. None: the flag is left out."""
    command, saved = (FIRST, {}) if stage_class is VQGANStage else (SECOND, {"ae_load_step": 20})
    begun(tmp_path, stage_class, command, **saved)
    typed = {name: value for name, value in {**command, **changes}.items() if value is not None}
    with pytest.raises(UserError, match=f"^{line}"):
        resolve(stage_class, typed, logs=tmp_path)
    resolve(stage_class, typed | {"log_dir": "new"}, logs=tmp_path)
    with_the_change = {name: value for name, value in typed.items() if not name.startswith(("load_", "batch"))}
    resolve(stage_class, with_the_change | {"resume": True}, logs=tmp_path)


def test_the_autoencoders_step_stays_that_of_the_run(tmp_path: Path) -> None:
    begun(tmp_path, PriorStage, SECOND, ae_load_step=20)
    assert resolve(PriorStage, SECOND, logs=tmp_path).source.ae_load_step == 20


@pytest.mark.parametrize(
    ("typed", "shares"),
    [
        ({"batch_size": 4}, [(4, 2), (4, 1), (2, 1)]),
        ({"batch_size": 2, "accumulate_steps": 2}, [(2, 4), (2, 2), (2, 1)]),
        ({"global_batch": 8}, [(8, 1), (4, 1), (2, 1)]),
    ],
)
def test_another_number_of_processes_divides_the_same_updates(
    typed: dict[str, int], shares: list[tuple[int, int]], tmp_path: Path
) -> None:
    """A batch that was typed is one that fits into memory."""
    command = {"dataset": "churches", "log_dir": "run", **typed}
    stage = begun(tmp_path, VQGANStage, command, processes=2)
    assert stage.training.global_batch == 8
    for processes, share in zip((1, 2, 4), shares, strict=True):
        again = resolve(VQGANStage, command, logs=tmp_path, processes=processes)
        assert (again.run.batch_size, again.training.accumulate_steps) == share
        assert (again.training.global_batch, again.training.lr) == (8, stage.training.lr)


def test_under_torchrun_data_lie_where_each_machine_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = {"dataset": "custom", "log_dir": "run"}
    begun(tmp_path, VQGANStage, command | {"custom_dataset_path": "here"})
    with pytest.raises(UserError, match=r"^--custom_dataset_path: the run in .* has here, this command there"):
        resolve(VQGANStage, command | {"custom_dataset_path": "there"}, logs=tmp_path)
    for name, value in {"RANK": "1", "MASTER_ADDR": "localhost", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    again = resolve(VQGANStage, command | {"custom_dataset_path": "there"}, logs=tmp_path)
    assert again.run.custom_dataset_path == "there"


def test_a_run_without_a_saved_step_or_of_another_kind_hinders_no_start(tmp_path: Path) -> None:
    """Of another kind: the start of training refuses it."""
    begun(tmp_path, VQGANStage, FIRST)
    assert resolve(VQGANStage, {**FIRST, "log_dir": "other", "seed": 4}, logs=tmp_path).run.seed == 4
    assert resolve(PriorStage, SECOND, logs=tmp_path).training.lr == 1e-3
    (tmp_path / "run/saved_models/vqgan_state_5.th").unlink()
    assert resolve(VQGANStage, {**FIRST, "seed": 4}, logs=tmp_path).run.seed == 4


def test_steps_without_settings_need_the_word(tmp_path: Path) -> None:
    stage = begun(tmp_path, VQGANStage, FIRST)
    (tmp_path / "run/hparams.yaml").unlink()
    with pytest.raises(UserError, match=r"run has saved steps, and no settings to compare .*: add --resume"):
        resolve(VQGANStage, FIRST, logs=tmp_path)
    assert to_flat(resolve(VQGANStage, FIRST | {"resume": True}, logs=tmp_path)) == to_flat(stage)
