"""The short form of `make soak`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SHORT = ["--kills", "3", "--experiment_kills", "1", "--steps", "30", "--memory_steps", "400"]


def test_killed_runs_and_experiments_end_as_undisturbed_ones_and_memory_stays_flat(tmp_path: Path) -> None:
    soak, out = Path(__file__).parents[1] / "soak.py", tmp_path / "soak.json"
    done = subprocess.run([sys.executable, soak, *SHORT, "--out", out], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    outcome = json.loads(out.read_text())
    stages, experiments = outcome["stages"].values(), outcome["experiments"].values()
    assert [len(outcome[part]) for part in ("stages", "memory", "experiments")] == [3, 3, 8]
    assert [tally["problems"] for tally in (*stages, *experiments)] == [[]] * 11
    assert [(tally["kills"], tally["kills_aimed_into_saving"]) for tally in stages] == [(3, 1)] * 3
    assert [tally["kills"] for tally in experiments] == [1] * 8
    # 360 steps that kept 40 kB each, of 500 MB, would not pass.
    assert all(run["growth_percent"] < 2 for run in outcome["memory"].values())
