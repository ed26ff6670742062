"""Data sets by name: splits, orders, fingerprints, errors. Real LMDBs and folders, made here."""

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
from utils.data.datasets import ImageData, Split, check_images, open_images
from utils.data.image_folders import IMAGE_SUFFIXES, list_images
from utils.data.images import BadImageError
from utils.data.lmdb_images import LMDBImages, write_lmdb

SPLITS: tuple[Split, ...] = ("train", "val", "all")


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (20 + number % 7, 18), (number % 256, 255 - number % 256, 90))


def save_pictures(folder: Path, names: list[str]) -> None:
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
    return open_images("custom", split=split, img_size=img_size, custom_dataset_path=folder, hold_out=hold_out)


@pytest.mark.parametrize(("dataset", "stem"), [("churches", "church_outdoor"), ("bedrooms", "bedroom")])
def test_lsun(dataset: str, stem: str, tmp_path: Path) -> None:
    write_lsun(tmp_path / "lsun", stem, 12, 5)
    (tmp_path / "datasets.yaml").write_text(f"{dataset}: {{paths: lsun}}")
    sets = {
        split: open_images(
            dataset, split=split, img_size=16, datasets_file=tmp_path / "datasets.yaml", hold_out=hold_out
        )
        for split, hold_out in zip(SPLITS, (False, True, True), strict=True)
    }
    assert {split: len(data) for split, data in sets.items()} == {"train": 12, "val": 5, "all": 12}
    for split, offset in (("train", 0), ("val", 100), ("all", 0)):
        for i in range(5):
            image = sets[split][i]
            assert image.dtype == np.uint8
            assert image.shape == (3, 16, 16)
            expected = (offset + i, 255 - offset - i, 90)
            np.testing.assert_allclose(image.astype(float).mean((1, 2)), expected, atol=6)
    assert sets["val"].source(3).endswith(f"{stem}_val_lmdb:{3:040x}")
    assert sets["train"].name == dataset
    assert sets["train"].fingerprint == sets["all"].fingerprint != sets["val"].fingerprint


def names_below(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in list_images(folder)]


def test_nested_folders_are_in_image_folder_order(tmp_path: Path) -> None:
    names = [
        "b/2.png",
        "b/10.png",
        "b-x/1.jpg",
        "a/z/9.webp",
        "a/z.PNG",
        "a/z-y/8.jpeg",
        "B/1.JPG",
        "b/c/d/0.bmp",
        "b/B.png",
    ]
    save_pictures(tmp_path, names)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    published = [Path(file) for file, _ in ImageFolder(str(tmp_path)).samples]
    assert len(published) == len(names)
    assert list_images(tmp_path) == published


@pytest.mark.parametrize(
    ("written", "listed"),
    [
        (["10.png", "2.PNG", "a.webp", "B.jpg", "1.JPEG"], ["1.JPEG", "10.png", "2.PNG", "B.jpg", "a.webp"]),
        (["a.png", "z/b.png"], ["z/b.png", "a.png"]),  # subfolders first
        (["a.png", ".thumbs/a.png", "c/b.png", "c/.old/b.png", "._a.png"], ["c/b.png", "a.png"]),  # nothing hidden
    ],
)
def test_a_folders_files_are_listed_by_name(written: list[str], listed: list[str], tmp_path: Path) -> None:
    save_pictures(tmp_path, written)
    (tmp_path / "LICENSE.txt").write_text("no image")
    assert names_below(tmp_path) == listed


def test_every_ending_of_an_image_is_read(tmp_path: Path) -> None:
    """`list_images` and the README name the same ones."""
    for number, suffix in enumerate(sorted(IMAGE_SUFFIXES)):
        picture(number).save(tmp_path / f"{number}{suffix}", "JPEG" if suffix == ".jfif" else None)
    data = open_custom(tmp_path, "all")
    assert [data[i].shape for i in range(len(data))] == [(3, 16, 16)] * len(IMAGE_SUFFIXES)
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    (named,) = re.findall(r"files that end in (.+?) are read", readme)
    assert set(named.split()) == IMAGE_SUFFIXES


@pytest.mark.parametrize("count", [2, 3, 12])
def test_of_folders_that_link_to_each_other_each_is_entered_once(count: int, tmp_path: Path) -> None:
    """Followed wherever they lead, three would give more paths than can be listed."""
    folders = [f"{number:02}" for number in range(count)]
    save_pictures(tmp_path, [f"{folder}/a.png" for folder in folders])
    for folder in folders:
        for other in folders:
            (tmp_path / folder / f"to_{other}").symlink_to(tmp_path / other)
    assert names_below(tmp_path) == [f"{folder}/a.png" for folder in folders]


