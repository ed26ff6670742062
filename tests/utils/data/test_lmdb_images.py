"""LMDB folders: order, laziness, processes, damage, and writing whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import numpy as np
import pytest

from hparams.errors import UserError
from utils.data.images import BadImageError
from utils.data.lmdb_images import LMDBImages, write_lmdb


def items(n: int, size: int = 50) -> list[tuple[bytes, bytes]]:
    rng = np.random.default_rng(n)
    return [(rng.bytes(int(rng.integers(6, 30))).hex().encode(), rng.bytes(size)) for _ in range(n)]


def test_reads_everything_in_the_order_of_the_keys(tmp_path: Path) -> None:
    written = items(300)
    write_lmdb(tmp_path / "images_lmdb", written)
    images = LMDBImages(tmp_path / "images_lmdb")
    assert len(images) == 300
    assert [(images.key(i), images.read(i)) for i in range(300)] == sorted(written)


def test_grows_beyond_the_first_map(tmp_path: Path) -> None:
    written = [(f"{i:03}".encode(), bytes([i]) * 2_000_000) for i in range(50)]
    write_lmdb(tmp_path / "big_lmdb", written)
    images = LMDBImages(tmp_path / "big_lmdb")
    assert [images.read(i) for i in (0, 49)] == [written[0][1], written[49][1]]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    remains, other = tmp_path / ".a_lmdb.0badc0de", tmp_path / ".ba_lmdb.0badc0de"
    for folder in (remains, other):
        folder.mkdir()
        (folder / "data.mdb").write_bytes(b"half")
    write_lmdb(tmp_path / "a_lmdb", items(3))
    assert (remains.exists(), other.exists()) == (False, True)


@pytest.mark.parametrize("i", [-1, 3])
def test_index_out_of_range(i: int, tmp_path: Path) -> None:
    write_lmdb(tmp_path / "a_lmdb", items(3))
    with pytest.raises(IndexError):
        LMDBImages(tmp_path / "a_lmdb").read(i)


def test_can_be_opened_twice_in_a_process(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "a_lmdb", items(3))
    first, second = LMDBImages(tmp_path / "a_lmdb"), LMDBImages(tmp_path / "a_lmdb")
    assert first.read(1) == second.read(1)


def test_a_pickled_copy_reads_the_same_and_carries_the_keys(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "a_lmdb", items(40))
    images = LMDBImages(tmp_path / "a_lmdb")
    images.read(0)
    copy = pickle.loads(pickle.dumps(images))
    assert copy.__dict__["_file"] is None
    assert copy.key(39) == images.key(39)
    assert copy.read(39) == images.read(39)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_open_their_own(method: str, tmp_path: Path) -> None:
    write_lmdb(tmp_path / "a_lmdb", items(40))
    images = LMDBImages(tmp_path / "a_lmdb")
    own = images.read(7)
    with multiprocessing.get_context(method).Pool(1) as pool:
        value = pool.apply_async(images.read, (7,)).get(timeout=60)
    assert value == own == images.read(7)


def test_a_forked_child_reopens(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "a_lmdb", items(40))
    images = LMDBImages(tmp_path / "a_lmdb")
    value = images.read(1)
    parent = images._file
    queue = multiprocessing.get_context("fork").SimpleQueue()
    child = multiprocessing.get_context("fork").Process(
        target=lambda: queue.put((images.read(1) == value, images._file is parent))
    )
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert queue.get() == (True, False)
    assert images._file is parent


def test_an_lmdb_whose_disk_is_away_is_not_called_damaged(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "a_lmdb", items(40))
    images = LMDBImages(tmp_path / "a_lmdb")
    (tmp_path / "a_lmdb").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"data\.mdb"):
        images.read(7)
    assert not images.in_reach()
    (tmp_path / "elsewhere").rename(tmp_path / "a_lmdb")
    assert images.in_reach()
    assert images.read(7) == LMDBImages(tmp_path / "a_lmdb").read(7)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent_lmdb"):
        LMDBImages(tmp_path / "absent_lmdb")


def test_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no LMDB at"):
        LMDBImages(tmp_path)


def test_empty(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "a_lmdb", [])
    with pytest.raises(UserError, match="empty"):
        LMDBImages(tmp_path / "a_lmdb")


@pytest.mark.parametrize("content", [b"", b"\0" * 8192, b"no database at all" * 1000])
def test_not_an_lmdb(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(content)
    with pytest.raises(UserError, match="download"):
        LMDBImages(tmp_path)


@pytest.mark.parametrize("kept", [0.999, 0.9, 0.5, 0.1])
def test_truncated(kept: float, tmp_path: Path) -> None:
    write_lmdb(tmp_path / "a_lmdb", items(500, 3000))
    data = tmp_path / "a_lmdb" / "data.mdb"
    os.truncate(data, int(data.stat().st_size * kept))
    with pytest.raises(UserError, match="truncated"):
        LMDBImages(tmp_path / "a_lmdb")


def test_truncated_at_a_page(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "a_lmdb", items(500, 3000))
    data = tmp_path / "a_lmdb" / "data.mdb"
    os.truncate(data, data.stat().st_size // 2 // 4096 * 4096)
    with pytest.raises(UserError, match="truncated"):
        LMDBImages(tmp_path / "a_lmdb")


def test_a_whole_lmdb_without_its_last_free_pages_is_accepted(tmp_path: Path) -> None:
    """Much rewriting may leave free pages at the end that never reached the disk."""
    rng = np.random.default_rng(0)
    for trial in range(40):
        path, expected = tmp_path / str(trial), {}
        with lmdb.open(str(path), map_size=1 << 26, sync=False) as env:
            for _ in range(15):
                with env.begin(write=True) as txn:
                    for _ in range(60):
                        key, value = b"%03d" % rng.integers(80), rng.bytes(int(rng.choice([10, 3000, 20000])))
                        txn.put(key, value)
                        expected[key] = value
                    for key in [b"%03d" % k for k in rng.integers(80, size=30)]:
                        txn.delete(key)
                        expected.pop(key, None)
            pages = env.info()["last_pgno"] + 1
            is_short = (path / "data.mdb").stat().st_size < pages * env.stat()["psize"]
        images = LMDBImages(path)
        assert {images.key(i): images.read(i) for i in range(len(images))} == expected
        if is_short:
            return
    pytest.skip("no such file came about")


def test_pages_of_zeros_are_an_error_not_a_crash(tmp_path: Path) -> None:
    """What a download leaves that reserved the space and stopped."""
    write_lmdb(tmp_path / "a_lmdb", items(3000, 100))
    data = tmp_path / "a_lmdb" / "data.mdb"
    size = data.stat().st_size
    os.truncate(data, 8192)
    os.truncate(data, size)
    images = LMDBImages(tmp_path / "a_lmdb")
    with pytest.raises(UserError, match="damaged"):
        images.read(0)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.mdb with a tree of three levels, and values on leaves and on pages of their own."""
    rng = np.random.default_rng(0)
    long = b"x" * 400
    folder = tmp_path_factory.mktemp("sound") / "a_lmdb"
    write_lmdb(folder, ((long + b"%03d" % i, rng.bytes(5000 if i % 20 == 0 else 30)) for i in range(400)))
    return folder / "data.mdb"


