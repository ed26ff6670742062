"""The benchmarks run, and what they compare computes the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure import growth
from benchmarks.report import MARKS, write_report
from benchmarks.run import main


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("benchmarks") / "smoke.json"
    chosen = ["sampling", "prior", "autoregressive", "vqgan", "neighbours", "prdc", "larger"]
    main(["--scale", "smoke", "--out", str(out), "--only", *chosen])
    results = json.loads(Path(out).read_text())
    assert set(results["anew"]) == set(chosen)  # each remembers when and where it was measured
    return results["rows"]


def test_baseline_and_shipped_code_compute_the_same(rows: dict[str, Any]) -> None:
    for row in rows.values():
        for label, value in row["checks"].items():
            assert value is True or 0 <= value < 2e-3, (row["name"], label, value)


def test_every_row_says_what_was_reduced(rows: dict[str, Any]) -> None:
    assert all(row["reduced"] and row["target"] for row in rows.values())
    for name in ("sampling", "prior", "autoregressive", "vqgan"):
        published = {"baseline float16"} if name == "prior" else set()
        assert set(rows[name]["timings"]) == {"baseline", "float32", "amp"} | published
        assert set(rows[name]["speedup"]) == {"float32", "amp"} | published
    # What GPUs are to reach is among the figures, by the names that their targets have, here of a smaller batch.
    published = {"steps per s, amp", "amp, times faster than the float16 baseline"}
    assert published | {"share of the amp product rate at batch 3"} <= rows["prior"]["figures"].keys()
    assert all("share of the amp product rate" in rows[name]["figures"] for name in ("sampling", "vqgan"))


def test_evaluations(rows: dict[str, Any]) -> None:
    assert rows["sampling"]["figures"]["evaluations per image"] == pytest.approx(162, abs=1)
    assert rows["larger"]["figures"]["published / here"] == pytest.approx(16, rel=0.2)
    assert growth([1.0, 2.0, 4.0], [3.0, 12.0, 48.0]) == pytest.approx(2)  # the exponent


def test_the_report_has_every_ratio(rows: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    readme, plot = tmp_path / "project.md", tmp_path / "docs/plot.png"
    machine = {"cpu": "a CPU", "gpu": None, "threads": 2, "torch": "2", "python": "3"}
    machine |= {"commit": "abc", "date": "today", "load_average": ["0.1"], "command": "python"}
    profiles = {"sampling, amp": [{"item": "aten::mm", "percent": 40.0, "calls": 3}]}
    anew = {"prdc": machine | {"commit": "def"}}
    content = {"rows": rows, "profiles": profiles, "environment": machine, "anew": anew}
    (tmp_path / "results/cpu.json").write_text(json.dumps(content))
    readme.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    write_report(tmp_path, [*rows, "unknown"], plot, readme)
    table, report = readme.read_text(), (tmp_path / "README.md").read_text()
    assert re.fullmatch(r"before\n(?!.*\bold\b).*after\n", table, re.DOTALL)
    assert f"amp {rows['sampling']['speedup']['amp']:.1f} ×" in table
    assert f"evaluations {rows['larger']['figures']['published / here']:.1f} ×" in table
    for line in (
        "aten::mm 40.0 (the products of the linear layers", "commit abc", "Not measured here: unknown.",
        "Measured separately, prdc: a CPU, 2 threads; torch 2, Python 3, commit def",
    ):  # fmt: skip
        assert line in report
    assert plot.read_bytes().startswith(b"\x89PNG")
