"""Runs whose data or whose place for temporary files are not what they were."""

from __future__ import annotations

import os
import shutil
import signal
import time

import pytest

from compare import same_files
from warm import Shell, until

STEPS = 60


def away(tiny: Shell, command: str, ranks: int = 1, photos: str = "photos") -> list[int]:
    """Process ids of a run in `logs/run` whose photos were moved away, once one of them misses them."""
    pids = tiny.start_together(f"{command} --log_dir run", ranks)
    metrics = tiny.logs / "run/metrics.jsonl"
    until(lambda: metrics.exists() and metrics.stat().st_size > 0)
    (tiny.folder / photos).rename(tiny.folder / "elsewhere")
    until(lambda: any("trying again" in (tiny.folder / f".{pid}.err").read_text() for pid in pids))
    return pids


def newest(tiny: Shell) -> int:
    """The step of the only training state."""
    (state,) = (tiny.logs / "run/saved_models").glob("vqgan_state_*.th")
    return int(state.stem.rpartition("_")[2])


def ends_alike(tiny: Shell) -> None:
    assert same_files(*(tiny.logs / f"{run}/saved_models/vqgan_ema_{STEPS}.th" for run in ("run", "undisturbed")))
    assert not (tiny.logs / "run/bad_images.txt").exists()


@pytest.mark.parametrize(("photos", "workers"), [("photos", 2), ("disk", 0)])
def test_data_that_are_away_for_a_moment_change_nothing(tiny: Shell, photos: str, workers: int) -> None:
    """All, or a part of them behind a link to a network disk, beside files of the folder itself."""
    if photos == "disk":
        (tiny.folder / "disk").mkdir()
        for photo in sorted((tiny.folder / "photos").iterdir())[8:]:
            photo.rename(tiny.folder / "disk" / photo.name)
        (tiny.folder / "photos/linked").symlink_to("../disk")
    command = f"{tiny.stage_1} --dataset custom --train_steps {STEPS} --num_workers {workers}"
    tiny.ok(f"{command} --log_dir undisturbed")
    (pid,) = away(tiny, command, photos=photos)
    (tiny.folder / "elsewhere").rename(tiny.folder / photos)
    assert tiny.wait(pid).code == 0
    ends_alike(tiny)


def test_a_logs_folder_that_is_away_for_a_moment_ends_no_run(tiny: Shell) -> None:
    """As a link to a disk; a save that fails is tried again at the next checkpoint."""
    disk = tiny.logs.rename(tiny.folder / "disk")
    tiny.logs.symlink_to(disk)
    pid = tiny.start(f"{tiny.stage_1} --dataset custom --train_steps 100000 --steps_per_checkpoint 5 --log_dir run")
    saved = disk / "run/saved_models"
    until(lambda: any(saved.glob("vqgan_state_*.th")))
    disk.rename(tiny.folder / "elsewhere")
    until(lambda: "could not be saved" in (tiny.folder / f".{pid}.out").read_text())
    (tiny.folder / "elsewhere").rename(disk)
    before = set(saved.glob("vqgan_state_*.th"))
    until(lambda: bool(set(saved.glob("vqgan_state_*.th")) - before))
    os.kill(pid, signal.SIGTERM)
    assert tiny.wait(pid).code == 143


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_waits_for_its_data_heeds_a_signal_and_loses_no_step(tiny: Shell, workers: int) -> None:
    command = f"{tiny.stage_1} --dataset custom --train_steps {STEPS} --num_workers {workers}"
    tiny.ok(f"{command} --log_dir undisturbed")
    (pid,) = away(tiny, command)
    os.kill(pid, signal.SIGTERM)
    ended = tiny.wait(pid)
    assert ended.code == 143
    assert f"stopped by SIGTERM after step {newest(tiny)};" in ended.out
    (tiny.folder / "elsewhere").rename(tiny.folder / "photos")
    assert f"continuing after step {newest(tiny)}" in tiny.ok("train_vqgan.py --resume --log_dir run")
    ends_alike(tiny)


def test_a_process_that_alone_misses_its_copy_of_the_data_saves_what_all_did(tiny: Shell) -> None:
    for rank in (0, 1):
        shutil.copytree(tiny.folder / "photos", tiny.folder / f"photos_{rank}")
    (tiny.folder / "datasets.yaml").write_text("custom: {paths: photos_$RANK}\n")
    command = f"{tiny.stage_1} --dataset custom --train_steps {STEPS} --batch_size 2"
    assert all(tiny.wait(pid).code == 0 for pid in tiny.start_together(f"{command} --log_dir undisturbed", 2))
    first, second = away(tiny, command, 2, "photos_1")
    os.kill(second, signal.SIGTERM)
    assert tiny.wait(second).code == 143
    assert tiny.wait(first).code == 1
    step, resume = newest(tiny), "train_vqgan.py --resume --log_dir run"
    photo = (tiny.folder / "elsewhere").rename(tiny.folder / "photos_1") / "07.png"
    content = photo.read_bytes()
    photo.unlink()  # a copy of other data is refused
    ended = [tiny.wait(pid) for pid in tiny.start_together(resume, 2)]
    assert 2 in [one.code for one in ended]
    assert any("--dataset custom: other names or sizes of files on rank 1 on " in one.err for one in ended), ended
    photo.write_bytes(content)
    resumed = [tiny.wait(pid) for pid in tiny.start_together(resume, 2)]
    assert f"continuing after step {step}" in resumed[0].out
    ends_alike(tiny)


@pytest.mark.parametrize("ranks", [1, 2])
def test_workers_need_nothing_of_the_temporary_folder(tiny: Shell, ranks: int) -> None:
    """Its path may be longer than the address of a socket, and cleaners empty it."""
    temporary = tiny.folder / ("t" * 100)
    temporary.mkdir()
    command = f"{tiny.stage_1} --dataset custom --train_steps 12 --num_workers 2 --log_dir run"
    pids = tiny.start_together(command, ranks, TMPDIR=str(temporary))
    while None in map(tiny.code, pids):
        for left in temporary.glob("pymp-*"):
            shutil.rmtree(left, ignore_errors=True)
        time.sleep(0.05)
    assert [tiny.wait(pid).code for pid in pids] == [0] * ranks
