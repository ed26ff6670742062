"""datasets.yaml and the published datasets.yml: forms of entries, bases of relative paths, errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from hparams.errors import UserError
from hparams.presets import DATASETS
from utils.data.datasets import custom_paths, find_paths

REPOSITORY = Path(__file__).parents[3]


def written(tmp_path: Path, text: str, name: str = "datasets.yaml") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


def make_lmdb_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "data.mdb").touch()
    return path


@pytest.mark.parametrize("entry", ["ffhq: {paths: faces}", "ffhq:\n  path: faces", "ffhq: faces"])
def test_a_folder_relative_to_the_file(entry: str, tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    assert find_paths("ffhq", written(tmp_path, entry)).folder() == tmp_path / "faces"


def test_home_and_variables_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SETS", "sets")
    (tmp_path / "sets" / "faces").mkdir(parents=True)
    assert find_paths("ffhq", written(tmp_path, "ffhq: {paths: ~/$SETS/faces}")).folder() == tmp_path / "sets" / "faces"


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
    folders = {s: make_lmdb_folder(tmp_path / "lsun" / f"church_outdoor_{s}_lmdb") for s in ("train", "val")}
    assert find_paths("churches", written(tmp_path, entry)).lmdb(split, "church_outdoor") == folders[split]


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


@pytest.mark.parametrize("text", [None, "", "ffhq: {paths: faces}"])
def test_default(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        written(tmp_path, text)
    paths = find_paths("toy_churches", tmp_path / "datasets.yaml", default="data/toys")
    assert paths.folder(must_exist=False) == tmp_path / "data" / "toys"


def test_custom_flag_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
    file = written(tmp_path, "custom: {paths: theirs}")
    assert custom_paths("mine", file).folder().resolve() == tmp_path / "mine"
    assert custom_paths(None, file).folder() == tmp_path / "theirs"


def test_custom_errors_name_the_flag(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--custom_dataset_path FOLDER"):
        custom_paths(None, tmp_path / "datasets.yaml")
    with pytest.raises(UserError, match=r"nowhere for custom: correct --custom_dataset_path"):
        custom_paths(tmp_path / "nowhere", tmp_path / "datasets.yaml").folder()


@pytest.mark.parametrize("dataset", [name for name in DATASETS if name != "custom"])
def test_the_file_in_the_repository_names_every_data_set(dataset: str) -> None:
    paths = find_paths(dataset, REPOSITORY / "datasets.yaml").paths
    locations = [paths] if isinstance(paths, str) else list(paths.values())
    assert all(location.startswith("data/") for location in locations)
