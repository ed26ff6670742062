"""The README's commands are those that the scripts take, and its pictures are there."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image

from utils.data.lmdb_images import write_lmdb

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Indented blocks, and code within a line.
COMMANDS = re.findall(r"(?:^    |`)(python3? (?:train_|experiments/)[^`\n]*)", README, re.MULTILINE)
STARTED = re.findall(r"^    .*torchrun .* ((?:train_|experiments/).*)", README, re.MULTILINE)
COMMANDS += [f"python3 {script}" for script in STARTED]
DATASETS = ("churches", "bedrooms", "ffhq")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the data and the runs that the commands name; nothing is loaded by --dry_run."""
    folder = tmp_path_factory.mktemp("readme")
    for stem in ("church_outdoor", "bedroom"):
        for split in ("train", "val"):
            write_lmdb(folder / f"lsun/{stem}_{split}_lmdb", [(b"0" * 40, b"an image")])
    for name in ("photos", "ffhq"):
        (folder / name).mkdir()
        for i in range(20):
            Image.new("RGB", (64, 64)).save(folder / name / f"{i}.png")
    (folder / "datasets.yaml").write_text("churches: {paths: lsun}\nbedrooms: {paths: lsun}\nffhq: {paths: ffhq}\n")
    runs = {f"vqgan_{name}": "vqgan_2200000" for name in (*DATASETS, "ablation")}
    runs |= {f"absorbing_{dataset}": "absorbing_2000000" for dataset in DATASETS}
    runs |= {"vqgan_photos": "vqgan_9", "demo/vqgan": "vqgan_1100", "demo/absorbing": "absorbing_1650"}
    for run, file in runs.items():
        (folder / "logs" / run / "saved_models").mkdir(parents=True)
        (folder / "logs" / run / "saved_models" / f"{file}.th").touch()
    (folder / "logs/vqgan_photos/hparams.yaml").write_text("dataset: custom\nimg_size: 64\nch_mult: [1, 2, 4]\n")
    (folder / "logs/demo/vqgan/saved_models/vqgan_state_1100.th").touch()
    (folder / "logs/demo/vqgan/metrics.jsonl").touch()
    (folder / "logs/demo/vqgan/hparams.yaml").write_text("dataset: toy_churches\n")
    return folder


def with_log_dir(name: str) -> str:
    """The README's command that writes to a run folder."""
    return next(command for command in COMMANDS if f"--log_dir {name} " in command)


def numbers() -> Iterator[tuple[str, str]]:
    """Each number of the paper: what the tables call it, and the command that measures it or trains for it."""
    section = README.split("## Reproducing the paper")[1].split("\n## ")[0]
    for row in re.findall(r"^\| (.* \| `.*) \|$", section, re.MULTILINE):
        name, flags, *cells = (cell.strip(" `") for cell in row.split("|"))
        kind = name.split(",")[0]
        if kind in ("FID", "PRDC"):
            for dataset, cell in zip(DATASETS, cells, strict=True):
                if cell:
                    yield f"{name} {cell}", f"{with_log_dir(f'{kind}_{dataset}')} {flags}"
        else:
            for dataset, cell in zip(("churches", "ffhq"), cells, strict=True):
                yield f"{name} {cell}", f"{with_log_dir('vqgan_ablation')} --dataset {dataset} {flags}"


def test_every_number_of_the_paper_has_a_command() -> None:
    assert len(COMMANDS) >= 10
    assert len(dict(numbers())) == 6 + 8 + 4 + 6 + 8  # FID, by steps for churches and FFHQ, PRDC, the ablation


ALL = [*((str(number), command) for number, command in enumerate(COMMANDS)), *numbers()]


@pytest.mark.parametrize("command", [command for _, command in ALL], ids=[name for name, _ in ALL])
def test_a_command_is_accepted(folder: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --dry_run in this process, where it raises what the script would end with."""
    _, script, *flags = shlex.split(command)
    if "--resume" not in flags and "replay" not in script:
        flags[flags.index("--log_dir") + 1] = "new"  # the run that later commands load is there already
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [script, *flags, "--dry_run"])
    runpy.run_path(str(ROOT / script))["main"]()


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


def test_data_sets_go_where_datasets_yaml_has_them() -> None:
    entries = yaml.safe_load((ROOT / "datasets.yaml").read_text(encoding="utf-8"))
    for dataset in DATASETS:
        (row,) = re.findall(rf"^\| .*`{dataset}`.* \|$", README.split("## Data sets")[1], re.MULTILINE)
        (folder,) = re.findall(r"`(data/\w+)/`", row)
        paths = entries[dataset]["paths"]
        assert all(path.startswith(folder) for path in (paths.values() if isinstance(paths, dict) else [paths]))


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z-]+)(?=[ `])", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
