"""What several processes write one after the other; how files are written is tried where disks fail."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from hparams import saved
from hparams.errors import UserError
from utils.machine import files


@pytest.mark.parametrize(("attempts", "said"), [(19, 0), (20, 1), (99, 1)])
def test_a_wait_is_said_once_it_is_long(
    attempts: int, said: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "_BETWEEN_ATTEMPTS", 0.0)
    outcomes = [False] * attempts + [True]
    with files.exclusive(tmp_path, lambda _: outcomes.pop(0)):
        assert not outcomes
    assert capsys.readouterr().out.count(f"waiting for another process, which is at work in {tmp_path}") == said


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)
    for block in (files.exclusive, files.sole_writer):
        with pytest.raises(UserError, match=f"{tmp_path}: its file system has no locks .* make logs/ a link"):
            block(tmp_path).__enter__()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_flushes_no_folders_takes_files(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails otherwise, fails."""
    flush = os.fsync

    def files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    def write() -> None:
        with files.whole_file(tmp_path / "new" / "file") as out:
            out.write(b"whole")
        saved._write_whole(tmp_path / "hparams.yaml", "whole")

    monkeypatch.setattr(os, "fsync", files_alone)
    if number == errno.EINVAL:
        write()
        assert (tmp_path / "new" / "file").read_text() == (tmp_path / "hparams.yaml").read_text() == "whole"
    else:
        with pytest.raises(OSError, match="new"):
            write()
        with pytest.raises(OSError, match="hparams"):
            saved._write_whole(tmp_path / "hparams.yaml", "whole")


def test_a_key_tells_arrays_apart_by_type_shape_and_every_value() -> None:
    ids = np.arange(4000, dtype=np.int64).reshape(1000, 4)
    changed = ids.copy()
    changed[500] += 1  # printed arrays of this size leave out their middle
    others = [changed, ids.reshape(4, 1000), ids.view(np.uint64), ids.astype(np.int32), ids.tobytes()]
    keys = {files.content_key("codes", part) for part in (ids, *others)}
    assert len(keys) == 6
    assert files.content_key("codes", torch.from_numpy(ids)) == files.content_key("codes", ids.copy(order="F"))


def test_keys_of_text_and_numbers_stay_what_they_were() -> None:
    """Else what earlier versions kept would be computed again."""
    parts = ("samples 1", 7, 0.9, None, {"temp": 1.0}, torch.bfloat16)
    assert (
        files.content_key(*parts)
        == hashlib.sha256(b"samples 1\x007\x000.9\0None\0{'temp': 1.0}\0torch.bfloat16").hexdigest()[:24]
    )
