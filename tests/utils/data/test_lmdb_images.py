"""LMDB folders: order, laziness, processes, damage, and writing whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hparams.errors import RunError, UserError
from utils.data.images import BadImageError
from utils.data.lmdb_images import LMDBImages, write_lmdb


def items(n: int, size: int = 50) -> list[tuple[bytes, bytes]]:
    rng = np.random.default_rng(n)
    return [(rng.bytes(int(rng.integers(6, 30))).hex().encode(), rng.bytes(size)) for _ in range(n)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An LMDB of 40 small values."""
    write_lmdb(tmp_path / "a_lmdb", items(40))
    return tmp_path / "a_lmdb"


@pytest.mark.parametrize(("number", "size"), [(300, 50), (50, 2_000_000)], ids=["small", "beyond the first map"])
def test_reads_everything_in_the_order_of_the_keys(number: int, size: int, tmp_path: Path) -> None:
    written = items(number, size)
    write_lmdb(tmp_path / "images_lmdb", written)
    images = LMDBImages(tmp_path / "images_lmdb")
    assert len(images) == number
    assert [(images.key(i), images.read(i)) for i in range(number)] == sorted(written)


def test_a_pickled_copy_reads_the_same_and_carries_the_keys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = LMDBImages(folder)
    images.read(0)
    copy = pickle.loads(pickle.dumps(images))
    monkeypatch.setattr(subprocess, "run", None)  # the keys are not listed again
    assert (copy.key(39), copy.read(39)) == (images.key(39), images.read(39))


def test_a_forked_child_opens_another_environment(folder: Path) -> None:
    images = LMDBImages(folder)
    value, parent = images.read(1), images._environment()
    forked = multiprocessing.get_context("fork")
    queue = forked.SimpleQueue()
    child = forked.Process(target=lambda: queue.put((images.read(1) == value, images._environment() is parent)))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert queue.get() == (True, False)
    assert images._environment() is parent


@pytest.mark.parametrize("listed", [False, True])
def test_an_lmdb_whose_disk_is_away_is_not_called_damaged(listed: bool, folder: Path) -> None:
    images = LMDBImages(folder)
    if listed:
        images.read(7)
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"data\.mdb"):
        images.read(7)
    assert not images.in_reach(7)
    folder.with_name("elsewhere").rename(folder)
    assert images.in_reach(7)
    assert images.read(7) == LMDBImages(folder).read(7)


