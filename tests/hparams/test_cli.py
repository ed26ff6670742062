from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hparams.cli import parse, run_script
from hparams.errors import UserError
from hparams.fields import settings_of
from hparams.presets import DATASETS
from hparams.saved import save
from hparams.settings.experiments import SamplesExperiment
from hparams.settings.stages import PriorStage, Stage, VQGANStage
from stages import STAGES

Ended = tuple[int, str]
EXAMPLE = "python train_vqgan.py --dataset churches  # 100%"


def read(stage_class: type[Any], line: str, logs: Path = Path("no_such_logs")) -> Any:
    return parse(stage_class, line.split(), prog="script.py", description="About.", example=EXAMPLE, logs=logs)


def refusal(stage_class: type[Any], line: str) -> str:
    with pytest.raises(UserError) as error:
        read(stage_class, line)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_published_vqgan_command() -> None:
    line = "--dataset churches --log_dir vqgan_churches --amp --ema --batch_size 4"
    stage = read(VQGANStage, line)
    assert (stage.run.dataset, stage.run.log_dir, stage.run.batch_size) == ("churches", "vqgan_churches", 4)
    assert (stage.run.amp, stage.training.ema, stage.vqgan.diff_aug) == (True, True, False)
    assert stage.training.lr == pytest.approx(1.8e-5)
    assert read(VQGANStage, line + " --diff_aug").vqgan.diff_aug


def test_published_sampler_command() -> None:
    stage = read(
        PriorStage,
        "--sampler absorbing --dataset churches --log_dir absorbing_churches --ae_load_dir vqgan_churches "
        "--ae_load_step 2200000 --amp --ema",
    )
    assert (stage.prior.sampler, stage.source.ae_load_dir, stage.source.ae_load_step) == (
        "absorbing",
        "vqgan_churches",
        2_200_000,
    )
    assert (stage.training.lr, stage.run.batch_size) == (2e-4, 20)


def test_published_experiment_flags() -> None:
    stage = read(
        SamplesExperiment,
        "--sampler absorbing --dataset churches --log_dir FID_log --ae_load_dir vqgan_churches --ae_load_step 2200000 "
        "--load_dir absorbing_churches --load_step 2000000 --ema --n_samples 50000 --temp 0.9",
    )
    assert (stage.checkpoint.load_dir, stage.checkpoint.load_step) == ("absorbing_churches", 2_000_000)
    assert (stage.checkpoint.ema, stage.sampling.n_samples, stage.sampling.temp) == (True, 50_000, 0.9)


# All published flags of the two training scripts.
COMMON = """dataset custom_dataset_path batch_size lr train_steps amp ema ema_beta no_ema steps_per_update_ema load_dir
    load_step load_optim log_dir visdom_server visdom_port steps_per_log steps_per_eval steps_per_checkpoint
    steps_per_display_output steps_per_save_output save_individually horizontal_flip"""
VQGAN_FLAGS = """quantizer codebook_size emb_dim nf ch_mult res_blocks attn_resolutions img_size latent_shape n_channels
    ndf disc_layers disc_start_step disc_weight_max perceptual_weight base_lr beta diff_aug gumbel_kl_weight
    gumbel_straight_through"""
SAMPLER_FLAGS = """sampler ae_load_dir ae_load_step bert_n_emb bert_n_head bert_n_layers block_size attn_pdrop
    embd_pdrop resid_pdrop loss_type mask_schedule total_steps sample_steps sample_type temp warmup_iters"""


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")


