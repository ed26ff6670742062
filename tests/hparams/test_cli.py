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


def read(stage_class: type[Any], line: str, logs: Path = Path("no_such_logs")) -> Any:
    return parse(stage_class, line.split(), prog="script.py", description="About.", example=EXAMPLE, logs=logs)


def refusal(stage_class: type[Any], line: str) -> str:
    with pytest.raises(UserError) as error:
        read(stage_class, line)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_published_commands() -> None:
    """All others are in the README, and tried there."""
    stage = read(VQGANStage, "--dataset churches --log_dir vqgan_churches --amp --ema --batch_size 4 --diff_aug")
    assert (stage.run.dataset, stage.run.log_dir, stage.run.batch_size) == ("churches", "vqgan_churches", 4)
    assert (stage.run.amp, stage.training.ema, stage.vqgan.diff_aug) == (True, True, True)
    assert stage.training.lr == pytest.approx(1.8e-5)
    stage = read(
        SamplesExperiment,
        "--sampler absorbing --dataset churches --log_dir FID_log --ae_load_dir vqgan_churches --ae_load_step 2200000 "
        "--load_dir absorbing_churches --load_step 2000000 --ema --n_samples 50000 --temp 0.9",
    )
    assert (stage.prior.sampler, stage.source.ae_load_dir, stage.source.ae_load_step) == (
        "absorbing",
        "vqgan_churches",
        2_200_000,
    )
    assert (stage.checkpoint.load_dir, stage.checkpoint.load_step) == ("absorbing_churches", 2_000_000)
    assert (stage.checkpoint.ema, stage.sampling.n_samples, stage.sampling.temp) == (True, 50_000, 0.9)


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
    for subject, flags in {
        "data": ("dataset", "num_workers"),
        "device and precision": ("device", "amp"),
        "dashboard and terminal": ("visdom_port", "quiet"),
        "moving average": ("ema", "ema_beta"),
        "starting and resuming": ("resume", "load_step"),
        "prior": ("bert_n_emb", "total_steps"),
    }.items():
        assert all(f"  --{flag}" in subjects[subject] for flag in flags), subject


