"""Whole runs on a disk that fills up, on one that takes nothing, and on one whose files cannot be mapped."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compare import same_files


@pytest.fixture
def small_disk(tiny) -> Iterator[Any]:
    """`tiny`, its logs/run on a file system of its own; `resize` gives that another size in kB."""
    folder = tiny.folder / "logs/run"
    folder.mkdir()

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)

    try:
        mount("size=64m")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a tmpfs needs root")
    tiny.resize = lambda kilobytes: mount(f"remount,size={kilobytes}k")
    yield tiny
    subprocess.run(["umount", "--lazy", folder], check=True)


def size_of(folder: Path) -> int:
    """kB of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) // 1000


def test_a_run_outlives_a_full_disk_and_goes_on_when_there_is_room(small_disk) -> None:
    tiny, run = small_disk, small_disk.folder / "logs/run"
    command = f"{tiny.stage_1} --dataset custom --steps_per_checkpoint 4"
    tiny.ok(f"{command} --train_steps 16 --log_dir once")
    step = size_of(tiny.folder / "logs/once") / 6  # four steps' weights, two steps' states of the same size

    tiny.ok(f"{command} --train_steps 4 --log_dir run")
    tiny.resize(int(size_of(run) + 2.5 * step))  # the next save fits, and the one after it does not
    ended = tiny.run("train_vqgan.py --resume --log_dir run --train_steps 16")
    said = ended.out + ended.err
    assert ended.code == 1, said
    assert "WARNING: checkpoints to come take" in said
    assert "could not be saved in logs/run/saved_models (No space left on device); the run goes on" in said
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith("train_vqgan.py: error: step 16 could not be saved in logs/run/saved_models (No space left")
    assert "the same command goes on from the newest saved step" in last
    assert "Traceback" not in said

    tiny.resize(64_000)
    out = tiny.ok("train_vqgan.py --resume --log_dir run --train_steps 16")
    assert "continuing after step 8" in out
    for name in ("vqgan_16.th", "vqgan_ema_16.th"):
        assert same_files(*(tiny.folder / f"logs/{which}/saved_models/{name}" for which in ("run", "once")))
    assert {f.name for f in (run / "saved_models").iterdir()} >= {"vqgan_4.th", "vqgan_8.th", "vqgan_16.th"}


def test_not_even_one_step_fits(small_disk) -> None:
    small_disk.resize(100)
    ended = small_disk.run(f"{small_disk.stage_1} --dataset custom --train_steps 4 --log_dir run")
    assert ended.code == 2
    assert "logs/run: a checkpoint takes" in ended.err
    assert ended.err.strip().endswith("is free: make room")
    assert not list((small_disk.folder / "logs/run").iterdir())


@pytest.fixture
def make_read_only() -> Iterator[Callable[[Path], None]]:
    """Makes a folder read-only, for root too."""
    mounted = []

    def make(folder: Path) -> None:
        if os.getuid():
            folder.chmod(0o555)
            return
        try:
            for words in (["--bind", folder, folder], ["-o", "remount,bind,ro", folder]):
                subprocess.run(["mount", *words], check=True, capture_output=True)
                mounted.append(folder)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("a read-only folder needs a bind mount for root")

    yield make
    for folder in set(mounted):
        subprocess.run(["umount", "--lazy", folder], check=True)


STAGE_2 = "--dataset custom --train_steps 2"
SCORES = (
    "experiments/calc_VQGAN_FID.py --ae_load_dir ae --features r64 --n_samples 6 --kid_subsets 0 --batch_size 4 "
    "--device cpu --num_workers 0 --visdom_port 9 --sinks visdom --log_dir scores"
)


def test_codes_and_features_are_kept_in_the_run_where_their_folders_are_read_only(
    tiny: Any, make_read_only: Callable[[Path], None]
) -> None:
    logs = tiny.folder / "logs"
    (logs / "features").mkdir()
    shutil.rmtree(logs / "ae/latents")
    for name in ("ae", "features"):
        make_read_only(logs / name)
    for number in range(2):
        out = tiny.ok(f"{tiny.stage_2} {STAGE_2} --log_dir new{number}")
        assert f"logs/ae/latents cannot be written: logs/new{number}/latents is used in its place" in out
        assert len(list((logs / f"new{number}/latents").glob("*/*.npy"))) == 1
    for encodings in (1, 0):
        ended = tiny.wait(tiny.start(f"{SCORES} --quiet", SIMPLE_FEATURES="1"))
        assert ended.code == 0, ended.err
        for name, own in (("ae/latents", "latents"), ("features", "features")):
            assert (f"logs/{name} cannot be written: logs/scores/{own} is used" in ended.out) == bool(encodings)
    assert len(list((logs / "scores/features").glob("*/*.npy"))) == 3  # of both sets, and the statistics of one
    assert not list((logs / "features").iterdir())


def test_nothing_needs_files_that_are_mapped_shared(tiny: Any) -> None:
    """FUSE refuses that for direct I/O. Stage 2 and FID, from the first array to the last."""
    fid = SCORES.replace("calc_VQGAN_FID", "calc_FID") + " --load_dir prior"
    for command in (f"{tiny.stage_2} {STAGE_2} --log_dir new", SCORES, fid.replace("scores", "fid")):
        ended = tiny.wait(tiny.start(f"tests/helpers/without_maps.py {command}", SIMPLE_FEATURES="1"))
        if ended.code == 77:
            pytest.skip("this system has no seccomp filters")
        assert ended.code == 0, ended.err
    for name in ("ae/latents", "scores/features", "fid/samples", "fid/features", "features"):
        assert list((tiny.folder / "logs" / name).glob("*/*.npy")), name
