from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from hparams.errors import UserError
from hparams.fields import settings_of
from hparams.resolve import resolve
from hparams.saved import describe, load, to_flat
from hparams.settings.stages import PriorStage, Stage, VQGANStage
from utils.runs.run_folder import save_settings


def build(stage_class: type[Stage], **typed: object) -> Stage:
    ae = {"ae_load_dir": "ae"} if stage_class is PriorStage else {}
    return resolve(stage_class, {"dataset": "churches", **ae, **typed}, logs=Path("no_such_logs"))


def test_file_is_flat_plain_and_readable(tmp_path: Path) -> None:
    path, stage = tmp_path / "deep" / "er" / "hparams.yaml", build(VQGANStage)
    save_settings(stage, path)
    text = path.read_text()
    assert "\nch_mult: [1, 1, 2, 2, 4]\n" in text
    assert "# autoencoder\n" in text
    assert yaml.safe_load(text) == to_flat(stage)
    assert [file.name for file in path.parent.iterdir()] == ["hparams.yaml"]


def test_settings_of_one_call_are_not_saved(tmp_path: Path) -> None:
    stage = build(VQGANStage, dry_run=True, traceback=True)
    assert {"dry_run", "traceback", "resume"}.isdisjoint(to_flat(stage))
    (tmp_path / "hparams.yaml").write_text("resume: true\n")
    with pytest.raises(UserError, match="unknown setting 'resume'"):
        load(tmp_path / "hparams.yaml", VQGANStage)


def test_a_file_that_was_cut_off_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    """Also within the last value: a port of 80 would be as good as any."""
    path = tmp_path / "hparams.yaml"
    save_settings(build(VQGANStage), path)
    text = path.read_text()
    late = (len(text) - 1, len(text) - 2, text.rindex("\n", 0, -1) + 1)
    for length in (*late, *range(0, len(text), 40)):
        path.write_text(text[:length])
        with pytest.raises(UserError, match=r"hparams\.yaml: is cut off" if length in late else r"hparams\.yaml"):
            load(path, VQGANStage)


def test_switches_of_earlier_versions_are_sinks(tmp_path: Path) -> None:
    for switches, sinks in (
        ("dashboard: true\nsummary: true", ("visdom", "summary")),
        ("dashboard: false\nsummary: true", ("summary",)),
        ("summary: false", ("visdom",)),
        ("dashboard: false\nsummary: false", ()),
    ):
        (tmp_path / "hparams.yaml").write_text(f"# 3 settings\nnf: 64\n{switches}\nlr: 0.1\n")
        assert load(tmp_path / "hparams.yaml", VQGANStage) == {"nf": 64, "lr": 0.1, "sinks": sinks}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nff: 64\n", "unknown setting 'nff', did you mean 'nf'?"),
        ("colour: red\n", "unknown setting 'colour'; remove it"),
        ("1: red\n", "unknown setting '1'; remove it"),
        ("nf: wide\n", "nf: 'wide' is not a whole number of at least 1"),
        ("ch_mult: 4\n", "ch_mult: 4 is not a list, each value a whole number of at least 1"),
        ("- nf\n- 64\n", "should hold one 'name: value' per line"),
        ("", "should hold one 'name: value' per line"),
        ("nf: 64\nch_mult: [1, 2\n", "line 3: is not valid YAML"),
        ("nf: !!python/object/apply:os.getcwd []\n", "line 1: is not valid YAML"),
    ],
)
def test_bad_files_name_file_and_key(text: str, message: str, tmp_path: Path) -> None:
    (path := tmp_path / "hparams.yaml").write_text(text)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}.*{re.escape(message)}"):
        load(path, VQGANStage)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, why in (("folder", "Is a directory"), ("binary", "not UTF-8 text")):
        with pytest.raises(UserError, match=f"{name}: cannot be read .{why}"):
            load(tmp_path / name, VQGANStage)


def test_a_run_of_the_other_script_is_recognised(tmp_path: Path) -> None:
    save_settings(build(PriorStage), tmp_path / "hparams.yaml")
    with pytest.raises(UserError, match=r"is a run of train_sampler\.py, but a run of train_vqgan\.py is needed"):
        load(tmp_path / "hparams.yaml", VQGANStage)


def test_describe_lists_every_setting_aligned() -> None:
    lines = describe(build(PriorStage)).splitlines()
    settings = settings_of(PriorStage)
    rows = [line for line in lines if line.startswith("  ")]
    assert [row.split()[0] for row in rows] == list(settings)
    assert len({len(row) - len(row[2:].lstrip("abcdefghijklmnopqrstuvwxyz_").lstrip()) for row in rows}) == 1
    assert "  ch_mult                   1 1 2 2 4" in lines
    assert lines[0] == "run"
