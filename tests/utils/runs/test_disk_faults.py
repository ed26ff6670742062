"""Disks that fail, for real (a small tmpfs) and at every single operation: what was saved before stays usable."""

from __future__ import annotations

import errno
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hparams.errors import UserError
from hparams.resolve import resolve
from hparams.settings.stages import VQGANStage
from hparams.settings.training import TrainingSettings
from jobs import a_job
from utils.data.bad_images import BadImages
from utils.data.lmdb_images import write_lmdb
from utils.data.pictures import save_png
from utils.machine.files import sole_writer
from utils.runs import shards
from utils.runs.checkpoints import load_state, save_step
from utils.runs.logged import read_metrics, read_newest
from utils.runs.record import Record
from utils.runs.results import record_result
from utils.runs.retention import clean_up
from utils.runs.run_folder import VQGAN, RunFolder, save_settings
from utils.runs.shards import Rows, Shards
from utils.sampling.sample_files import write_samples


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(8, 8)


def save(folder: RunFolder, step: int) -> None:
    save_step(folder, VQGAN, step, {False: network(), True: network()}, {"trainer": torch.arange(step)})


@contextmanager
def failing_disk(fail_at: int, number: int) -> Iterator[itertools.count]:
    """Fails one operation on files, and, when the disk is full, all that come after it.

    Operations are counted from 0: writing, flushing to disk, making and renaming.
    """
    operations, opened = itertools.count(), Path.open

    def counted(operation: Any) -> Any:
        def count(*arguments: Any, **options: Any) -> Any:
            late = next(operations) - fail_at
            if late == 0 or (late > 0 and number == errno.ENOSPC):  # a full disk stays full, an odd error passes
                raise OSError(number, os.strerror(number))
            return None if operation.__name__ == "fsync" else operation(*arguments, **options)

        return count

    def counting(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        file = opened(path, mode, *arguments, **options)
        if "r" not in mode:
            file.write = counted(file.write)
        return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", counting)
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "mkdir"), (Path, "touch")):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        yield operations


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_a_save_may_fail_at_every_operation(tmp_path: Path, number: int) -> None:
    save(RunFolder("count", tmp_path), 5)
    with failing_disk(sys.maxsize, 0) as operations:
        save(RunFolder("count", tmp_path), 10)
    count = next(operations)
    assert count > 40
    for fail_at in range(count):
        folder = RunFolder(f"run_{fail_at}", tmp_path)
        save(folder, 5)
        with pytest.raises(OSError) as failure, failing_disk(fail_at, number):
            save(folder, 10)
        assert failure.value.errno == number, fail_at
        newest = folder.state_steps(VQGAN)[-1]
        assert newest == folder.model_steps(VQGAN)[-1], fail_at
        for step in folder.state_steps(VQGAN):
            assert load_state(folder, VQGAN, step)["trainer"].tolist() == list(range(step))
        assert newest == 5 or folder.unfinished_steps(VQGAN) == []
        save(folder, 15)
        clean_up(folder, VQGAN, 15, TrainingSettings())
        names = {file.name for file in folder.saved_models.iterdir()}
        kept = {5, 15} if newest == 5 else {5, 10, 15}
        states = {f"vqgan_state_{step}.th" for step in sorted(kept)[-2:]}
        assert names == states | {f"vqgan{ema}_{step}.th" for step in kept for ema in ("", "_ema")}, fail_at


