"""Sinks in threads of their own, TensorBoard and Weights & Biases."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hparams.checks import require_packages
from hparams.errors import UserError
from utils.reporting import sinks
from utils.reporting.sinks import InBackground, open_sink, open_sinks
from utils.runs.record import Record
from utils.runs.run_folder import RunFolder
from utils.runs.sink import Sink
from visdom_process import eventually


def test_calls_are_made_in_order_by_another_thread_and_all_before_the_end() -> None:
    told, said = [], []

    class Slow(Sink):
        def __init__(self) -> None:
            time.sleep(0.2)

        def scalars(self, step: int, split: str, values: Any) -> None:
            told.append((step, split, values, threading.current_thread().name))

        def close(self) -> None:
            told.append("closed")

    sink = InBackground("tensorboard", Slow, said.append)
    for step in range(5):
        sink.scalars(step, "train", {"loss": 1.0})
    sink.text("ignored", "by this sink")
    sink.close()
    sink.close()
    expected = [*((step, "train", {"loss": 1.0}, "tensorboard") for step in range(5)), "closed"]
    assert (told, said) == (expected, [])


def fails(*_: object) -> None:
    raise ConnectionError("the service\nis down")


class Failing(Sink):
    scalars = fails


@pytest.mark.parametrize("make", [Failing, fails])
def test_a_sink_that_fails_costs_a_line_and_nothing_else(make: Callable[[], Any]) -> None:
    said: list[str] = []
    sink = InBackground("wandb", make, said.append)
    sink.scalars(1, "train", {})
    eventually(lambda: len(said) == 1)
    for step in range(100):
        sink.scalars(step, "train", {})
    sink.close()
    (line,) = said
    assert line.startswith("--sinks wandb: ConnectionError: the service is down: it shows no more of this run")
    assert line.endswith("experiments/replay_dashboard.py --sinks wandb shows all of it later")


def test_a_sink_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "MOST_WAITING", 50)
    monkeypatch.setitem(sinks.SECONDS_TO_CLOSE, "wandb", 0.01)
    for count in (100, 5):
        said: list[str] = []
        sink = InBackground("wandb", lambda: time.sleep(3600), said.append)  # type: ignore[arg-type,return-value]
        for step in range(count):
            sink.scalars(step, "train", {})
        sink.close()
        assert len(said) == 1
        assert sink._calls.qsize() <= 51


def shown_in(sink: str, folder: Path) -> None:
    """A run with something of each kind."""
    record = Record(RunFolder("run", folder), resume_step=None)
    open_sinks(record, RunFolder("run", folder), {"sinks": (sink,), "seed": 3}, resume_step=None)
    for step in (1, 2):
        record.scalars(step, "train", {"loss": 1 / step, "l1": float("nan")})
        record.picture(step, "samples", np.full((3, 4, 4), step, np.uint8))
    record.histogram(2, "code_counts", [3.0, 0.0, 1.0])
    record.table("results", ["FID", "split"], [[4.0712, None]])
    record.text("run", "2 of 2")
    record.close()


def test_tensorboard_gets_everything(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown_in("tensorboard", tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("loss/train")] == [(1, 1.0), (2, 0.5)]
    assert [one.step for one in events.Images("samples")] == [1, 2]
    (bars,) = events.Histograms("code_counts")
    assert bars.histogram_value.bucket == [3.0, 0.0, 1.0]
    assert set(events.Tags()["tensors"]) == {"results/text_summary", "run/text_summary"}
    table = events.Tensors("results/text_summary")[0].tensor_proto.string_val[0].decode()
    assert table == "| FID | split |\n| --- | --- |\n| 4.071 |  |"


def test_tensorboard_of_a_resumed_run_shows_each_step_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for resume_step, steps in ((None, (1, 2, 3)), (2, (3, 4))):
        view = open_sink("tensorboard", RunFolder("run", tmp_path), {}, resume_step, print)
        for step in steps:
            view.scalars(step, "train", {"loss": float(step)})
        view.close()
        time.sleep(1.1)  # the files' names hold seconds
    events = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    assert [one.step for one in events.Scalars("loss/train")] == [1, 2, 3, 4]


def test_wandb_takes_everything_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the package wandb is not installed: python -m pip install wandb")
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    env = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": path}
    code = f"import pathlib, test_sinks; test_sinks.shown_in('wandb', pathlib.Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--sinks" not in (tmp_path / "run/log.txt").read_text()
    assert len(list((tmp_path / "run").glob("wandb/offline-run-*/files/media/images/*.png"))) == 2
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    assert all(word in content for word in (b"train/loss", b"code_counts", b"results", b"2 of 2"))


def test_a_missing_package_is_named_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hparams.checks.find_spec", lambda name: None)
    require_packages(("visdom", "summary"))
    for name in ("tensorboard", "wandb"):
        with pytest.raises(UserError, match=rf"--sinks {name}: its package is missing: python -m pip install {name}"):
            require_packages(("visdom", name))
