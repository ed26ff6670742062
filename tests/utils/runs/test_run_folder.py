"""Which steps of a run folder count, which file of a step is read, and which go: no whole step that should stay."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hparams.errors import UserError
from hparams.settings.training import TrainingSettings
from utils.runs import retention
from utils.runs.retention import clean_up, drop_weights
from utils.runs.run_folder import ABSORBING, KINDS, VQGAN, RunFolder

DEFAULTS = TrainingSettings()
STEPS = st.sets(st.integers(1, 30), max_size=6)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder("sets/run", tmp_path)


def put(folder: RunFolder, *names: str) -> None:
    folder.saved_models.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder.saved_models / name).touch()


def test_steps_are_in_numerical_order_and_of_one_kind(folder: RunFolder, tmp_path: Path) -> None:
    assert folder.model_file(ABSORBING, 7, ema=True) == tmp_path / "sets/run/saved_models/absorbing_ema_7.th"
    put(folder, "vqgan_10.th", "vqgan_9.th", "vqgan_ema_200.th", "absorbing_3.th", "vqgan_optim_4.th", "xvqgan_5.th")
    put(folder, ".vqgan_5.th.1234", "vqgan_6.th.part")
    assert folder.model_steps(VQGAN) == [9, 10, 200]
    assert folder.model_steps(ABSORBING) == [3]
    assert folder.state_steps(VQGAN) == []
    put(folder, "vqgan_state_10.th")  # what is newer does not count
    assert folder.model_steps(VQGAN) == [9, 10]
    assert (folder.pick_step(VQGAN, None), folder.pick_step(VQGAN, 9)) == (10, 9)


def test_optimisers_count_where_each_has_a_file_or_the_training_state_has_them(folder: RunFolder) -> None:
    put(folder, "ae_optim_5.th", "disc_optim_5.th", "ae_optim_6.th", "vqgan_state_20.th", "absorbing_optim_7.th")
    assert folder.optimiser_steps(VQGAN) == [5, 20]
    assert folder.optimiser_steps(ABSORBING) == [7]
    assert [file.name for file in folder.optimiser_files(VQGAN, 6).values()] == ["ae_optim_6.th", "disc_optim_6.th"]


def test_what_is_missing_is_named_and_the_nearest_steps_too(folder: RunFolder) -> None:
    def refused(step: int | None, told: str) -> None:
        with pytest.raises(UserError, match=told):
            folder.pick_step(VQGAN, step)

    refused(None, "--load_dir: there is no run folder")
    put(folder)
    refused(None, r"--load_dir: no vqgan_<step>\.th in .*; has this run saved a step\?$")
    put(folder, "absorbing_3.th")
    refused(None, r"--load_dir: no vqgan_<step>\.th in .*; its models are of absorbing$")
    put(folder, *(f"vqgan_{step}.th" for step in range(10, 110, 10)))
    refused(47, r"--load_step: .* no vqgan of step 47; it has step 30, 40, 50, 60, 70, …$")


def test_the_average_is_preferred_and_can_be_declined(folder: RunFolder) -> None:
    put(folder, "vqgan_5.th", "vqgan_ema_5.th", "vqgan_6.th", "vqgan_ema_7.th")
    assert folder.pick_model_file(VQGAN, 5, ema=True).name == "vqgan_ema_5.th"
    assert folder.pick_model_file(VQGAN, 5, ema=False).name == "vqgan_5.th"
    assert folder.pick_model_file(VQGAN, 6, ema=True).name == "vqgan_6.th"
    with pytest.raises(UserError, match=r"vqgan_7\.th does not exist, only vqgan_ema_7\.th: leave out --no_ema"):
        folder.pick_model_file(VQGAN, 7, ema=False)


def make(root: Path, *, whole: set[int] = frozenset(), half: set[int] = frozenset(), marked: set[int] = frozenset()):
    """A folder with whole steps, steps with weights but neither state nor mark, and marks of steps being saved."""
    folder = RunFolder("run", root)
    folder.saved_models.mkdir(parents=True, exist_ok=True)
    for step in whole | half:
        for ema in (False, True):
            folder.model_file(VQGAN, step, ema=ema).touch()
    for step in whole:
        folder.state_file(VQGAN, step).touch()
    for step in marked:
        folder.saving_mark(VQGAN, step).touch()
    return folder


def names(folder: RunFolder) -> set[str]:
    return {file.name for file in folder.saved_models.iterdir()}


@pytest.mark.parametrize(
    ("whole", "done", "changes", "states", "weights"),
    [
        # Weights go where a number says so, but not those that were loaded.
        ({5, 10, 15, 20}, 20, {"keep_checkpoints": "1", "load_step": 5}, [20], [5, 20]),
        # A run resumed at 5, because 10 was damaged, has just saved 7.
        ({5, 7, 10}, 7, {"keep_states": 1}, [7, 10], [5, 7, 10]),
    ],
)
def test_the_newest_states_stay(tmp_path: Path, whole, done, changes: dict[str, Any], states, weights) -> None:
    folder = make(tmp_path, whole=whole)
    clean_up(folder, VQGAN, done, replace(DEFAULTS, **changes))
    assert folder.state_steps(VQGAN) == states
    assert folder.model_steps(VQGAN) == weights


def test_what_was_being_written_when_a_run_was_killed_goes(tmp_path: Path) -> None:
    """Steps that began, and temporary files; not what is newer, nor the user's."""
    folder = make(tmp_path, whole={5, 15}, half={10, 20}, marked={10, 20})
    kept = names(folder) - {"vqgan_10.th", "vqgan_ema_10.th", ".vqgan_saving_10"} | {".mine"}
    folder.images.mkdir()
    for name in ("saved_models/.vqgan_10.th.4711", "saved_models/.mine", "images/.samples_10.png.4711"):
        (folder.path / name).touch()
    clean_up(folder, VQGAN, 15, DEFAULTS)
    assert not list(folder.images.iterdir())
    assert names(folder) == kept
    assert folder.unfinished_steps(VQGAN) == [20]