def test_help_shows_presets_where_they_differ(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(help_of(PriorStage, capsys).split())
    assert re.search(r"--lr RATE [^(]*\(default: 0.0002; ffhq: 0.0001; custom: 0.0001; toy_churches: [\d.e-]+\)", text)
    assert "(default: <sampler>_<dataset>)" in text
    assert "bedrooms: " not in text
    assert "lengths are published for churches only" in text
    assert "(default: base_lr * global_batch; toy_churches:" in " ".join(help_of(VQGANStage, capsys).split())


@pytest.mark.parametrize(
    ("stage_class", "line", "message"),
    [
        (VQGANStage, "", f"--dataset is required: one of {', '.join(DATASETS)}"),
        (VQGANStage, "--dataset chruches", f"--dataset: 'chruches' is not one of {', '.join(DATASETS)} (did you "),
        (VQGANStage, "--dataset chruches", "(did you mean churches?)"),
        (VQGANStage, "--datset churches", "unknown flag --datset, did you mean --dataset?"),
        (VQGANStage, "--log-dir x", "unknown flag --log-dir, did you mean --log_dir?"),
        (VQGANStage, "-dataset churches", "unknown flag -dataset, did you mean --dataset?"),
        (VQGANStage, "--batch 4", "unknown flag --batch"),
        (VQGANStage, "--no_emma", "unknown flag --no_emma, did you mean --no_ema?"),
        (VQGANStage, "--xyzzy=3", "unknown flag --xyzzy: see --help"),
        (VQGANStage, "--dataset churches -- --nf 32", "unknown flag --: see --help"),
        (
            VQGANStage,
            "--dataset churches --no_dashboard",
            "unknown flag --no_dashboard: use --sinks summary, or --sinks",
        ),
        (
            VQGANStage,
            "--dataset churches --no_summary",
            "unknown flag --no_summary: use --sinks visdom, or --sinks none",
        ),
        (VQGANStage, "--dataset churches --sinks vizdom", "is not one of visdom, summary, tensorboard, wandb (did you"),
        (VQGANStage, "--dataset churches --sinks none visdom", "--sinks: give none, or values, not both"),
        (VQGANStage, "--dataset churches extra", "'extra' belongs to no flag: see --help"),
        (VQGANStage, "--dataset churches 3", "'3' belongs to no flag: see --help"),
        (VQGANStage, "--dataset churches --nf 64 32", "'32' belongs to no flag: see --help"),
        (VQGANStage, "--dataset", "--dataset needs a value: one of churches,"),
        (VQGANStage, "--log_dir --ema", "--log_dir needs a value: a text"),
        (VQGANStage, "--ema --nf", "--nf needs a value: a whole number of at least 1"),
        (VQGANStage, "--ch_mult --ema", "--ch_mult needs a value: a whole number of at least 1"),
        (VQGANStage, "--dataset churches --ema=yes", "--ema takes no value: use --ema or --no_ema"),
        (VQGANStage, "--dataset churches --nf 3.5", "--nf: '3.5' is not a whole number of at least 1"),
        (VQGANStage, "--dataset churches --lr -1", "--lr: '-1' is not a number above 0"),
        (VQGANStage, "--dataset churches --ema_beta 1", "--ema_beta: '1' is not a number of at least 0 and below 1"),
        (VQGANStage, "--dataset churches --ch_mult 1 x", "--ch_mult: 'x' is not a whole number of at least 1"),
        (SamplesExperiment, "--dataset churches --temp 0", "--temp: '0' is not a number above 0"),
        (VQGANStage, "--visdom_port 70000", "--visdom_port: '70000' is not a whole number of at least 1 and of"),
        (VQGANStage, "--max_bad_images 2", "--max_bad_images: '2' is not a number of at least 0 and below 1"),
        (VQGANStage, "--keep_states 0", "--keep_states: '0' is not a whole number of at least 1"),
        (VQGANStage, "--batch_size 0", "--batch_size: '0' is not a whole number of at least 1"),
        (VQGANStage, "--lr nan", "--lr: 'nan' is not a number above 0"),
        (VQGANStage, "--seed -1", "--seed: '-1' is not a whole number of at least 0"),
        (VQGANStage, "--amp yes", "'yes' belongs to no flag"),
        # dashes forgotten
        (SamplesExperiment, "load_dir absorbing_churches", "'load_dir' is a flag without its dashes, did you mean"),
        (SamplesExperiment, "--ema load_dir absorbing", "did you mean --load_dir?"),
        (SamplesExperiment, "--latent_shape 1 32 16 load_dir absorbing", "did you mean --load_dir?"),
        (SamplesExperiment, "--dataset churches load_dir=absorbing", "did you mean --load_dir?"),
        (SamplesExperiment, "--dataset churches no_ema", "did you mean --no_ema?"),
        (SamplesExperiment, "--dataset churches load-dir x", "did you mean --load_dir?"),
    ],
)
def test_slips_get_one_line_that_names_the_fix(stage_class: type[Stage], line: str, message: str) -> None:
    assert message in refusal(stage_class, line)


def test_a_value_may_be_spelled_like_a_flag() -> None:
    assert read(VQGANStage, "--dataset churches --log_dir ema").run.log_dir == "ema"


def test_spellings() -> None:
    stage = read(VQGANStage, "--dataset=churches --ch_mult 1 2 --attn_resolutions --nf=64 --no_ema --ema --img_size 64")
    assert (stage.autoencoder.ch_mult, stage.autoencoder.attn_resolutions, stage.autoencoder.nf) == ((1, 2), (), 64)
    assert stage.training.ema
    assert not read(VQGANStage, "--dataset churches --ema --no_ema").training.ema
    assert read(VQGANStage, "--dataset churches --dataset ffhq").run.dataset == "ffhq"


def test_any_number_of_values_or_none() -> None:
    def sinks(words: str) -> tuple[str, ...]:
        return parse(VQGANStage, ["--dataset", "churches", *words.split()], description="", example="").run.sinks

    assert sinks("") == ("visdom", "summary")
    assert sinks("--sinks summary visdom") == ("summary", "visdom")
    assert sinks("--sinks none") == sinks("--sinks") == ()


def test_switch_of_three_values() -> None:
    line = "--dataset churches --ae_load_dir ae --load_dir prior"
    got = [read(SamplesExperiment, line + more).checkpoint.ema for more in ("", " --ema", " --no_ema")]
    assert got == [None, True, False]
