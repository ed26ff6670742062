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

LOADED = "--ae_load_dir v --load_dir p"
WORDS: dict[type[Stage], str] = {VQGANStage: "", PriorStage: "--ae_load_dir v", PRDCExperiment: ""}
WORDS |= {SamplesExperiment: LOADED, LargerExperiment: LOADED}


@pytest.mark.parametrize(
    ("stage", "words", "expected"),
    [
        (VQGANStage, "--beta 0.5", ""),
        (VQGANStage, "--beta 0.5 --quantizer gumbel", "--beta does nothing with --quantizer gumbel"),
        (VQGANStage, "--dataset toy_churches --quantizer gumbel", ""),  # the preset's own flags are not typed
        (VQGANStage, "--custom_dataset_path x", "--custom_dataset_path does nothing with --dataset"),
        (VQGANStage, "--dataset custom --custom_dataset_path x", ""),
        (VQGANStage, "--ema_beta 0.9", "--ema_beta does nothing with --no_ema"),
        (VQGANStage, "--sinks none --visdom_base_url x", "does nothing with --sinks none"),
        (VQGANStage, "--ema_beta 0.9 --ema", ""),
        (VQGANStage, "--ema_warmup", "--ema_warmup does nothing with --no_ema"),
        (SamplesExperiment, "--amp_dtype float16", "with --no_amp"),
        (PriorStage, "--loss_type mlm --reweighting paper", "with --loss_type mlm"),
        (SamplesExperiment, "--sample_steps 3", ""),
        (SamplesExperiment, "--sampler autoregressive --sample_steps 3", "--sample_steps does nothing with --sampler"),
        (PRDCExperiment, "--fake_images_path x --temp 1", "--temp does nothing with --fake_images_path x"),
        (LargerExperiment, "--sample_steps 3", "--sample_steps does nothing with --order raster"),
        (PRDCExperiment, "--fake_images_path x --save_images", "--save_images does nothing with"),
        (PRDCExperiment, "--fake_images_path x --nearest_k 5", ""),
        (PRDCExperiment, f"{LOADED} --temp 1 --n_samples 9", ""),
    ],
)
def test_idle_flags_are_said(
    stage: type[Stage], words: str, expected: str, capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "p").mkdir()
    monkeypatch.setattr(sys, "argv", ["script.py"])
    words = f"--dataset churches {WORDS[stage]} {words}"
    parse(stage, words.split(), description="", example="", logs=tmp_path)
    said = capsys.readouterr().err
    assert said.count("\n") == bool(expected)
    assert expected in said
    assert said.startswith("script.py: note: ") or not expected


def test_conditions_name_settings_and_their_values() -> None:
    known = {name: setting for stage in WORDS for name, setting in settings_of(stage).items()}
    for names, other, values in CONDITIONS:
        assert {*names, other} <= known.keys()
        assert values == (None,) or set(values) <= set(known[other].choices or [True])


def notes(stage: type[VQGANStage | PriorStage], logs: Path, **typed: Any) -> list[str]:
    ae = {"ae_load_dir": "ae"} if stage is PriorStage else {}
    return notes_on_length(resolve(stage, {"dataset": "churches", **ae, **typed}, logs=logs))


def test_presets_give_no_notes(tmp_path: Path) -> None:
    for dataset in DATASETS:
        assert notes(VQGANStage, tmp_path, dataset=dataset, ema=True) == []
        assert notes(PriorStage, tmp_path, dataset=dataset, ema=True) == []


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
@pytest.mark.parametrize(("stage", "start"), [(VQGANStage, "disc_start_step"), (PriorStage, "warmup_iters")])
def test_a_run_shorter_than_five_time_constants_of_its_average(
    stage: type[VQGANStage | PriorStage], start: str, changes: dict[str, Any], said: bool, tmp_path: Path
) -> None:
    lines = notes(stage, tmp_path, **{"ema": True, start: 5, **changes})
    assert len(lines) == said
    assert all(flag in line for line in lines for flag in ("--train_steps", "--ema_warmup", "--ema_beta"))


@pytest.mark.parametrize(
    ("stage", "start", "line"),
    [
        (VQGANStage, "disc_start_step", "--disc_start_step 30001 is beyond {}: the discriminator never takes part"),
        (PriorStage, "warmup_iters", "--warmup_iters 10000 is beyond {}: the learning rate never reaches --lr"),
    ],
)
def test_what_would_begin_after_the_end(
    stage: type[VQGANStage | PriorStage], start: str, line: str, tmp_path: Path
) -> None:
    assert notes(stage, tmp_path, train_steps=500) == [line.format("--train_steps 500")]
    assert notes(stage, tmp_path, **{"train_steps": 500, start: 500}) == []  # asks for none
