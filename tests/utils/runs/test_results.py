"""The numbers of an experiment on disk."""

from __future__ import annotations

import fcntl
import multiprocessing
from pathlib import Path

import pytest

from hparams.errors import UserError
from utils.runs.results import read_results, record_result


def test_entries_are_kept_and_those_of_equal_conditions_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run" / "results.json"
    assert read_results(path) == []
    record_result(path, {"temp": 1.0, "n": 8}, {"FID": 3.0})
    record_result(path, {"temp": 0.9, "n": 8}, {"FID": 2.0})
    line = record_result(path, {"temp": 1.0, "n": 8}, {"FID": 5.57891, "KID": None})
    assert line == "FID 5.579 (temp 1, n 8)"
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
    path, processes = tmp_path / "results.json", multiprocessing.get_context("fork")
    machines = [processes.Process(target=record_some, args=(path, first)) for first in (0, 20)]
    for machine in machines:
        machine.start()
    for machine in machines:
        machine.join()
    assert sorted(entry["conditions"]["n"] for entry in read_results(path)) == list(range(40))


def test_a_value_that_is_not_finite_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    record_result(path, {}, {"FID": 3.0})
    with pytest.raises(ValueError, match="JSON"):
        record_result(path, {}, {"FID": float("nan")})
    assert read_results(path) == [{"conditions": {}, "values": {"FID": 3.0}}]


@pytest.mark.parametrize(
    "content",
    [
        *["", "{}", '[{"values": {}}]', "[1]", "nonsense"],
        '[{"conditions": 3, "values": {}}]',
        '[{"conditions": {}, "values": []}]',
        '[{"conditions": {"n": [1]}, "values": {}}]',
        '[{"conditions": {}, "values": {"FID": NaN}}]',
    ],
)
def test_a_damaged_file_is_named_and_kept(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"results\.json is damaged"):
        record_result(path, {}, {"FID": 3.0})
    assert path.read_text() == content
