"""The log's lines, whoever writes them, which of the metrics a resumed run keeps, and the numbers of experiments."""

from __future__ import annotations

import fcntl
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hparams.errors import UserError
from utils.runs import record as module
from utils.runs.logged import LineFile, read_metrics, read_newest
from utils.runs.record import ALL, Record
from utils.runs.results import read_results, record_result, results_table
from utils.runs.run_folder import RunFolder
from utils.runs.sink import Sink


def test_lines_of_two_threads_are_all_there_once_and_late_ones_passed_over(tmp_path: Path) -> None:
    file, interval = LineFile(tmp_path / "log.txt", "wb"), sys.getswitchinterval()
    lines = [f"{number}" for number in range(10_000)]
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda part: [file.write(f"{line}\n") for line in part], (lines[::2], lines[1::2])))
    finally:
        sys.setswitchinterval(interval)
    file.close()
    file.write("late\n")
    file.close()
    assert sorted((tmp_path / "log.txt").read_text().splitlines()) == sorted(lines)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder("run", tmp_path)
    folder.path.mkdir()
    return folder


def test_a_resumed_run_keeps_the_metrics_up_to_its_step(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """As they were; what came later or is damaged goes. A last line that was cut off is no damage."""
    kept = ['{"step": 5, "split": "train", "loss": 0.10}', '{"step": 9,  "split": "val"}']
    lines = [kept[0], "damaged", '{"split": "train"}', kept[1], '{"step": 10, "split": "train"}', '{"step": 4, "sp']
    folder.metrics.write_text("\n".join(lines))
    record = Record(folder, resume_step=9)
    record.scalars(10, "train", {"loss": float("inf")})
    record.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"WARNING: {folder.metrics}: 2 damaged lines")
    assert folder.metrics.read_text().splitlines() == [*kept, '{"step": 10, "split": "train", "loss": null}']
    assert [line["step"] for line in read_metrics(folder.metrics)] == [5, 9, 10]


def test_newest_things_stay_on_resume_and_go_with_a_new_run(folder: RunFolder) -> None:
    for resume_step, kept in ((None, {"b"}), (ALL, {"a", "b"}), (None, {"b"})):
        if resume_step:
            folder.newest.write_text('{"texts": {"a": "older"}}')
        record = Record(folder, resume_step=resume_step)
        record.text("b", "newer")
        record.close()
        assert read_newest(folder.newest)["texts"].keys() == kept


def test_newest_things_are_written_now_and_then_and_when_a_step_is_saved(folder: RunFolder, monkeypatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    record = Record(folder, resume_step=None)

    def written(step: Callable[[], None]) -> str:
        step()
        return read_newest(folder.newest)["texts"]["run"]

    first, second, third, last = (partial(record.text, "run", text) for text in "0123")
    assert [written(first), written(second), written(record.sync)] == ["0", "0", "1"]
    clock[0] += module.SECONDS_BETWEEN_WRITES
    assert [written(third), written(last), written(record.close)] == ["2", "2", "3"]


def test_sinks_get_what_the_folder_gets(folder: RunFolder) -> None:
    told: list[str] = []

    class Told(Sink):
        def __getattribute__(self, name: str) -> Any:
            return lambda *arguments: told.append(f"{name} {arguments[:2]}")

    record = Record(folder, resume_step=None)
    record.sinks.append(Told())
    record.scalars(1, "train", {"loss": 1.0})
    record.picture(1, "samples", np.zeros((3, 2, 2), np.uint8))
    record.picture(None, "grid", np.zeros((3, 2, 2), np.uint8), write=False)
    record.histogram(1, "codes", [1.0])
    record_result(folder.results, {}, {"fid": 1.5})
    record.results()
    record.text("run", "1 of 1")
    record.draw()
    record.close()
    assert told == [
        *["scalars (1, 'train')", "picture (1, 'samples')", "picture (None, 'grid')", "histogram (1, 'codes')"],
        *["table ('results', ['result', ''])", "text ('run', '1 of 1')", "draw ()", "close ()"],
    ]
    assert [file.name for file in folder.images.iterdir()] == ["samples_1.png"]


def test_results_become_a_table(folder: RunFolder) -> None:
    record_result(folder.results, {"features": "inception", "temp": 1.0}, {"fid": 5.58, "kid_mean": None})
    assert results_table(folder.results) == (["result", ""], [("fid", 5.58), ("features", "inception"), ("temp", 1.0)])
    record_result(folder.results, {"features": "inception", "temp": 0.9}, {"fid": 4.07, "kid_mean": None})
    # What all entries share is left out.
    assert results_table(folder.results) == (["fid", "kid mean", "temp"], [[5.58, None, 1.0], [4.07, None, 0.9]])


def test_entries_are_kept_and_those_of_equal_conditions_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run" / "results.json"
    assert read_results(path) == []
    record_result(path, {"temp": 1.0, "n": 8}, {"FID": 3.0})
    record_result(path, {"temp": 0.9, "n": 8}, {"FID": 2.0})
    line = record_result(path, {"temp": 1.0, "n": 8}, {"FID": 5.57891, "KID": None})
    assert line == "FID 5.579 (temp 1, n 8)"
    with pytest.raises(ValueError, match="JSON"):  # which no result is
        record_result(path, {}, {"FID": float("nan")})
    assert read_results(path) == [
        {"conditions": {"temp": 0.9, "n": 8}, "values": {"FID": 2.0}},
        {"conditions": {"temp": 1.0, "n": 8}, "values": {"FID": 5.57891, "KID": None}},
    ]


def record_some(path: Path, first: int) -> None:
    """On a machine whose locks of folders are its own alone, as on NFS."""
    fcntl.flock = lambda *_: None
    for n in range(first, first + 20):
        record_result(path, {"n": n}, {"FID": 1.0})


def test_experiments_that_end_at_once_on_two_machines_lose_no_entry(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with multiprocessing.get_context("fork").Pool(2) as machines:
        machines.starmap(record_some, [(path, 0), (path, 20)], chunksize=1)
    assert sorted(entry["conditions"]["n"] for entry in read_results(path)) == list(range(40))


def test_a_damaged_file_is_named_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    parts = (("3", "{}"), ("{}", "[]"), ('{"n": [1]}', "{}"), ("{}", '{"FID": NaN}'))
    entries = [f'[{{"conditions": {conditions}, "values": {values}}}]' for conditions, values in parts]
    for content in ("", "{}", '[{"values": {}}]', "[1]", "nonsense", *entries):
        path.write_text(content)
        with pytest.raises(UserError, match=r"results\.json is damaged"):
            record_result(path, {}, {"FID": 3.0})
        assert path.read_text() == content
