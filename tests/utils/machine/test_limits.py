"""Sizes in words, and free space."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from utils.machine.limits import free_space, tell_bytes


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (36_100_000, "36.1 MB"), (5 * 10**16, "5e+04 TB")]
)
def test_sizes_in_words(count: int, text: str) -> None:
    assert tell_bytes(count) == text


def test_free_space_is_that_of_the_nearest_folder(tmp_path: Path) -> None:
    assert free_space(tmp_path / "not" / "yet") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
