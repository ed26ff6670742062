"""What several processes write one after the other, and how files are named; see also `test_disk_faults.py`."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from hparams.errors import UserError
from utils.machine import files


def test_one_process_at_a_time_has_a_file_locked_and_a_killed_one_lets_go(tmp_path: Path, capsys) -> None:
    path = tmp_path / "new" / "results.json"
    code = f"""if True:
        import pathlib, sys
        from utils.machine.files import locked
        with locked(pathlib.Path({str(path)!r})):
            print(flush=True)
            sys.stdin.read()"""

    def holder() -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"\n"  # it is in the block
        return process

    with holder() as first:
        threading.Timer(3.0, first.kill).start()
        with files.locked(path):
            assert first.poll() is not None
    assert capsys.readouterr().out == f"waiting for another process, which is writing {path}\n"
    with holder() as second:
        second.kill()
    assert not path.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "lockf", Mock(side_effect=OSError(number, os.strerror(number))))
    for block, path in ((files.sole_writer, tmp_path), (files.locked, tmp_path / "file")):
        with pytest.raises(UserError, match=f"{tmp_path}: its file system has no locks .* make logs/ a link"):
            block(path).__enter__()


def test_a_file_system_that_flushes_no_folders_takes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails otherwise, fails."""
    flush = os.fsync

    def write(folder: str, number: int) -> str:
        def files_alone(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(number, os.strerror(number))
            flush(descriptor)

        monkeypatch.setattr(os, "fsync", files_alone)
        with files.whole_file(tmp_path / folder / "file") as out:
            out.write(b"whole")
        return (tmp_path / folder / "file").read_text()

    assert write("here", errno.EINVAL) == "whole"
    with pytest.raises(OSError, match="new"):
        write("new", errno.EIO)


def test_a_key_tells_arrays_apart_by_type_shape_and_every_value() -> None:
    ids = np.arange(4000, dtype=np.int64).reshape(1000, 4)
    changed = ids.copy()
    changed[500] += 1  # printed arrays of this size leave out their middle
    others = [changed, ids.reshape(4, 1000), ids.view(np.uint64), ids.astype(np.int32), ids.tobytes()]
    keys = {files.content_key("codes", part) for part in (ids, *others)}
    assert len(keys) == 6
    assert files.content_key("codes", torch.from_numpy(ids)) == files.content_key("codes", ids.copy(order="F"))
    # Keys of text and numbers stay what they were, or what earlier versions kept would be computed again.
    key = files.content_key("samples 1", 7, 0.9, None, {"temp": 1.0}, torch.bfloat16)
    text = b"samples 1\x007\x000.9\0None\0{'temp': 1.0}\0torch.bfloat16"
    assert key == hashlib.sha256(text).hexdigest()[:24]


def test_sizes_in_words_and_the_space_that_the_nearest_folder_has(tmp_path: Path) -> None:
    told = [files.tell_bytes(count) for count in (0, 999, 1000, 36_100_000, 5 * 10**16)]
    assert told == ["0 B", "999 B", "1 kB", "36.1 MB", "5e+04 TB"]
    assert files.free_space(tmp_path / "not" / "yet") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
