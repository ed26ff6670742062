"""Whole runs on a disk that fills up, on one that takes nothing, and on one whose files cannot be mapped."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from compare import same_files
from warm import Shell


@pytest.fixture
def mount() -> Iterator[Callable[..., None]]:
    """Does what `mount` does; skips the test where that needs root."""
    mounted: set[Path] = set()

    def do(*words: str | Path, folder: Path) -> None:
        try:
            subprocess.run(["mount", *words, folder], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting needs root")
        mounted.add(folder)

    yield do
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def resize(tiny: Shell, mount: Callable[..., None]) -> Callable[[int], None]:
    """Gives the disk of logs/run, which is a file system of its own, another size in kB."""
    folder = tiny.logs / "run"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", folder=folder)
    return lambda kilobytes: mount("-o", f"remount,size={kilobytes}k", folder=folder)


def size_of(folder: Path) -> int:
    """kB of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) // 1000


def test_a_run_outlives_a_full_disk_and_goes_on_when_there_is_room(tiny: Shell, resize: Callable[[int], None]) -> None:
    command = f"{tiny.stage_1} --dataset custom --steps_per_checkpoint 4"
    tiny.ok(f"{command} --train_steps 16 --log_dir once")
    step = size_of(tiny.logs / "once") / 6  # four steps' weights, two steps' states of the same size

    tiny.ok(f"{command} --train_steps 4 --log_dir run")
    resize(int(size_of(tiny.logs / "run") + 2.5 * step))  # the next save fits, and the one after it does not
    resume = "train_vqgan.py --resume --log_dir run --train_steps 16"
    ended = tiny.run(resume)
    said = ended.out + ended.err
    assert ended.code == 1, said
    assert "WARNING: checkpoints to come take" in said
    assert "could not be saved in logs/run/saved_models (No space left on device); the run goes on" in said
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith("train_vqgan.py: error: step 16 could not be saved in logs/run/saved_models (No space left")
    assert "the same command goes on from the newest saved step" in last
    assert "Traceback" not in said

    resize(64_000)
    assert "continuing after step 8" in tiny.ok(resume)
    for name in ("vqgan_16.th", "vqgan_ema_16.th"):
        assert same_files(*(tiny.logs / which / "saved_models" / name for which in ("run", "once")))
    saved = {file.name for file in (tiny.logs / "run/saved_models").iterdir()}
    assert saved >= {"vqgan_4.th", "vqgan_8.th", "vqgan_16.th"}


def test_not_even_one_step_fits(tiny: Shell, resize: Callable[[int], None]) -> None:
    resize(100)
    ended = tiny.run(f"{tiny.stage_1} --dataset custom --train_steps 4 --log_dir run")
    assert ended.code == 2
    assert "logs/run: a checkpoint takes" in ended.err
    assert ended.err.strip().endswith("is free: make room")
    assert not list((tiny.logs / "run").iterdir())


STAGE_2 = "--dataset custom --train_steps 2"
SCORES = "experiments/calc_VQGAN_FID.py {AE} --features r64 --n_samples 6 --kid_subsets 0 --log_dir scores"


def test_codes_and_features_are_kept_in_the_run_where_their_folders_are_read_only(
    tiny: Shell, mount: Callable[..., None]
) -> None:
    logs = tiny.logs
    (logs / "features").mkdir()
    shutil.rmtree(logs / "ae/latents")
    for folder in (logs / "ae", logs / "features"):
        if os.getuid():
            folder.chmod(0o555)
        else:
            mount("--bind", folder, folder=folder)
            mount("-o", "remount,bind,ro", folder=folder)
    for number in range(2):
        out = tiny.ok(f"{tiny.stage_2} {STAGE_2} --log_dir new{number}")
        assert f"logs/ae/latents cannot be written: logs/new{number}/latents is used in its place" in out
        assert len(list((logs / f"new{number}/latents").glob("*/*.npy"))) == 1
    for encodings in (1, 0):
        out = tiny.ok(f"{SCORES} --quiet", SIMPLE_FEATURES="1")
        for name, own in (("ae/latents", "latents"), ("features", "features")):
            assert (f"logs/{name} cannot be written: logs/scores/{own} is used" in out) == bool(encodings)
    assert len(list((logs / "scores/features").glob("*/*.npy"))) == 3  # of both sets, and the statistics of one
    assert not list((logs / "features").iterdir())


def test_nothing_needs_files_that_are_mapped_shared(tiny: Shell) -> None:
    """FUSE refuses that for direct I/O. Stage 2 and FID, from the first array to the last."""
    fid = SCORES.replace("calc_VQGAN_FID", "calc_FID") + " --load_dir prior"
    for command in (f"{tiny.stage_2} {STAGE_2} --log_dir new", SCORES, fid.replace("scores", "fid")):
        tiny.ok(f"tests/helpers/without_maps.py {command}", SIMPLE_FEATURES="1")
    for name in ("ae/latents", "scores/features", "fid/samples", "fid/features", "features"):
        assert list((tiny.logs / name).glob("*/*.npy")), name