def test_a_folder_goes_by_its_own_name_before_that_of_a_link(tmp_path: Path) -> None:
    save_pictures(tmp_path / "set", ["m/0.png", "m/n/1.png"])
    save_pictures(tmp_path / "elsewhere", ["2.png", "deep/3.png"])
    for link, target in {"a": "set/m/n", "b": "elsewhere/deep", "c": "elsewhere", "z": "elsewhere"}.items():
        (tmp_path / "set" / link).symlink_to(tmp_path / target)
    assert names_below(tmp_path / "set") == ["b/3.png", "c/2.png", "m/0.png", "m/n/1.png"]


def test_links_of_linked_folders_lead_to_no_folder_above_either(tmp_path: Path) -> None:
    save_pictures(tmp_path, ["not_of_it.png", "top/set/a.png", "elsewhere/b.png", "further/c.png"])
    (tmp_path / "top/set/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/link").symlink_to(tmp_path / "further")
    (tmp_path / "further/link").symlink_to(tmp_path)
    (tmp_path / "top/set/up").symlink_to(tmp_path / "top/set")
    assert names_below(tmp_path / "top/set") == ["link/b.png", "link/link/c.png", "a.png"]


def test_a_pipe_is_an_unreadable_image(tmp_path: Path) -> None:
    save_pictures(tmp_path, ["0.png"])
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(BadImageError, match=r"1\.png .*not a regular file"):
        open_custom(tmp_path, "all")[1]


@pytest.mark.parametrize(("n", "n_train"), [(2, 1), (19, 18), (20, 19), (21, 19), (40, 38)])
def test_held_out_split(n: int, n_train: int, tmp_path: Path) -> None:
    save_pictures(tmp_path, [f"{i:03}.png" for i in range(n)])
    sources = {s: [d.source(i) for i in range(len(d))] for s in SPLITS for d in [open_custom(tmp_path, s)]}
    assert len(sources["train"]) == n_train
    assert sources["train"] + sources["val"] == sources["all"]
    assert len(open_custom(tmp_path, "train", hold_out=False)) == n


def test_val_of_a_folder_that_holds_nothing_out(tmp_path: Path) -> None:
    save_pictures(tmp_path, ["a.png", "b.png"])
    with pytest.raises(ValueError, match="held out"):
        open_custom(tmp_path, "val", hold_out=False)


def open_toys(folder: Path, split: Split, **changes: int) -> ImageData:
    options = {"img_size": 16, "toy_images": 20, "seed": 3, **changes}
    return open_images("toy_churches", split=split, datasets_file=folder / "datasets.yaml", hold_out=True, **options)


def test_toy_churches_are_written_on_first_use(tmp_path: Path) -> None:
    train, val, every = (open_toys(tmp_path, split) for split in SPLITS)
    assert (len(train), len(val), len(every)) == (20, 64, 20)
    folder = tmp_path / "data" / "toy_churches" / "16px_20_3"
    assert sorted(p.name for p in folder.iterdir()) == ["toy_churches_train_lmdb", "toy_churches_val_lmdb"]
    assert train[0].shape == (3, 16, 16)
    assert {train[i].tobytes() for i in range(20)}.isdisjoint(val[i].tobytes() for i in range(64))


def test_toy_churches_go_where_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "datasets.yaml").write_text("toy_churches: {paths: toys}")
    assert (
        open_toys(tmp_path, "val", toy_images=1000, img_size=4)
        .source(0)
        .startswith(str(tmp_path / "toys" / "4px_1000_3"))
    )
    assert len(LMDBImages(tmp_path / "toys" / "4px_1000_3" / "toy_churches_val_lmdb")) == 100


def test_checking_writes_nothing(tmp_path: Path) -> None:
    check_images("toy_churches", datasets_file=tmp_path / "datasets.yaml", hold_out=True)
    assert list(tmp_path.iterdir()) == []


def test_checking_looks_at_the_held_out_part_too(tmp_path: Path) -> None:
    write_lsun(tmp_path, "church_outdoor", 3, 1)
    (tmp_path / "datasets.yaml").write_text("churches: {paths: {train: church_outdoor_train_lmdb}}")
    check_images("churches", datasets_file=tmp_path / "datasets.yaml", hold_out=False)
    with pytest.raises(UserError, match="no val path"):
        check_images("churches", datasets_file=tmp_path / "datasets.yaml", hold_out=True)