def told_of(folder: Path, error: UserError) -> bool:
    """Whether an error is a line that names the LMDB."""
    return str(folder) in str(error) and "\n" not in str(error)


def read_all(folder: Path) -> dict[bytes, bytes | None]:
    """Key → value, None for one that is refused by itself."""
    images, found = LMDBImages(folder), {}
    for i in range(len(images)):
        try:
            found[images.key(i)] = images.read(i)
        except BadImageError as error:
            found[images.key(i)] = None if told_of(folder, error) else b""
    return found


def test_a_flipped_bit_harms_one_image_or_is_one_line_but_never_ends_the_process(sound: Path, tmp_path: Path) -> None:
    content, whole = sound.read_bytes(), read_all(sound.parent)
    assert len(whole) == 400
    dice, outcomes = random.Random(0), Counter()
    for _ in range(400):
        harmed = bytearray(content)
        page = dice.randrange(len(content) // 4096) * 4096
        # Headers and places of entries more often than values
        harmed[page + dice.randrange(4096 if dice.random() < 0.3 else 80)] ^= 1 << dice.randrange(8)
        (tmp_path / "data.mdb").write_bytes(harmed)
        try:
            found = read_all(tmp_path)
        except UserError as error:
            outcomes["refused" if told_of(tmp_path, error) else "badly told"] += 1
        else:
            changed = found.items() ^ whole.items()
            assert len(changed) <= 2
            outcomes["harmed" if changed else "unharmed"] += 1
    assert "badly told" not in outcomes
    assert min(outcomes[kind] for kind in ("refused", "harmed", "unharmed")) > 10, outcomes


def test_a_file_cut_off_anywhere_is_one_line(sound: Path, tmp_path: Path) -> None:
    content, dice = sound.read_bytes(), random.Random(0)
    for length in [0, 1, 15, 100, 4096, 8191, *(dice.randrange(len(content)) for _ in range(60))]:
        (tmp_path / "data.mdb").write_bytes(content[:length])
        with pytest.raises(UserError, match=r"data\.mdb again"):
            read_all(tmp_path)


def test_a_file_that_shrinks_while_it_is_read(sound: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.mdb"
    data.write_bytes(sound.read_bytes())
    images = LMDBImages(tmp_path)
    images.read(0)
    os.truncate(data, 8192)
    with pytest.raises(BadImageError, match=r"data\.mdb again"):
        images.read(0)


def test_an_lmdb_of_named_databases_is_not_called_damaged(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), max_dbs=2) as env, env.begin(write=True) as txn:
        txn.put(b"key", b"value", db=env.open_db(b"inner", txn))
    with pytest.raises(UserError) as refused:
        LMDBImages(tmp_path).read(0)
    layout = f"the LMDB {tmp_path} is not of LSUN's layout, one encoded image for each key"
    assert str(refused.value).startswith(f"{layout}: it holds named sub-databases, such as 'inner'")
    assert "again" not in str(refused.value)


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[bytes, bytes]]:
        yield from items(2000)
        raise RuntimeError("no more images")

    with pytest.raises(RuntimeError):
        write_lmdb(tmp_path / "a_lmdb", failing())
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/a_lmdb"):
        write_lmdb(tmp_path / "file" / "a_lmdb", items(3))


