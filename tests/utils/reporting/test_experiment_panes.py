"""Results of experiments on the dashboard."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hparams.resolve import resolve
from hparams.settings.stages import VQGANStage
from utils.reporting.experiment_panes import open_dashboard, show_results
from utils.reporting.panes import read_panes
from utils.runs.results import record_result


def test_results_become_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = dataclasses.replace(
        resolve(VQGANStage, {"dataset": "churches", "log_dir": "fid/churches"}).run, visdom_port=9
    )
    results, said, shown = Path("logs/fid/churches/results.json"), [], []
    results.parent.mkdir(parents=True)
    for temp, fid in ((1.0, 5.5834), (0.9, 4.0741)):
        record_result(results, {"features": "inception", "temp": temp}, {"fid": fid, "kid_mean": None})
        with open_dashboard(dataclasses.replace(run, summary=temp == 0.9), warn=said.append) as dashboard:
            show_results(dashboard, results)
        assert Path("logs/fid/churches/summary.png").exists() == (temp == 0.9)
        (message,) = read_panes(Path("logs/fid/churches/dashboard.jsonl")).values()
        (table,) = (entry["content"] for entry in message["data"])
        shown.append([part.split("<")[0] for part in table.split(">") if part.split("<")[0]])
    assert shown[0] == ["result", "fid", "5.583", "features", "inception", "temp", "1"]
    assert shown[1] == ["fid", "kid mean", "temp", "5.583", "1", "4.074", "0.9"]  # what all entries share is left out
    assert message["eid"] == "fid~churches"
    assert all("dashboard: no visdom server" in line for line in said)
