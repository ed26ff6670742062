"""Unfinished work on disk."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from utils.runs import partial
from utils.runs.partial import Partial

KEY = {"seed": 0, "file": "a"}


def test_state_comes_back_under_its_own_key_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "work.partial"
    assert Partial(path, KEY).load() is None
    Partial(path, KEY).save({"x": torch.arange(3), "done": 2})
    state = Partial(path, dict(reversed(KEY.items()))).load()
    assert state is not None
    assert torch.equal(state["x"], torch.arange(3))
    assert state["done"] == 2
    said: list[str] = []
    assert Partial(path, {**KEY, "seed": 1}, warn=said.append).load() is None
    assert said == []
    Partial(path, KEY).remove()
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"half a file", b"PK\x03\x04"])
def test_a_damaged_file_is_as_good_as_none_and_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "work").write_bytes(content)
    said: list[str] = []
    assert Partial(tmp_path / "work", KEY, warn=said.append).load() is None
    assert said == [f"WARNING: {tmp_path / 'work'} is damaged: what it held is computed anew"]


def test_state_is_kept_every_so_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Partial(tmp_path / "work", KEY) as work:
        work.keep(lambda: {"done": 1})
        assert work.load() is None
        monkeypatch.setattr(partial, "SECONDS", 0)
        work.keep(lambda: {"done": 2})
        assert work.load() == {"done": 2}


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_ends_the_process(tmp_path: Path, number: signal.Signals) -> None:
    former = signal.getsignal(number)
    with Partial(tmp_path / "work", KEY) as work:
        os.kill(os.getpid(), number)
        with pytest.raises(SystemExit) as end:
            work.keep(lambda: {"done": 7})
    assert end.value.code == 128 + number
    assert Partial(tmp_path / "work", KEY).load() == {"done": 7}
    assert signal.getsignal(number) is former