def help_of(stage_class: type[Stage], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        read(stage_class, "--help")
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("stage_class", "flags"), [(VQGANStage, VQGAN_FLAGS), (PriorStage, SAMPLER_FLAGS)])
def test_help_has_every_published_flag(
    stage_class: type[Stage], flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = set(re.findall(r"--(\w+)", help_of(stage_class, capsys)))
    assert set((COMMON + " " + flags).split()) <= listed


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


def test_only_typed_flags_reach_resolution(tmp_path: Path) -> None:
    save(read(VQGANStage, "--dataset toy_churches --nf 64 --no_amp --log_dir mine"), tmp_path / "mine" / "hparams.yaml")
    stage = read(VQGANStage, "--log_dir mine --resume", tmp_path)
    assert (stage.run.dataset, stage.autoencoder.nf, stage.run.amp) == ("toy_churches", 64, False)
    assert read(VQGANStage, "--log_dir mine --resume --amp", tmp_path).run.amp


SCRIPT = """
import os
import signal
import sys
from hparams.cli import parse, run_script
from hparams.saved import describe
from hparams.settings.stages import VQGANStage

def main():
    stage = parse(VQGANStage, description="About.", example="python train.py --dataset churches")
    if stage.run.seed == 3:
        raise KeyboardInterrupt
    if stage.run.seed == 4:
        raise RuntimeError("a fault of the program")
    if stage.run.seed == 5:
        os.kill(os.getpid(), signal.SIGUSR1)
    print(describe(stage))
    heavy = {"torch", "numpy", "PIL", "visdom"} & set(sys.modules)
    assert not heavy, heavy

run_script(main)
"""


def shell(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    script = folder / "train.py"
    script.write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, str(script), *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def test_script_prints_settings_without_heavy_imports(tmp_path: Path) -> None:
    done = shell(tmp_path, "--dataset", "churches")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^  dataset +churches$", done.stdout, re.MULTILINE)


def test_script_reports_the_users_mistakes_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "logs" / "mine").mkdir(parents=True)
    (tmp_path / "logs" / "mine" / "hparams.yaml").write_text("nf: [1,\n")
    for words, message in (
        (["--dataset", "chruches"], "train.py: error: --dataset: 'chruches' is not one of "),
        (["load_dir", "x"], "train.py: error: 'load_dir' is a flag without its dashes, did you mean --load_dir?\n"),
        (["--log_dir", "mine", "--resume"], "train.py: error: logs/mine/hparams.yaml, line 2: is not valid YAML"),
    ):
        done = shell(tmp_path, *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(message)
        assert done.stderr.count("\n") == 1


def test_script_interrupted_and_faulty(tmp_path: Path) -> None:
    interrupted = shell(tmp_path, "--dataset", "churches", "--seed", "3")
    assert (interrupted.returncode, interrupted.stderr) == (130, "")
    faulty = shell(tmp_path, "--dataset", "churches", "--seed", "4")
    assert faulty.returncode == 1
    assert "RuntimeError: a fault of the program" in faulty.stderr


def test_a_schedulers_sigusr1_ends_no_script(tmp_path: Path) -> None:
    done = shell(tmp_path, "--dataset", "churches", "--seed", "5")
    assert (done.returncode, done.stderr) == (0, "")
    assert "seed" in done.stdout


@pytest.mark.parametrize(("stdout", "stderr"), [("full", "lost"), ("full", "full"), ("closed", "closed")])
def test_a_script_outlives_its_terminal(stdout: str, stderr: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hparams.cli import run_script\n"
        "def main():\n"
        "    for line in range(9999): print(line)\n"
        "    print('a warning', file=sys.stderr, flush=True)\n"
        "    Path('done').touch()\n"
        "run_script(main)"
    )
    reader, writer = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("w") as full, os.fdopen(writer, "w") as closed:
        streams = {"full": full, "closed": closed, "lost": subprocess.DEVNULL}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, stdout=streams[stdout], stderr=streams[stderr], timeout=60
        )
    assert done.returncode == 0
    assert (tmp_path / "done").exists()


def test_a_terminal_that_lacks_characters_gets_the_others(tmp_path: Path) -> None:
    code = (
        "import sys; from hparams.cli import run_script\n"
        "def main():\n"
        "    print('FID 4.07 of caf\u00e9/\\udce9')\n"
        "    print('note: \u00b1', file=sys.stderr)\n"
        "run_script(main)"
    )
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"FID 4.07 of caf\\xe9/\\udce9\n")
    assert done.stderr == b"note: \\xb1\n"


