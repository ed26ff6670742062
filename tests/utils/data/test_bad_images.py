"""The list of images that cannot be read, and when it is too long."""

from __future__ import annotations

from pathlib import Path

import pytest

from hparams.errors import UserError
from utils.data.bad_images import BadImages


def test_as_many_as_the_share_are_accepted_and_no_more(tmp_path: Path) -> None:
    said: list[str] = []
    bad = BadImages(tmp_path / "bad.txt", 0.2, said.append, keep=False)
    bad.report({"a.png": "cannot read a.png: replace it", "b.png": "cannot read\nb.png"}, 10)
    bad.report({"a.png": "cannot read a.png: replace it"}, 10)  # known
    assert len(bad) == 2
    line = "WARNING: cannot read {}; until then another image stands in for it ({} so far)"
    assert said == [line.format("a.png: replace it", 1), line.format("b.png", 2)]
    with pytest.raises(UserError, match=r"3 of 10 images cannot be read, more than --max_bad_images 0\.2 allows"):
        bad.report({"c.png": "cannot read c.png"}, 10)
    # The last too: a line each, whatever it holds.
    listed = [f"{name}.png\tcannot read {name}.png{': replace it' * (name == 'a')}\tof 10 images" for name in "abc"]
    assert (tmp_path / "bad.txt").read_text().splitlines() == listed
    BadImages(tmp_path / "bad.txt", 1.0, said.append, keep=False, until_replaced="it goes").report({"d.png": "no"}, 10)
    assert said[-1] == "WARNING: no; until then it goes (1 so far)"


def test_a_kept_list_counts_and_another_goes(tmp_path: Path) -> None:
    file, said = tmp_path / "bad.txt", []
    file.write_text("a.png\tcannot read a.png\n")  # as earlier versions wrote it
    bad = BadImages(file, 0.2, said.append, keep=True)
    bad.report({"a.png": "cannot read a.png", "b.png": "cannot read b.png"}, 10)
    assert (len(bad), len(said)) == (2, 1)
    with pytest.raises(UserError, match="3 of 10 images"):
        BadImages(file, 0.2, said.append, keep=True).report({"c.png": "cannot read c.png"}, 10)
    BadImages(file, 0.2, said.append, keep=False, writes=False)
    assert file.exists()
    BadImages(file, 0.2, said.append, keep=False)
    assert not file.exists()


@pytest.mark.parametrize("resumed", [False, True])
def test_each_data_set_of_a_run_has_its_share(tmp_path: Path, resumed: bool) -> None:
    """Training and validation images: many bad ones among many are no reason to refuse a single one among few."""
    file, said = tmp_path / "bad.txt", []
    bad = BadImages(file, 0.01, said.append, keep=False)
    bad.report({f"train/{i}.png": f"cannot read {i}" for i in range(50)}, 10_000)
    if resumed:
        bad = BadImages(file, 0.01, said.append, keep=True)
    bad.report({"val/0.png": "cannot read 0"}, 100)
    assert (len(bad), len(said)) == (51, 51)
    with pytest.raises(UserError, match=r"2 of 100 images cannot be read, more than --max_bad_images 0\.01 allows"):
        bad.report({"val/1.png": "cannot read 1"}, 100)
