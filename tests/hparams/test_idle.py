"""Flags that do nothing beside others are named, and only those."""

from __future__ import annotations

from typing import Any

import pytest

from hparams.cli import parse
from hparams.fields import settings_of
from hparams.idle import CONDITIONS
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
    stage: type[Stage], words: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    (tmp_path / "p").mkdir()
    parse(stage, words.split(), prog="script.py", description="", example="", logs=tmp_path)
    said = capsys.readouterr().err
    assert said.count("\n") == bool(expected)
    assert expected in said
    assert said.startswith("script.py: note: ") or not expected


def test_conditions_name_settings_and_their_values() -> None:
    known = {name: setting for stage in STAGES for name, setting in settings_of(stage).items()}
    for condition in CONDITIONS:
        assert set(condition.names) <= known.keys()
        assert condition.values == (None,) or set(condition.values) <= set(known[condition.other].choices or [True])
