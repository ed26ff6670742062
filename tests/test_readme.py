"""The README's commands are those that the scripts take, and its pictures are there."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Indented blocks, and code within a line.
COMMANDS = re.findall(r"(?:^    |`)(python3? (?:train_|experiments/)[^`\n]*)", README, re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the data and the runs that the commands name; nothing is loaded by --dry_run."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("church_outdoor_train_lmdb", "church_outdoor_val_lmdb"):
        (folder / "lsun" / name).mkdir(parents=True)
        with lmdb.open(str(folder / "lsun" / name)) as environment, environment.begin(write=True) as transaction:
            transaction.put(b"0" * 40, b"an image")
    (folder / "datasets.yaml").write_text("churches:\n  paths: lsun\n")
    (folder / "photos").mkdir()
    Image.new("RGB", (64, 64)).save(folder / "photos" / "a.png")
    for run, file in (
        ("vqgan_churches", "vqgan_2200000"),
        ("absorbing_churches", "absorbing_2000000"),
        ("demo/vqgan", "vqgan_1100"),
        ("demo/absorbing", "absorbing_2200"),
        ("vqgan_photos", "vqgan_9"),
    ):
        (folder / "logs" / run / "saved_models").mkdir(parents=True)
        (folder / "logs" / run / "saved_models" / f"{file}.th").touch()
    (folder / "logs/vqgan_photos/hparams.yaml").write_text("dataset: custom\nimg_size: 64\nch_mult: [1, 2, 4]\n")
    return folder


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_a_command_is_accepted(folder: Path, command: str) -> None:
    _, script, *flags = shlex.split(command)
    log_dir = flags[flags.index("--log_dir") + 1]
    run = folder / "logs" / log_dir
    if "--resume" in flags:
        (run / "saved_models" / "vqgan_state_1100.th").touch()
        (run / "hparams.yaml").write_text("dataset: toy_churches\n")
    elif run.exists():
        log_dir = f"again/{log_dir}"  # the run that later commands load is there already
        flags[flags.index("--log_dir") + 1] = log_dir
    done = subprocess.run(
        [sys.executable, ROOT / script, *flags, "--dry_run"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_demo_runs_the_commands_that_are_shown() -> None:
    demo = runpy.run_path(str(ROOT / "demo.py"))
    for name in ("TRAIN_VQGAN", "TRAIN_PRIOR", "GET_SAMPLES"):
        assert f"python3 {demo[name]}" in COMMANDS


def test_its_pictures_are_there() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        with Image.open(ROOT / picture) as image:
            assert min(image.size) > 100


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z]+)(?=[ `])", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