def test_fingerprint_is_stable_and_tells_changes(tmp_path: Path) -> None:
    save_pictures(tmp_path, [f"{i}.png" for i in range(40)])
    first = open_custom(tmp_path, "train").fingerprint
    assert open_custom(tmp_path, "train").fingerprint == first
    assert open_custom(tmp_path, "val").fingerprint != first
    assert open_custom(tmp_path, "train", img_size=17).fingerprint != first
    os.utime(tmp_path / "0.png", (1, 1))
    touched = open_custom(tmp_path, "train").fingerprint
    assert touched != first
    picture(50).save(tmp_path / "00.png")
    assert open_custom(tmp_path, "train").fingerprint not in (first, touched)


def test_a_link_to_nowhere_is_one_unreadable_image(tmp_path: Path) -> None:
    save_pictures(tmp_path, ["0.png"])
    (tmp_path / "1.png").symlink_to(tmp_path / "target")
    data = open_custom(tmp_path, "all")
    before = data.fingerprint
    with pytest.raises(BadImageError, match=r"1\.png"):
        data[1]
    picture(1).save(tmp_path / "target", "PNG")
    assert open_custom(tmp_path, "all").fingerprint != before


def test_fingerprint_tells_images_that_became_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their times of change stay as they are; what was cached of them was of others that stood in."""
    save_pictures(tmp_path, ["0.png"])
    readable = open_custom(tmp_path, "all").fingerprint
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read whatever its mode says
    assert open_custom(tmp_path, "all").fingerprint != readable


def test_fingerprint_of_an_lmdb_tells_its_size_and_change(tmp_path: Path) -> None:
    small, large = (open_toys(tmp_path, "train", toy_images=n) for n in (5, 6))
    assert small.fingerprint == open_toys(tmp_path, "train", toy_images=5).fingerprint != large.fingerprint
    assert small.fingerprint != open_toys(tmp_path, "val", toy_images=5).fingerprint
    (file,) = tmp_path.rglob("*_5_*/toy_churches_train_lmdb/data.mdb")
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # other images may take as many pages
    assert small.fingerprint != open_toys(tmp_path, "train", toy_images=5).fingerprint


def test_copies_of_a_folder_have_one_listing_unless_a_name_or_a_size_differs(tmp_path: Path) -> None:
    save_pictures(tmp_path / "a", [f"x/{i}.png" for i in range(20)])
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)  # with other times

    def equal() -> list[bool]:
        return [
            open_custom(tmp_path / "a", split).listing == open_custom(tmp_path / "b", split).listing for split in SPLITS
        ]

    os.utime(tmp_path / "b/x/3.png", (1, 1))
    assert equal() == [True] * 3
    (tmp_path / "b/x/3.png").rename(tmp_path / "b/x/33.png")  # which takes no other place
    assert equal() == [False, True, False]
    (tmp_path / "b/x/33.png").rename(tmp_path / "b/x/3.png")
    with (tmp_path / "b/x/9.png").open("ab") as file:
        file.write(b"\0")
    assert equal() == [True, False, False]
    (tmp_path / "b/x/9.png").unlink()
    (tmp_path / "b/x/9.png").symlink_to("nowhere")
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


def test_unknown_data_set() -> None:
    with pytest.raises(UserError, match=r"'church'.*--dataset.*churches, bedrooms, ffhq, custom, toy_churches"):
        open_images("church", split="train", img_size=8, hold_out=False)


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no image")
    with pytest.raises(UserError, match=r"no images in .*correct --custom_dataset_path"):
        open_custom(tmp_path, "train")


def test_one_image_cannot_be_split(tmp_path: Path) -> None:
    save_pictures(tmp_path, ["a.png"])
    assert len(open_custom(tmp_path, "train", hold_out=False)) == 1
    with pytest.raises(UserError, match="one image"):
        open_custom(tmp_path, "train")


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/broken.jpg").write_bytes(b"no image")
    write_lmdb(tmp_path / "packed", [(b"0a1b", b"no image")])
    for folder, name in (("set", r"set/broken\.jpg"), ("packed", "packed:0a1b")):
        with pytest.raises(BadImageError, match=name):
            open_custom(tmp_path / folder, "all")[0]