def test_help_needs_no_run_and_no_yaml(tmp_path: Path) -> None:
    done = shell(tmp_path, "--dataset", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: train.py ")


def test_a_folder_without_access_is_the_users_to_mend(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "logs/a")

    with pytest.raises(SystemExit) as ended:
        run_script(main)
    line = "logs/a: Permission denied: give this user access to it, or name another folder"
    assert (ended.value.code, capsys.readouterr().err.partition("error: ")[2]) == (2, f"{line}\n")


@pytest.fixture
def ended(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """ended(main, words): exit status and stderr of a script in an empty folder."""

    def run(main: Callable[[], None], *words: str) -> Ended:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["script.py", *words])
        try:
            run_script(main)
        except SystemExit as end:
            return int(end.code or 0), capfd.readouterr().err
        except Exception:  # as the interpreter does
            return 1, traceback.format_exc()

    return run


FAULTS: dict[str, Callable[[Path], object]] = {
    "FileExistsError": lambda folder: folder.mkdir(),
    "FileNotFoundError": lambda folder: (folder / "no/such").read_bytes(),
    "IsADirectoryError": lambda folder: folder.read_bytes(),
    "NotADirectoryError": lambda folder: (folder / "file/below").read_bytes(),
    "OSError": lambda folder: folder.rename(folder / "within"),  # of two names, and of a number that no list holds
}


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("place", ["logs/run", "given", "{tmp}/typed"])
def test_errors_about_paths_are_the_users_where_the_user_named_them(
    ended: Callable[..., Ended], tmp_path: Path, kind: str, place: str
) -> None:
    folder = Path(place.format(tmp=tmp_path))
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "file").touch()

    def main() -> None:
        FAULTS[kind](folder)

    code, said = ended(main, "--log_dir", "run", "--fake_images_path", "given", f"--out={tmp_path}/typed")
    assert (code, said.count("\n")) == (2 if kind != "OSError" else 1, 1)
    assert said.startswith(f"script.py: error: {folder}")
    if "logs" not in place:  # nor did the user name it
        code, said = ended(main, "--log_dir", "run")
        assert code == 1
        assert f"{kind}: " in said
        assert "Traceback" in said


def test_a_limit_of_open_files_is_no_matter_of_the_path(ended: Callable[..., Ended]) -> None:
    def main() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "logs/run/a")

    code, said = ended(main)
    assert code == 1
    assert "ulimit -n" in said


def test_the_traceback_of_a_line_is_shown_when_asked_for(ended: Callable[..., Ended]) -> None:
    def main() -> None:
        try:
            {}["the cause"]
        except KeyError:
            raise UserError("--nf: too few") from None

    assert ended(main) == ended(main, "--traceback", "--no_traceback") == (2, "script.py: error: --nf: too few\n")
    code, said = ended(main, "--traceback")
    assert code == 2
    assert said.startswith("Traceback (most recent call last)")
    assert "KeyError: 'the cause'" in said
    assert said.endswith("\nscript.py: error: --nf: too few\n")


TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "9"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in sorted(TORCHRUN.keys() - {"MASTER_ADDR"}) for value in ("", "one", "-1")),
        ("MASTER_ADDR", ""),
        ("WORLD_SIZE", None),
        ("MASTER_PORT", None),
        ("RANK", "2"),
        ("LOCAL_WORLD_SIZE", "0"),
    ],
)
def test_what_torchrun_would_not_set_is_refused(
    ended: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, name: str, value: str | None
) -> None:
    for each, one in (TORCHRUN | {name: value}).items():
        monkeypatch.setenv(each, one) if one is not None else monkeypatch.delenv(each, raising=False)
    code, said = ended(lambda: None)
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith(f"script.py: error: the environment variable {name} ")
    assert "unset RANK" in said


def test_run_script_joins_lines(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError("first\n  second")

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith("error: first second\n")


def test_hparams_imports_nothing_of_ours_and_no_torch() -> None:
    code = (
        "import sys, hparams.cli, hparams.resolve, hparams.presets\n"
        "print(sorted({'torch', 'numpy', 'yaml', 'models', 'utils'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