def test_equal_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="twice"):
        write_lmdb(tmp_path / "a_lmdb", [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")])
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_left_alone(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "a_lmdb", [(b"first", b"1")])
    write_lmdb(tmp_path / "a_lmdb", [(b"second", b"2")])
    assert LMDBImages(tmp_path / "a_lmdb").key(0) == b"first"


def test_of_writers_at_once_one_wins(tmp_path: Path) -> None:
    def write(name: bytes) -> None:
        write_lmdb(tmp_path / "a_lmdb", ((b"%s%04d" % (name, i), name) for i in range(3000)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, [b"a", b"b", b"c", b"d"]))
    images = LMDBImages(tmp_path / "a_lmdb")
    assert len(images) == 3000
    assert len({images.read(i) for i in range(3000)}) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a_lmdb"]


def test_a_loser_that_finishes_late_keeps_the_winner(tmp_path: Path) -> None:
    def overtaken() -> Iterator[tuple[bytes, bytes]]:
        yield b"late", b"1"
        write_lmdb(tmp_path / "a_lmdb", [(b"winner", b"2")])

    write_lmdb(tmp_path / "a_lmdb", overtaken())
    assert LMDBImages(tmp_path / "a_lmdb").key(0) == b"winner"
    assert [p.name for p in tmp_path.iterdir()] == ["a_lmdb"]
