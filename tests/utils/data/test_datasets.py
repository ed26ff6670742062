"""Data sets by name: where they lie, splits, orders, fingerprints, errors. Real LMDBs and folders, made here."""

from __future__ import annotations

import os
import re
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from hparams.errors import UserError
from hparams.presets import DATASETS
from hparams.settings.data import DataSettings
from utils.data.datasets import ImageData, Split, check_images, custom_paths, find_paths, open_images
from utils.data.image_folders import IMAGE_SUFFIXES, list_images
from utils.data.images import BadImageError
from utils.data.lmdb_images import write_lmdb

SPLITS: tuple[Split, ...] = ("train", "val", "all")
REPOSITORY = Path(__file__).parents[3]


def written(folder: Path, text: str, name: str = "datasets.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("entry", ["ffhq: {paths: faces}", "ffhq:\n  path: faces", "ffhq: faces", "ffhq: ~/$SETS"])
def test_a_folder_relative_to_the_file(entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SETS", "faces")
    (tmp_path / "faces").mkdir()
    assert find_paths("ffhq", written(tmp_path, entry)).folder() == tmp_path / "faces"


@pytest.mark.parametrize(
    "entry",
    [
        "churches: {paths: lsun}",
        "churches: {paths: {train: lsun/church_outdoor_train_lmdb, val: lsun/church_outdoor_val_lmdb}}",
        "churches: {paths: lsun/church_outdoor_train_lmdb}",
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_lmdb_of_a_split(entry: str, split: str, tmp_path: Path) -> None:
    for name in SPLITS[:2]:
        folder = tmp_path / f"lsun/church_outdoor_{name}_lmdb"
        folder.mkdir(parents=True)
        (folder / "data.mdb").touch()
    found = find_paths("churches", written(tmp_path, entry)).lmdb(split, "church_outdoor")
    assert found == tmp_path / f"lsun/church_outdoor_{split}_lmdb"


def test_published_file_is_read_when_ours_is_absent(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    written(tmp_path, "ffhq: {path: faces}", "datasets.yml")
    assert find_paths("ffhq", tmp_path / "datasets.yaml").folder() == tmp_path / "faces"
    written(tmp_path, "ffhq: {path: .}", "datasets.yaml")
    assert find_paths("ffhq", tmp_path / "datasets.yaml").folder() == tmp_path
    assert find_paths("ffhq", tmp_path / "datasets.yml").folder() == tmp_path / "faces"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"datasets\.yaml has no entry churches"),
        ("bedrooms: {paths: lsun}", r"datasets\.yaml has no entry churches"),
        ("churches: {folder: lsun}", r"`paths` of churches"),
        ("churches: {paths: 7}", r"`paths` of churches"),
        ("churches: {paths: {train: a, test: b}}", r"`paths` of churches"),
        ("churches: {paths: {val: a}}", "no train path for churches"),
        ("churches: {paths: nowhere}", r"nowhere/church_outdoor_train_lmdb.*datasets\.yaml"),
        ("[churches]", "must map"),
        ("churches: {paths: [", r"cannot read .*datasets\.yaml"),
        ("churches: !!python/object:os.system {}", r"cannot read .*datasets\.yaml"),
        ("since: 2020-13-01", r"cannot read .*datasets\.yaml"),
        pytest.param("churches: " + 5000 * "[", r"cannot read .*datasets\.yaml", id="deep"),
        ("churches: ~no_such_user/lsun", r"~no_such_user/lsun/church_outdoor_train_lmdb.*datasets\.yaml"),
    ],
)
def test_errors_are_one_line_that_names_the_file(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        find_paths("churches", written(tmp_path, text)).lmdb("train", "church_outdoor")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["sets.yaml", "~no_such_user/sets.yaml", "", ".", "/"])
def test_missing_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--datasets_file"):
        find_paths("churches", name)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere for ffhq: put it there .* or correct ffhq in .*datasets\.yaml"):
        find_paths("ffhq", written(tmp_path, "ffhq: {paths: nowhere}")).folder()
    with pytest.raises(UserError, match="single folder"):
        find_paths("ffhq", written(tmp_path, "ffhq: {paths: {train: a, val: b}}")).folder()


def test_custom_flag_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--custom_dataset_path FOLDER"):
        custom_paths(DataSettings("custom", None, tmp_path / "datasets.yaml"))
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
    file = written(tmp_path, "custom: {paths: theirs}")
    assert custom_paths(DataSettings("custom", "mine", file)).folder().resolve() == tmp_path / "mine"
    assert custom_paths(DataSettings("custom", None, file)).folder() == tmp_path / "theirs"
    with pytest.raises(UserError, match=r"nowhere for custom: correct --custom_dataset_path"):
        custom_paths(DataSettings("custom", tmp_path / "nowhere", file)).folder()


def test_the_file_in_the_repository_names_every_data_set() -> None:
    for dataset in set(DATASETS) - {"custom"}:
        paths = find_paths(dataset, REPOSITORY / "datasets.yaml").paths
        assert all(path.startswith("data/") for path in ([paths] if isinstance(paths, str) else paths.values()))


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (20 + number % 7, 18), (number % 256, 255 - number % 256, 90))


def save_pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / name)