def test_what_a_name_stands_for_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a machine that loses power may leave an empty file under it, or a half step that looks whole."""
    done: list[str] = []
    rename = Path.replace

    def sync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        done.append("sync " + re.sub(r"^(\..*)[.][0-9]+$", r"\1", name))  # of a temporary name without its number

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", lambda path, to: done.append(f"name {to.name}") or rename(path, to))
    save(RunFolder("run", tmp_path), 5)
    made = [f"sync {folder.name}" for folder in (tmp_path, tmp_path / "run", tmp_path / "run/saved_models")]
    files = ("vqgan_5.th", "vqgan_ema_5.th", "vqgan_state_5.th")  # the state, which vouches for the others, comes last
    assert done == made + [act for file in files for act in (f"sync .{file}", f"name {file}", "sync saved_models")]
    done.clear()
    WRITERS["hparams.yaml"](tmp_path)
    assert done == ["sync .hparams.yaml", "name hparams.yaml", f"sync {tmp_path.name}"]
    done.clear()
    with a_job() as job:
        pixels = torch.zeros((2, 3, 8, 8), dtype=torch.uint8)
        write_samples(job, 2, lambda part: pixels, tmp_path / "images", individually=True)
    *synced, name, last = done
    assert {"sync 000000.png", "sync 000001.png", "sync samples"} <= set(synced)
    assert (name, last) == ("name samples", "sync images")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, leave: int = 0) -> None:
    """Take the whole disk, then give `leave` bytes back."""
    with (disk / "filler").open("wb", buffering=0) as file:
        with suppress(OSError):
            while True:
                file.write(bytes(4096))
        file.truncate(max(0, file.tell() - leave))


def test_parts_on_a_full_disk_are_whole_or_absent(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_rows() -> Rows:
        shards, like = Shards(disk / "rows"), np.empty((), np.float32)
        with a_job() as job:
            return shards.fill(job, 20_000, like, lambda *_: iter([torch.ones(2000)] * 10), what="rows", size=2000)

    fill(disk, 20_000)
    with pytest.raises(UserError, match="80 kB more is needed"):
        fill_rows()
    monkeypatch.setattr(shards, "free_space", lambda folder: 10**9)  # as when another takes the room in between
    with pytest.raises(OSError) as failure:
        fill_rows()
    assert failure.value.errno == errno.ENOSPC
    assert str(disk / "rows") in failure.value.filename
    parts = list((disk / "rows").iterdir())
    assert parts
    (disk / "filler").unlink()
    assert fill_rows()[:].sum() == 20_000
    assert set(parts) <= set((disk / "rows").iterdir())


# How to write, in a folder, each kind of file.
WRITERS: dict[str, Callable[[Path], Any]] = {
    "hparams.yaml": lambda disk: save_settings(resolve(VQGANStage, {"dataset": "churches"}), disk / "hparams.yaml"),
    "results.json": lambda disk: record_result(disk / "results.json", {"n": 1}, {"fid": 2.0, "note": "x" * 5000}),
    "a.png": lambda disk: save_png(disk / "a.png", np.zeros((3, 64, 64), np.uint8)),
    "lmdb/data.mdb": lambda disk: write_lmdb(disk / "lmdb", [(b"k", bytes(2000))]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_appear_whole_or_not_at_all_on_a_full_disk(disk: Path, name: str) -> None:
    fill(disk)
    with pytest.raises((OSError, UserError), match=f"No space left.*{disk}|{disk}.*No space left"):  # in which folder
        WRITERS[name](disk)
    assert {file.name for file in disk.iterdir()} <= {"filler", ".results.json.lock"}
    (disk / "filler").unlink()
    WRITERS[name](disk)
    before = (disk / name).read_bytes()
    fill(disk)
    if "lmdb" not in name:  # which is never written twice
        with pytest.raises(OSError):
            WRITERS[name](disk)
    assert (disk / name).read_bytes() == before


def test_a_lock_on_a_full_disk_names_its_file(disk: Path) -> None:
    fill(disk)
    with pytest.raises(OSError) as failure, sole_writer(disk):
        pass
    assert failure.value.filename == str(disk / ".lock")
    (disk / "filler").unlink()
    with sole_writer(disk):
        assert (disk / ".lock").read_text().startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize("individually", [False, True])
def test_samples_on_a_full_disk_are_no_set(disk: Path, individually: bool) -> None:
    images, pixels = disk / "images", torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    fill(disk, 8192)
    with a_job() as job:
        with pytest.raises(OSError) as failure:
            write_samples(job, 64, lambda part: pixels, images, individually=individually)
        assert str(failure.value.filename).endswith(".png")
        assert not list(images.glob("*.png")) + list(images.glob("samples/*"))
        (disk / "filler").unlink()
        write_samples(job, 64, lambda part: pixels, images, individually=individually)
    assert len(list(images.glob("samples/*.png"))) == 64 * individually
    assert len(list(images.glob("*.png"))) == 1 - individually


def test_logs_wait_for_room_and_lose_nothing(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder("run", disk)
    record = Record(folder, resume_step=None)
    bad = BadImages(folder.bad_images, 0.9, record.warn, keep=False)
    record.text("run", "x" * 9000)
    fill(disk)
    for step in range(1, 400):
        record.scalars(step, "train", {"loss": 1 / step})
        record.text("run", f"{step}" * 3000)
        record.sync()
    bad.report({"a.png": "cannot read a.png"}, 10)
    assert [file.name for file in folder.path.glob("*newest*")] == ["newest.json"]
    assert read_newest(folder.newest)["texts"] == {"run": "x" * 9000}
    (disk / "filler").unlink()
    record.scalars(400, "train", {"loss": 0.5})
    bad.report({"b.png": "cannot read b.png"}, 10)
    record.close()
    assert [line["step"] for line in read_metrics(folder.metrics)] == list(range(1, 401))
    assert read_newest(folder.newest)["texts"] == {"run": "399" * 3000}
    assert folder.bad_images.read_text().count("\n") == 2
    said = capsys.readouterr()
    for name in ("metrics.jsonl", "newest.json"):
        assert (said.out + said.err).count(f"{name}: No space left on device") == 1