@pytest.mark.parametrize("deletions", [0, 1, 2, 3])
def test_a_step_that_is_half_deleted_does_not_pass_for_a_whole_one(tmp_path, monkeypatch, deletions: int) -> None:
    folder = make(tmp_path, whole={15}, half={10}, marked={10})
    wrapped = Mock(side_effect=[*[DEFAULT] * deletions, KeyboardInterrupt], wraps=Path.unlink)
    monkeypatch.setattr(Path, "unlink", lambda file, **more: wrapped(file, **more))
    with pytest.raises(KeyboardInterrupt) if deletions < 3 else nullcontext():
        drop_weights(folder, VQGAN, 10)
    assert folder.model_steps(VQGAN) == [15]
    assert folder.unfinished_steps(VQGAN) == ([10] if deletions < 3 else [])


def test_what_cannot_be_deleted_is_left_and_the_rest_goes(tmp_path: Path) -> None:
    folder = make(tmp_path, whole={10, 15, 20})
    folder.state_file(VQGAN, 5).mkdir()
    clean_up(folder, VQGAN, 20, DEFAULTS)
    assert folder.state_steps(VQGAN) == [5, 15, 20]


def test_space_for_a_run_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 weights of 4 bytes, twice with the average, and two moments of each."""
    model = torch.nn.Linear(999, 1)

    def note(free: int, steps: int = 100, **changes: Any) -> str:
        monkeypatch.setattr(retention, "free_space", lambda folder: free)
        training = replace(DEFAULTS, steps_per_checkpoint=10, **changes)
        return retention.space_note(tmp_path, {False: model, True: model}, training, steps)

    assert note(10**6) == "disk        checkpoints to come take 104 kB, 1 MB is free"  # 10 of 8 kB, 3 states of 8 kB
    assert "take 16 kB" in note(10**6, steps=3)
    assert "take 32 kB" in note(10**6, keep_checkpoints="1", keep_states=1)
    assert note(50_000).startswith("WARNING: checkpoints to come take 104 kB, 50 kB is free: make room, or use --keep")
    with pytest.raises(UserError, match="a checkpoint takes 16 kB, and 15 kB is free: make room"):
        note(15_000)
    assert "take 0 B" in note(0, steps=0)


@settings(max_examples=150, deadline=None)
@given(whole=STEPS, half=STEPS, marked=STEPS, done=st.integers(1, 30), keep=st.integers(1, 3))
@pytest.mark.parametrize("weights", ["all", "2"])
def test_properties(tmp_path_factory, weights: str, whole, half, marked, done: int, keep: int) -> None:
    """For any folder: `done` and newer whole steps stay, nothing half is seen, and cleaning twice is cleaning once."""
    whole = whole | {done}
    folder = make(tmp_path_factory.mktemp("run"), whole=whole, half=half - whole, marked=marked)
    training = replace(DEFAULTS, keep_states=keep, keep_checkpoints=weights)
    seen = folder.model_steps(VQGAN)
    assert whole <= set(seen)
    assert set(seen) <= whole | {step for step in half if step < max(whole) and step not in marked}
    assert not set(seen) & set(folder.unfinished_steps(VQGAN))
    clean_up(folder, VQGAN, done, training)
    older = sorted(step for step in whole if step <= done)
    kept = older[-min(keep, 2 if weights == "2" else keep) :]
    assert folder.state_steps(VQGAN) == sorted({*kept, *(step for step in whole if step > done)})
    assert set(kept) <= set(folder.model_steps(VQGAN))
    assert all(folder.model_file(VQGAN, step, ema=ema).exists() for step in kept for ema in (False, True))
    if weights == "all":
        assert whole <= set(folder.model_steps(VQGAN))
    assert not [step for step in folder.unfinished_steps(VQGAN) if step < done]
    once = names(folder)
    clean_up(folder, VQGAN, done, training)
    assert names(folder) == once


@settings(max_examples=200, deadline=None)
@given(step=st.integers(0, 10**12), kind=st.sampled_from(KINDS), ema=st.booleans())
def test_names_of_steps_are_found_again(tmp_path_factory, step: int, kind: str, ema: bool) -> None:
    folder = make(tmp_path_factory.mktemp("run"))
    folder.model_file(kind, step, ema=ema).touch()
    assert {other: folder.model_steps(other) for other in KINDS} == {other: [step] * (other == kind) for other in KINDS}
    folder.state_file(kind, step).touch()
    assert folder.state_steps(kind) == folder.optimiser_steps(kind) == [step]
    assert folder.unfinished_steps(kind) == []


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=30))
def test_other_names_are_no_steps(tmp_path_factory, name: str) -> None:
    folder = make(tmp_path_factory.mktemp("run"))
    with suppress(OSError, ValueError):  # not a name for this file system
        (folder.saved_models / name).touch()
    for kind in KINDS:
        assert folder.model_steps(kind) == folder.state_steps(kind) == []
