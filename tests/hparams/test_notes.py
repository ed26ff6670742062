"""Flags that do nothing beside others, and runs too short for what they ask for, are named, and only those."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from hparams.cli import parse
from hparams.fields import settings_of
from hparams.notes import CONDITIONS, notes_on_length
from hparams.presets import DATASETS
from hparams.resolve import resolve
from hparams.settings.experiments import LargerExperiment, PRDCExperiment, SamplesExperiment
from hparams.settings.stages import PriorStage, Stage, VQGANStage

STAGES: list[type[Stage]] = [VQGANStage, PriorStage, SamplesExperiment, PRDCExperiment, LargerExperiment]


@pytest.mark.parametrize(
    ("stage", "words", "expected"),
    [
        (VQGANStage, "--dataset churches --beta 0.5", ""),
        (VQGANStage, "--dataset churches --beta 0.5 --quantizer gumbel", "--beta does nothing with --quantizer gumbel"),
        (VQGANStage, "--dataset toy_churches --quantizer gumbel", ""),  # the preset's own flags are not typed
        (VQGANStage, "--dataset churches --custom_dataset_path x", "--custom_dataset_path does nothing with --dataset"),
        (VQGANStage, "--dataset custom --custom_dataset_path x", ""),
        (VQGANStage, "--dataset churches --ema_beta 0.9", "--ema_beta does nothing with --no_ema"),
        (VQGANStage, "--dataset churches --sinks none --visdom_base_url x", "does nothing with --sinks none"),
        (VQGANStage, "--dataset churches --ema_beta 0.9 --ema", ""),
        (VQGANStage, "--dataset churches --ema_warmup", "--ema_warmup does nothing with --no_ema"),
        (SamplesExperiment, "--dataset churches --ae_load_dir v --load_dir p --amp_dtype float16", "with --no_amp"),
        (PriorStage, "--dataset churches --ae_load_dir v --loss_type mlm --reweighting paper", "with --loss_type mlm"),
        (SamplesExperiment, "--dataset churches --ae_load_dir v --load_dir p --sample_steps 3", ""),
        (
            SamplesExperiment,
            "--dataset churches --ae_load_dir v --load_dir p --sampler autoregressive --sample_steps 3",
            "--sample_steps does nothing with --sampler autoregressive",
        ),
        (
            PRDCExperiment,
            "--dataset churches --fake_images_path x --temp 1",
            "--temp does nothing with --fake_images_path x",
        ),
        (
            LargerExperiment,
            "--dataset churches --ae_load_dir v --load_dir p --sample_steps 3",
            "--sample_steps does nothing with --order raster",
        ),
        (PRDCExperiment, "--dataset churches --fake_images_path x --save_images", "--save_images does nothing with"),
        (PRDCExperiment, "--dataset churches --fake_images_path x --nearest_k 5", ""),
        (PRDCExperiment, "--dataset churches --ae_load_dir v --load_dir p --temp 1 --n_samples 9", ""),
    ],
)
def test_idle_flags_are_said(
    stage: type[Stage],
    words: str,
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "p").mkdir()
    monkeypatch.setattr(sys, "argv", ["script.py"])
    parse(stage, words.split(), description="", example="", logs=tmp_path)
    said = capsys.readouterr().err
    assert said.count("\n") == bool(expected)
    assert expected in said
    assert said.startswith("script.py: note: ") or not expected


def test_conditions_name_settings_and_their_values() -> None:
    known = {name: setting for stage in STAGES for name, setting in settings_of(stage).items()}
    for condition in CONDITIONS:
        assert set(condition.names) <= known.keys()
        assert condition.values == (None,) or set(condition.values) <= set(known[condition.other].choices or [True])


STAGE_1 = {"dataset": "churches", "ema": True, "disc_start_step": 5}
STAGE_2 = {"dataset": "churches", "ema": True, "warmup_iters": 5, "ae_load_dir": "ae"}


def test_presets_give_no_notes(tmp_path: Path) -> None:
    for dataset in DATASETS:
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
        ae = {"ae_load_dir": "ae"} if stage is PriorStage else {}
        return notes_on_length(resolve(stage, {"dataset": "churches", **ae, **typed}, logs=tmp_path))

    (line,) = notes(VQGANStage, train_steps=500)
    assert line == "--disc_start_step 30001 is beyond --train_steps 500: the discriminator never takes part"
    assert notes(VQGANStage, train_steps=500, disc_start_step=500) == []  # asks for none
    (line,) = notes(PriorStage, train_steps=500)
    assert line == "--warmup_iters 10000 is beyond --train_steps 500: the learning rate never reaches --lr"
    assert notes(PriorStage, train_steps=500, warmup_iters=500) == []
