"""What several processes write one after the other; how files are written is tried where disks fail."""

from __future__ import annotations

from pathlib import Path

import pytest

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
