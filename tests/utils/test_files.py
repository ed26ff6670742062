"""What several processes write one after the other; how files are written is tried where disks fail."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from hparams import saved
from hparams.errors import UserError
from utils import files


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
