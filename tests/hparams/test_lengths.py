"""A run that is too short for what its settings ask for says so, and no other does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hparams.notes import notes_on_length
from hparams.presets import DATASETS
from hparams.resolve import resolve
from hparams.settings.stages import PriorStage, VQGANStage

STAGE_1 = {"dataset": "churches", "ema": True, "disc_start_step": 5}
STAGE_2 = {"dataset": "churches", "ema": True, "warmup_iters": 5, "ae_load_dir": "ae"}


@pytest.mark.parametrize("dataset", DATASETS)
def test_presets_give_no_notes(dataset: str, tmp_path: Path) -> None:
    typed = {"dataset": dataset, "ema": True}
    assert notes_on_length(resolve(VQGANStage, typed, logs=tmp_path)) == []
    assert notes_on_length(resolve(PriorStage, typed | {"ae_load_dir": "ae"}, logs=tmp_path)) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_steps": 10_000}, False),  # five times 10 / 0.005
        ({"train_steps": 9_999}, True),
        ({"train_steps": 999, "steps_per_update_ema": 1}, True),
        ({"train_steps": 1000, "steps_per_update_ema": 1}, False),
        ({"train_steps": 500, "ema_beta": 0.9}, False),
        ({"train_steps": 9_999, "ema_warmup": True}, False),
        ({"train_steps": 9_999, "ema": False}, False),
        ({"train_steps": 9_999, "load_step": 7, "load_dir": "trained"}, False),
    ],
)
@pytest.mark.parametrize("stage", [(VQGANStage, STAGE_1), (PriorStage, STAGE_2)], ids=["vqgan", "prior"])
def test_a_run_shorter_than_five_time_constants_of_its_average(
    stage: tuple[Any, dict[str, Any]], changes: dict[str, Any], said: bool, tmp_path: Path
) -> None:
    notes = notes_on_length(resolve(stage[0], {**stage[1], **changes}, logs=tmp_path))
    assert len(notes) == said
    for flag in ("--train_steps", "--ema_warmup", "--ema_beta") if said else ():
        assert flag in notes[0]


def test_what_would_begin_after_the_end(tmp_path: Path) -> None:
    def notes(stage: type[VQGANStage | PriorStage], **typed: Any) -> list[str]:
        return notes_on_length(resolve(stage, {"dataset": "churches", "ae_load_dir": "ae", **typed}, logs=tmp_path))

    def first(**typed: Any) -> list[str]:
        return notes_on_length(resolve(VQGANStage, {"dataset": "churches", **typed}, logs=tmp_path))

    (line,) = first(train_steps=500)
    assert line == "--disc_start_step 30001 is beyond --train_steps 500: the discriminator never takes part"
    assert first(train_steps=500, disc_start_step=500) == []  # asks for none
    (line,) = notes(PriorStage, train_steps=500)
    assert line == "--warmup_iters 10000 is beyond --train_steps 500: the learning rate never reaches --lr"
    assert notes(PriorStage, train_steps=500, warmup_iters=500) == []