def write_lsun(folder: Path, stem: str, n_train: int, n_val: int) -> None:
    """Values alternate between WebP and JPEG, as LSUN's may be either."""
    for split, n, offset in (("train", n_train, 0), ("val", n_val, 100)):
        values = []
        for i in range(n):
            buffer = BytesIO()
            picture(offset + i).save(buffer, "WEBP" if i % 2 else "JPEG", quality=95)
            values.append((f"{i:040x}".encode(), buffer.getvalue()))
        write_lmdb(folder / f"{stem}_{split}_lmdb", values)


def open_custom(folder: Path, split: Split, hold_out: bool = True, img_size: int = 16) -> ImageData:
    return open_images(DataSettings("custom", str(folder)), split=split, img_size=img_size, hold_out=hold_out)


def open_toys(folder: Path, split: Split, **changes: int) -> ImageData:
    options = {"img_size": 16, "seed": 3, **changes}
    toys = DataSettings("toy_churches", None, str(folder / "datasets.yaml"), options.pop("toy_images", 20))
    return open_images(toys, split=split, hold_out=True, **options)


@pytest.mark.parametrize(("dataset", "stem"), [("churches", "church_outdoor"), ("bedrooms", "bedroom")])
def test_lsun(dataset: str, stem: str, tmp_path: Path) -> None:
    write_lsun(tmp_path / "lsun", stem, 12, 5)
    file = written(tmp_path, f"{dataset}: {{paths: lsun}}")
    train, val, every = (
        open_images(DataSettings(dataset, None, file), split=split, img_size=16, hold_out=split != "train")
        for split in SPLITS
    )
    assert (len(train), len(val), len(every)) == (12, 5, 12)
    for data, offset in ((train, 0), (val, 100), (every, 0)):
        for i in range(5):
            image = data[i]
            assert (image.dtype, image.shape) == (np.uint8, (3, 16, 16))
            expected = (offset + i, 255 - offset - i, 90)
            np.testing.assert_allclose(image.astype(float).mean((1, 2)), expected, atol=6)
    assert val.source(3).endswith(f"{stem}_val_lmdb:{3:040x}")
    assert train.name == dataset
    assert train.fingerprint == every.fingerprint != val.fingerprint


def test_nested_folders_are_in_image_folder_order(tmp_path: Path) -> None:
    names = ["b/2.png", "b/10.png", "b-x/1.jpg", "a/z/9.webp", "a/z.PNG", "a/z-y/8.jpeg", "B/1.JPG", "b/c/d/0.bmp"]
    save_pictures(tmp_path, *names, "b/B.png")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    published = [Path(file) for file, _ in ImageFolder(str(tmp_path)).samples]
    assert len(published) == 9
    assert list_images(tmp_path) == published


