"""Which steps of a run folder count, and which file of a step is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from hparams.errors import UserError
from utils.runs.run_folder import ABSORBING, VQGAN, RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder("sets/run", tmp_path)


def put(folder: RunFolder, *names: str) -> None:
    folder.saved_models.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder.saved_models / name).touch()


def test_names_lie_in_the_folder_and_may_be_nested(folder: RunFolder, tmp_path: Path) -> None:
    saved = tmp_path / "sets" / "run" / "saved_models"
    assert folder.model_file(VQGAN, 7) == saved / "vqgan_7.th"
    assert folder.model_file(ABSORBING, 7, ema=True) == saved / "absorbing_ema_7.th"
    assert folder.state_file(VQGAN, 7) == saved / "vqgan_state_7.th"


def test_steps_are_in_numerical_order_and_of_one_kind(folder: RunFolder) -> None:
    put(folder, "vqgan_10.th", "vqgan_9.th", "vqgan_ema_200.th", "absorbing_3.th", "vqgan_optim_4.th", "xvqgan_5.th")
    put(folder, ".vqgan_5.th.1234", "vqgan_6.th.part")
    assert folder.model_steps(VQGAN) == [9, 10, 200]
    assert folder.model_steps(ABSORBING) == [3]
    assert folder.state_steps(VQGAN) == []


def test_optimisers_count_where_each_has_a_file_or_the_training_state_has_them(folder: RunFolder) -> None:
    put(folder, "ae_optim_5.th", "disc_optim_5.th", "ae_optim_6.th", "vqgan_state_20.th", "absorbing_optim_7.th")
    assert folder.optimiser_steps(VQGAN) == [5, 20]
    assert folder.optimiser_steps(ABSORBING) == [7]
    assert [file.name for file in folder.optimiser_files(VQGAN, 6).values()] == ["ae_optim_6.th", "disc_optim_6.th"]


def test_model_files_newer_than_the_newest_state_do_not_count(folder: RunFolder) -> None:
    put(folder, "vqgan_5.th", "vqgan_10.th", "vqgan_state_10.th", "vqgan_15.th", "vqgan_ema_15.th")
    assert folder.model_steps(VQGAN) == [5, 10]
    assert folder.state_steps(VQGAN) == [10]


def test_the_newest_step_is_picked_unless_one_is_named(folder: RunFolder) -> None:
    put(folder, "vqgan_5.th", "vqgan_ema_20.th")
    assert folder.pick_step(VQGAN, None) == 20
    assert folder.pick_step(VQGAN, 5) == 5


def test_a_missing_step_is_answered_with_the_nearest(folder: RunFolder) -> None:
    put(folder, *(f"vqgan_{step}.th" for step in range(10, 110, 10)))
    with pytest.raises(UserError, match=r"--load_step: .* no vqgan of step 47; it has step 30, 40, 50, 60, 70, …$"):
        folder.pick_step(VQGAN, 47)


def test_missing_folders_and_models_are_named(folder: RunFolder) -> None:
    with pytest.raises(UserError, match="--load_dir: there is no run folder"):
        folder.pick_step(VQGAN, None)
    folder.saved_models.mkdir(parents=True)
    with pytest.raises(UserError, match=r"--load_dir: no vqgan_<step>\.th in .*; has this run saved a step\?$"):
        folder.pick_step(VQGAN, None)
    put(folder, "absorbing_3.th")
    with pytest.raises(UserError, match=r"--load_dir: no vqgan_<step>\.th in .*; its models are of absorbing$"):
        folder.pick_step(VQGAN, None)


def test_the_average_is_preferred_and_can_be_declined(folder: RunFolder) -> None:
    put(folder, "vqgan_5.th", "vqgan_ema_5.th", "vqgan_6.th", "vqgan_ema_7.th")
    assert folder.pick_model_file(VQGAN, 5, ema=True).name == "vqgan_ema_5.th"
    assert folder.pick_model_file(VQGAN, 5, ema=False).name == "vqgan_5.th"
    assert folder.pick_model_file(VQGAN, 6, ema=True).name == "vqgan_6.th"
    with pytest.raises(UserError, match=r"vqgan_7\.th does not exist, only vqgan_ema_7\.th: leave out --no_ema"):
        folder.pick_model_file(VQGAN, 7, ema=False)
