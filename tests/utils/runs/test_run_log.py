"""The log's lines, whoever writes them, and which of the metrics a resumed run keeps."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils.runs.run_log import LineFile, RunLog, read_metrics

LINES = 5000


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_lines_of_two_threads_are_all_there_once(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "log.txt", "wb")

    def write(name: str) -> None:
        for number in range(LINES):
            file.write(f"{name} {number}\n")

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file.close()
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert sorted(lines) == sorted(f"{name} {number}" for name in "ab" for number in range(LINES))


def test_a_line_that_comes_late_is_passed_over(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "log.txt", "wb")
    file.write("in time\n")
    file.close()
    file.write("late\n")
    file.close()
    assert (tmp_path / "log.txt").read_text() == "in time\n"


def test_a_resumed_run_keeps_the_metrics_up_to_its_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As they were; what came later or is damaged goes. A last line that was cut off is no damage."""
    metrics = tmp_path / "metrics.jsonl"
    kept = ['{"step": 5, "split": "train", "loss": 0.10}', '{"step": 9,  "split": "val"}']
    lines = [kept[0], "damaged", '{"split": "train"}', kept[1], '{"step": 10, "split": "train"}', '{"step": 4, "sp']
    metrics.write_text("\n".join(lines))
    log = RunLog(tmp_path / "log.txt", metrics, resume_step=9)
    log.record(10, "train", {"loss": float("inf")})
    log.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"WARNING: {metrics}: 2 damaged lines")
    assert metrics.read_text().splitlines() == [*kept, '{"step": 10, "split": "train", "loss": null}']
    assert [line["step"] for line in read_metrics(metrics)] == [5, 9, 10]