def test_every_ending_of_an_image_is_read(tmp_path: Path) -> None:
    """`list_images` and the README name the same ones."""
    for number, suffix in enumerate(sorted(IMAGE_SUFFIXES)):
        picture(number).save(tmp_path / f"{number}{suffix}", "JPEG" if suffix == ".jfif" else None)
    data = open_custom(tmp_path, "all")
    assert [data[i].shape for i in range(len(data))] == [(3, 16, 16)] * len(IMAGE_SUFFIXES)
    (named,) = re.findall(r"files that end in (.+?) are read", (REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert set(named.split()) == IMAGE_SUFFIXES


TWELVE = [f"{number:02}" for number in range(12)]


@pytest.mark.parametrize(
    ("saved", "links", "listed"),
    [
        ("set/10.png set/2.PNG set/a.webp set/B.jpg set/1.JPEG", {}, "1.JPEG 10.png 2.PNG B.jpg a.webp"),
        ("set/a.png set/z/b.png", {}, "z/b.png a.png"),  # subfolders first
        ("set/a.png set/.thumbs/a.png set/c/b.png set/c/.old/b.png set/._a.png", {}, "c/b.png a.png"),  # nothing hidden
        (  # a folder goes by its own name before that of a link
            "set/m/0.png set/m/n/1.png elsewhere/2.png elsewhere/deep/3.png",
            {"set/a": "set/m/n", "set/b": "elsewhere/deep", "set/c": "elsewhere", "set/z": "elsewhere"},
            "b/3.png c/2.png m/0.png m/n/1.png",
        ),
        (  # links of linked folders lead to no folder above either
            "not_of_it.png set/a.png elsewhere/b.png further/c.png",
            {"set/link": "elsewhere", "elsewhere/link": "further", "further/link": ".", "set/up": "set"},
            "link/b.png link/link/c.png a.png",
        ),
        (  # of folders that link to each other each is entered once: else there would be more paths than can be listed
            " ".join(f"set/{name}/a.png" for name in TWELVE),
            {f"set/{name}/to_{other}": f"set/{other}" for name in TWELVE for other in TWELVE},
            " ".join(f"{name}/a.png" for name in TWELVE),
        ),
    ],
)
def test_files_below_a_folder_and_its_links(saved: str, links: dict[str, str], listed: str, tmp_path: Path) -> None:
    save_pictures(tmp_path, *saved.split())
    (tmp_path / "set/LICENSE.txt").write_text("no image")
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    assert [file.relative_to(tmp_path / "set").as_posix() for file in list_images(tmp_path / "set")] == listed.split()


@pytest.mark.parametrize(("n", "n_train"), [(2, 1), (19, 18), (20, 19), (21, 19), (40, 38)])
def test_held_out_split(n: int, n_train: int, tmp_path: Path) -> None:
    save_pictures(tmp_path, *(f"{i:03}.png" for i in range(n)))
    sources = {s: [d.source(i) for i in range(len(d))] for s in SPLITS for d in [open_custom(tmp_path, s)]}
    assert len(sources["train"]) == n_train
    assert sources["train"] + sources["val"] == sources["all"]
    assert len(open_custom(tmp_path, "train", hold_out=False)) == n
    with pytest.raises(ValueError, match="held out"):
        open_custom(tmp_path, "val", hold_out=False)


@pytest.mark.parametrize("text", [None, "", "ffhq: {paths: faces}", "toy_churches:", "toy_churches: {paths: toys}"])
def test_toy_churches_are_written_on_first_use_where_the_file_says(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        written(tmp_path, text)
    train, val, every = (open_toys(tmp_path, split, toy_images=800, img_size=4) for split in SPLITS)
    assert (len(train), len(val), len(every)) == (800, 80, 800)
    folder = tmp_path / ("toys" if text and "paths: toys" in text else "data/toy_churches") / "4px_800_3"
    assert sorted(p.name for p in folder.iterdir()) == ["toy_churches_train_lmdb", "toy_churches_val_lmdb"]
    assert val.source(0).startswith(str(folder))
    assert len(open_toys(tmp_path, "val")) == 64
    assert {train[i].tobytes() for i in range(800)}.isdisjoint(val[i].tobytes() for i in range(80))


def test_checking_looks_at_the_held_out_part_too_and_writes_nothing(tmp_path: Path) -> None:
    check_images(DataSettings("toy_churches", None, str(tmp_path / "datasets.yaml")))
    assert list(tmp_path.iterdir()) == []
    write_lsun(tmp_path, "church_outdoor", 3, 1)
    file = written(tmp_path, "churches: {paths: {train: church_outdoor_train_lmdb}}")
    check_images(DataSettings("churches", None, file), hold_out=False)
    with pytest.raises(UserError, match="no val path"):
        check_images(DataSettings("churches", None, file))


def test_fingerprint_is_stable_and_tells_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pictures(tmp_path, *(f"{i}.png" for i in range(40)))
    first = open_custom(tmp_path, "train").fingerprint
    assert open_custom(tmp_path, "train").fingerprint == first
    prints = {first, open_custom(tmp_path, "val").fingerprint, open_custom(tmp_path, "train", img_size=17).fingerprint}
    os.utime(tmp_path / "0.png", (1, 1))
    prints.add(open_custom(tmp_path, "train").fingerprint)
    picture(50).save(tmp_path / "00.png")
    prints.add(open_custom(tmp_path, "train").fingerprint)
    # Images that became readable keep their times of change; what was cached of them was of others that stood in.
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read whatever its mode says
    prints.add(open_custom(tmp_path, "train").fingerprint)
    assert len(prints) == 6


def test_fingerprint_of_an_lmdb_tells_its_size_and_change(tmp_path: Path) -> None:
    small, large = (open_toys(tmp_path, "train", toy_images=n) for n in (5, 6))
    assert small.fingerprint == open_toys(tmp_path, "train", toy_images=5).fingerprint != large.fingerprint
    assert small.fingerprint != open_toys(tmp_path, "val", toy_images=5).fingerprint
    (file,) = tmp_path.rglob("*_5_*/toy_churches_train_lmdb/data.mdb")
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # other images may take as many pages
    assert small.fingerprint != open_toys(tmp_path, "train", toy_images=5).fingerprint


def test_copies_of_a_folder_have_one_listing_unless_a_name_or_a_size_differs(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "a", tmp_path / "b"
    save_pictures(ours, *(f"x/{i}.png" for i in range(20)))
    shutil.copytree(ours, theirs, copy_function=shutil.copyfile)  # with other times

    def equal() -> list[bool]:
        return [open_custom(ours, split).listing == open_custom(theirs, split).listing for split in SPLITS]

    os.utime(theirs / "x/3.png", (1, 1))
    assert equal() == [True] * 3
    (theirs / "x/3.png").rename(theirs / "x/33.png")  # which takes no other place
    assert equal() == [False, True, False]
    (theirs / "x/33.png").rename(theirs / "x/3.png")
    with (theirs / "x/9.png").open("ab") as file:
        file.write(b"\0")
    assert equal() == [True, False, False]
    (theirs / "x/9.png").unlink()
    (theirs / "x/9.png").symlink_to("nowhere")
    assert equal() == [True, False, False]


def test_so_have_copies_of_an_lmdb(tmp_path: Path) -> None:
    values = {b"a": bytes(5000), b"b": b"345"}
    others = {"same": values, "key": {b"a": bytes(5000), b"c": b"345"}, "size": {b"a": bytes(9000), b"b": b"345"}}
    for name, items in others.items():
        write_lmdb(tmp_path / name, items.items())
    write_lmdb(tmp_path / "copy", list(values.items())[::-1])
    listings = {name: open_custom(tmp_path / name, "all").listing for name in (*others, "copy")}
    assert listings["copy"] == listings["same"]
    assert len(set(listings.values())) == 3


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'church'.*--dataset.*churches, bedrooms, ffhq, custom, toy_churches"):
        open_images(DataSettings("church"), split="train", img_size=8, hold_out=False)
    (tmp_path / "a.txt").write_text("no image")
    with pytest.raises(UserError, match=r"no images in .*correct --custom_dataset_path"):
        open_custom(tmp_path, "train")
    save_pictures(tmp_path, "a.png")
    assert len(open_custom(tmp_path, "train", hold_out=False)) == 1
    with pytest.raises(UserError, match="one image"):
        open_custom(tmp_path, "train")


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a_broken.jpg").write_bytes(b"no image")
    os.mkfifo(tmp_path / "set/b_pipe.png")
    (tmp_path / "set/c_link.png").symlink_to(tmp_path / "target")
    write_lmdb(tmp_path / "packed", [(b"0a1b", b"no image")])
    images, packed = open_custom(tmp_path / "set", "all"), open_custom(tmp_path / "packed", "all")
    lines = (r"set/a_broken\.jpg", r"b_pipe\.png .*not a regular file", r"c_link\.png .*No such file", "packed:0a1b")
    before = images.fingerprint
    for data, i, line in zip((images, images, images, packed), (0, 1, 2, 0), lines, strict=True):
        with pytest.raises(BadImageError, match=line):
            data[i]
    picture(1).save(tmp_path / "target", "PNG")
    assert open_custom(tmp_path / "set", "all").fingerprint != before
