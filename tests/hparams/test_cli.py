from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hparams.cli import parse
from hparams.errors import UserError
from hparams.fields import settings_of
from hparams.presets import DATASETS
from hparams.settings.experiments import SamplesExperiment
from hparams.settings.stages import PriorStage, Stage, VQGANStage
from stages import STAGES

EXAMPLE = "python train_vqgan.py --dataset churches  # 100%"


def read(stage_class: type[Any], line: str) -> Any:
    return parse(stage_class, line.split(), description="About.", example=EXAMPLE, logs=Path("no_such_logs"))


def test_a_published_command() -> None:
    """The others are in the README, and tried there."""
    stage = read(VQGANStage, "--dataset churches --log_dir vqgan_churches --amp --ema --batch_size 4 --diff_aug")
    assert (stage.run.dataset, stage.run.log_dir, stage.run.batch_size) == ("churches", "vqgan_churches", 4)
    assert (stage.run.amp, stage.training.ema, stage.vqgan.diff_aug) == (True, True, True)
    assert stage.training.lr == pytest.approx(1.8e-5)


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")


def help_of(stage_class: type[Stage], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        read(stage_class, "--help")
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("stage_class", STAGES.values(), ids=STAGES)
def test_help_describes_every_setting(stage_class: type[Stage], capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(stage_class, capsys)
    rows = {row.split()[0].strip(","): " ".join(row.split()) for row in re.split(r"\n +(?=--)|\n\n", text) if row}
    for setting in settings_of(stage_class).values():
        row = rows[setting.flag]
        assert setting.help in row
        assert "(default: " in row
        assert f"--no_{setting.name}" in row or setting.kind is not bool
        assert all(choice in row for choice in setting.choices)
    assert text.endswith(f"example:\n  {EXAMPLE}\n")
    assert "About." in text


def test_help_is_grouped_by_subject(capsys: pytest.CaptureFixture[str]) -> None:
    subjects = dict(re.findall(r"^([a-z ,A-Z]+):\n((?:  .*\n)+)", help_of(PriorStage, capsys), re.MULTILINE))
    expected = {"data": "num_workers", "device and precision": "amp", "dashboard and terminal": "quiet"}
    expected |= {"moving average": "ema_beta", "starting and resuming": "load_step", "prior": "total_steps"}
    assert [subject for subject, flag in expected.items() if f"  --{flag}" not in subjects[subject]] == []


def test_help_shows_presets_where_they_differ(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(help_of(PriorStage, capsys).split())
    assert re.search(r"--lr RATE [^(]*\(default: 0.0002; ffhq: 0.0001; custom: 0.0001; toy_churches: [\d.e-]+\)", text)
    assert "(default: <sampler>_<dataset>)" in text
    assert "bedrooms: " not in text
    assert "lengths are published for churches only" in text
    assert "(default: base_lr * global_batch; toy_churches:" in " ".join(help_of(VQGANStage, capsys).split())


SLIPS = [
    ("", f"--dataset is required: one of {', '.join(DATASETS)}"),
    ("--dataset chruches", f"--dataset: 'chruches' is not one of {', '.join(DATASETS)} (did you mean churches?)"),
    ("--datset churches", "unknown flag --datset, did you mean --dataset?"),
    ("--log-dir x", "unknown flag --log-dir, did you mean --log_dir?"),
    ("-dataset churches", "unknown flag -dataset, did you mean --dataset?"),
    ("--batch 4", "unknown flag --batch"),
    ("--no_emma", "unknown flag --no_emma, did you mean --no_ema?"),
    ("--xyzzy=3", "unknown flag --xyzzy: see --help"),
    ("--dataset churches -- --nf 32", "unknown flag --: see --help"),
    ("--dataset churches --no_dashboard", "unknown flag --no_dashboard: use --sinks summary, or --sinks"),
    ("--dataset churches --no_summary", "unknown flag --no_summary: use --sinks visdom, or --sinks none"),
    ("--dataset churches --sinks vizdom", "is not one of visdom, summary, tensorboard, wandb (did you"),
    ("--dataset churches --sinks none visdom", "--sinks: give none, or values, not both"),
    ("--dataset churches extra", "'extra' belongs to no flag: see --help"),
    ("--dataset churches 3", "'3' belongs to no flag: see --help"),
    ("--dataset churches --nf 64 32", "'32' belongs to no flag: see --help"),
    ("--dataset", "--dataset needs a value: one of churches,"),
    ("--log_dir --ema", "--log_dir needs a value: a text"),
    ("--ema --nf", "--nf needs a value: a whole number of at least 1"),
    ("--ch_mult --ema", "--ch_mult needs a value: a whole number of at least 1"),
    ("--dataset churches --ema=yes", "--ema takes no value: use --ema or --no_ema"),
    ("--dataset churches --nf 3.5", "--nf: '3.5' is not a whole number of at least 1"),
    ("--dataset churches --lr -1", "--lr: '-1' is not a number above 0"),
    ("--dataset churches --ema_beta 1", "--ema_beta: '1' is not a number of at least 0 and below 1"),
    ("--dataset churches --ch_mult 1 x", "--ch_mult: 'x' is not a whole number of at least 1"),
    ("--visdom_port 70000", "--visdom_port: '70000' is not a whole number of at least 1 and of at most 65535"),
    ("--max_bad_images 2", "--max_bad_images: '2' is not a number of at least 0 and below 1"),
    ("--batch_size 0", "--batch_size: '0' is not a whole number of at least 1"),
    ("--seed -1", "--seed: '-1' is not a whole number of at least 0"),
    ("--amp yes", "'yes' belongs to no flag"),
]
NO_DASHES = [
    ("load_dir absorbing_churches", "'load_dir' is a flag without its dashes, did you mean --load_dir?"),
    ("--ema load_dir absorbing", "did you mean --load_dir?"),
    ("--latent_shape 1 32 16 load_dir absorbing", "did you mean --load_dir?"),
    ("--dataset churches load_dir=absorbing", "did you mean --load_dir?"),
    ("--dataset churches no_ema", "did you mean --no_ema?"),
    ("--dataset churches load-dir x", "did you mean --load_dir?"),
]


@pytest.mark.parametrize(
    ("stage_class", "line", "message"),
    [(VQGANStage, *slip) for slip in SLIPS] + [(SamplesExperiment, *slip) for slip in NO_DASHES],
)
def test_slips_get_one_line_that_names_the_fix(stage_class: type[Stage], line: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read(stage_class, line)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_value_may_be_spelled_like_a_flag() -> None:
    assert read(VQGANStage, "--dataset churches --log_dir ema").run.log_dir == "ema"


def test_spellings() -> None:
    stage = read(VQGANStage, "--dataset=churches --ch_mult 1 2 --attn_resolutions --nf=64 --no_ema --ema --img_size 64")
    assert (stage.autoencoder.ch_mult, stage.autoencoder.attn_resolutions, stage.autoencoder.nf) == ((1, 2), (), 64)
    assert stage.training.ema
    assert not read(VQGANStage, "--dataset churches --ema --no_ema").training.ema
    assert read(VQGANStage, "--dataset churches --dataset ffhq").run.dataset == "ffhq"


def test_any_number_of_values_or_none() -> None:
    for words, sinks in (
        ("", ("visdom", "summary")),
        ("--sinks summary visdom", ("summary", "visdom")),
        *((words, ()) for words in ("--sinks none", "--sinks")),
    ):
        assert read(VQGANStage, f"--dataset churches {words}").run.sinks == sinks


def test_switch_of_three_values() -> None:
    for words, ema in (("", None), ("--ema", True), ("--no_ema", False)):
        assert read(SamplesExperiment, f"--dataset churches --ae_load_dir a --load_dir p {words}").checkpoint.ema == ema