def test_no_lmdb(tmp_path: Path) -> None:
    for folder in (tmp_path / "absent_lmdb", tmp_path):
        with pytest.raises(UserError, match=f"no LMDB at {folder} "):
            LMDBImages(folder)
    write_lmdb(tmp_path / "a_lmdb", [])
    with pytest.raises(UserError, match="empty"):
        LMDBImages(tmp_path / "a_lmdb")
    for content in (b"", b"\0" * 8192, b"no database at all" * 1000):
        (tmp_path / "data.mdb").write_bytes(content)
        with pytest.raises(UserError, match="download"):
            LMDBImages(tmp_path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.mdb with a tree of three levels, and values on leaves and on pages of their own."""
    rng = np.random.default_rng(0)
    long = b"x" * 400
    folder = tmp_path_factory.mktemp("sound") / "a_lmdb"
    write_lmdb(folder, ((long + b"%03d" % i, rng.bytes(5000 if i % 20 == 0 else 30)) for i in range(400)))
    return folder / "data.mdb"


def test_a_file_cut_off_anywhere_is_one_line(sound: Path, tmp_path: Path) -> None:
    content, dice = sound.read_bytes(), random.Random(0)
    for length in [15, 4096, len(content) - 4096, len(content) - 1, *(dice.randrange(len(content)) for _ in range(9))]:
        (tmp_path / "data.mdb").write_bytes(content[:length])
        with pytest.raises(UserError, match=r"truncated.*data\.mdb again" if length > 8192 else r"data\.mdb again"):
            LMDBImages(tmp_path)
    (tmp_path / "data.mdb").write_bytes(content)
    images = LMDBImages(tmp_path)
    images.read(0)
    os.truncate(tmp_path / "data.mdb", 8192)  # while it is read
    with pytest.raises(UserError, match=r"truncated.*data\.mdb again"):
        images.read(0)


def read_all(folder: Path) -> dict[bytes, bytes | None]:
    """Key → value, None for one that is refused by itself."""
    images = LMDBImages(folder)
    values: dict[bytes, bytes | None] = {}
    for i in range(len(images)):
        try:
            values[images.key(i)] = images.read(i)
        except BadImageError as error:
            check_line(folder, error)
            values[images.key(i)] = None
    return values


def check_line(folder: Path, error: UserError) -> None:
    assert str(folder) in str(error)
    assert "\n" not in str(error)


def test_damage_harms_some_images_or_is_one_line_but_never_ends_the_process(sound: Path, tmp_path: Path) -> None:
    """A bit flips, of headers and places of entries more often than of values; or a page is empty, as after a download
    that reserved the space and stopped."""
    content, whole = sound.read_bytes(), read_all(sound.parent)
    assert len(whole) == 400
    dice, outcomes = random.Random(0), Counter()
    for attempt in range(60):
        harmed, page = bytearray(content), dice.randrange(len(content) // 4096) * 4096
        if attempt % 2:
            harmed[page : page + 4096] = bytes(4096)
        else:
            harmed[page + dice.randrange(4096 if dice.random() < 0.3 else 80)] ^= 1 << dice.randrange(8)
        (tmp_path / "data.mdb").write_bytes(harmed)
        try:
            outcomes["unharmed" if read_all(tmp_path) == whole else "harmed"] += 1
        except UserError as error:
            check_line(tmp_path, error)
            outcomes["refused"] += 1
    assert min(outcomes["harmed"], outcomes["refused"]) > 0


@pytest.mark.parametrize(
    ("script", "error", "line"),
    [
        ("import os; os.kill(os.getpid(), 15)", RunError, "ended by SIGTERM"),
        (  # as by FUSE with direct I/O
            "import lmdb, sys; raise lmdb.Error(f'{sys.argv[1]}: No such device')",
            UserError,
            r"a_lmdb cannot be mapped into memory \(No such device\): copy it",
        ),
    ],
)
def test_what_ends_the_process_that_inspects_but_is_no_damage(
    script: str, error: type[Exception], line: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.data.lmdb_images._INSPECT", script)
    with pytest.raises(error, match=line):
        LMDBImages(folder)


def test_fewer_keys_than_the_header_says_are_damage(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(sound.read_bytes().replace(struct.pack("<Q", 400), struct.pack("<Q", 401)))
    with pytest.raises(UserError, match=r"is damaged \(400 sound keys for 401 values\)"):
        LMDBImages(tmp_path).read(0)


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="twice"):
        write_lmdb(tmp_path / "a_lmdb", [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/a_lmdb"):
        write_lmdb(tmp_path / "file" / "a_lmdb", items(3))


def test_of_writers_at_once_one_wins_and_what_killed_ones_left_goes(tmp_path: Path) -> None:
    def write(name: bytes) -> None:
        write_lmdb(tmp_path / "a_lmdb", ((b"%s%04d" % (name, i), name) for i in range(3000)))

    def overtaken() -> Iterator[tuple[bytes, bytes]]:
        yield b"late", b"1"
        write_lmdb(tmp_path / "b_lmdb", [(b"winner", b"2")])

    for killed in (".a_lmdb.0badc0de", ".ba_lmdb.0badc0de"):  # the second is of another one
        (tmp_path / killed).mkdir()
        (tmp_path / killed / "data.mdb").write_bytes(b"half")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, [b"a", b"b", b"c", b"d"]))
    write_lmdb(tmp_path / "b_lmdb", overtaken())  # a loser that finishes late keeps the winner
    images = LMDBImages(tmp_path / "a_lmdb")
    assert len(images) == 3000
    assert len({images.read(i) for i in range(3000)}) == 1
    assert LMDBImages(tmp_path / "b_lmdb").key(0) == b"winner"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".ba_lmdb.0badc0de", "a_lmdb", "b_lmdb"]
