"""The short form of `make soak`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[1] / "soak.py"


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("soak") / "soak.json"
    short = ["--kills", "3", "--experiment_kills", "1", "--steps", "30", "--memory_steps", "400"]
    done = subprocess.run([sys.executable, SOAK, *short, "--out", out], capture_output=True, text=True, timeout=600)
    assert out.exists(), done.stdout + done.stderr
    return json.loads(out.read_text()) | {"code": done.returncode}


@pytest.mark.parametrize("kind", ["vqgan", "absorbing", "autoregressive"])
def test_killed_runs_end_as_undisturbed_ones(outcome: dict, kind: str) -> None:
    tally = outcome["stages"][kind]
    assert tally["problems"] == []
    assert tally["whole_steps_lost"] == 0
    assert tally["kills"] == 3
    assert tally["kills_aimed_into_saving"] == 1
    assert tally["resumes"] >= tally["runs"]


def test_killed_experiments_end_as_undisturbed_ones(outcome: dict) -> None:
    """What they leave when they are killed is whole too."""
    assert len(outcome["experiments"]) == 8
    for name, tally in outcome["experiments"].items():
        assert tally["problems"] == [], name
        assert tally["kills"] == 1, name


@pytest.mark.parametrize("kind", ["vqgan", "absorbing", "autoregressive"])
def test_memory_stays_flat(outcome: dict, kind: str) -> None:
    """360 steps that kept 40 kB each, of 500 MB, would not pass."""
    assert outcome["memory"][kind]["growth_percent"] < 2


def test_the_exit_status_tells(outcome: dict) -> None:
    assert outcome["code"] == 0
