"""Runs of a network that learns nothing; `tests/scripts` see to the rest."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hparams.fields import settings_of
from hparams.resolve import resolve
from hparams.settings.stages import VQGANStage
from shown import curve, shown
from trainers import vqgan_trainer
from utils.machine.stopwatch import Stopwatch
from utils.runs.checkpoints import save_step
from utils.runs.job import Job
from utils.runs.run_folder import VQGAN, RunFolder
from utils.training.training_run import TrainingRun

CPU = torch.device("cpu")
CADENCES = {name: 0 for name in settings_of(VQGANStage) if name.startswith("steps_per_")}
SMALL = {"dataset": "churches", "log_dir": "run", "device": "cpu", "quiet": True, "sinks": (), "ema": False}
SMALL |= CADENCES | {"steps_per_log": 2, "steps_per_update_ema": 1}


def idle() -> Any:
    """A trainer without training."""
    network, nothing = nn.Linear(2, 2), lambda *_: None
    parts = {"device": CPU, "optimisers": {}, "models": lambda: {False: network}, "release": nothing}
    return SimpleNamespace(**parts, state_dict=dict, load_state_dict=nothing)


@contextmanager
def run_of(settings: VQGANStage, trainer: Any) -> Iterator[TrainingRun]:
    with Job(settings, CPU) as job, TrainingRun(settings, VQGAN, trainer, job) as run:
        yield run


def idle_run(processes: int = 1, trainer: Any = None, **changes: Any) -> Any:
    return run_of(resolve(VQGANStage, SMALL | changes, processes=processes), trainer or idle())


def figures(loss: float, skipped: bool = False, **more: Tensor) -> dict[str, Tensor]:
    return {"loss": torch.tensor(loss), "l1": torch.tensor(loss), "skipped": torch.tensor(float(skipped)), **more}


def go(run: TrainingRun, signals: dict[int, signal.Signals] | None = None) -> None:
    """Make the steps of a run; during those in `signals` there is one. The loss is the step, the first is skipped."""
    for step, _ in run.steps(itertools.repeat(torch.zeros(1))):
        if signals and step + 1 in signals:
            os.kill(os.getpid(), signals[step + 1])
        run.log(step + 1, figures(step + 1.0, skipped=step == 0))
        run.save_if_due(step + 1)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_that_ends_holds_no_graph() -> None:
    """NCCL, which ends after it, waits until no graph holds its messages."""
    trainer, graph = vqgan_trainer(), nn.Identity()  # stands for a step's CUDA graph
    trainer._graph = None, graph
    held = weakref.ref(graph)
    del graph
    with idle_run(trainer=trainer):
        assert held() is not None
    assert held() is None


def test_a_step_is_saved_once_each_time_that_a_signal_asks_for_it_and_one_ends_the_run() -> None:
    with idle_run(train_steps=6, keep_states=9) as run:
        go(run, {1: signal.SIGUSR1, 4: signal.SIGUSR1, 6: signal.SIGTERM})  # the last finds it done
    assert run.folder.state_steps(VQGAN) == [1, 4, 6]
    with pytest.raises(SystemExit) as end, idle_run(train_steps=3, log_dir="other") as run:
        go(run, {2: signal.SIGTERM})
    assert end.value.code == 143
    assert run.folder.state_steps(VQGAN) == [2]


@pytest.mark.parametrize(("failing", "saved"), [("batch", [3]), ("validation", [4]), ("step", [])])
def test_an_error_between_two_steps_comes_after_a_save(failing: str, saved: list[int]) -> None:
    """Half a step is none: what an error in the middle of one leaves is not saved."""

    def batches() -> Iterator[Tensor]:
        yield from itertools.repeat(torch.zeros(1), 3 if failing == "batch" else 9)
        raise ValueError("it")

    with pytest.raises(ValueError, match="it"), idle_run(train_steps=9) as run:  # noqa: PT012
        for step, _ in run.steps(batches()):
            if failing == "step" and step == 3:
                raise ValueError("it")
            run.log(step + 1, figures(1.0))
            if failing == "validation" and step == 3:
                raise ValueError("it")
            run.save_if_due(step + 1)
    assert run.folder.state_steps(VQGAN) == saved


def lines(run: TrainingRun, *names: str) -> list[tuple[float, ...]]:
    read = [json.loads(line) for line in run.folder.metrics.read_text().splitlines()]
    return [tuple(line[name] for name in ("step", *names)) for line in read]


def test_lines_of_a_resumed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was interrupted between two lines: means go over both parts, rates over its own steps."""
    monkeypatch.setattr(Stopwatch, "pop", lambda _: {"step": 1.0})
    with idle_run(train_steps=3) as run:
        go(run)
    with idle_run(train_steps=6, resume=True) as run:
        go(run)
    means = lines(run, "loss", "skipped_updates", "steps_per_second")
    assert means == [(2, 1.5, 1, 2), (4, 3.5, 1, 1), (6, 5.5, 1, 2)]


def test_a_command_that_goes_on_leaves_the_settings_of_its_run() -> None:
    """Or the next one, on as many processes as the first, would ask for other batches than the run has."""
    with idle_run(train_steps=3, batch_size=4) as run:
        go(run)
    saved = run.folder.hparams.read_text()
    for processes in (2, 1):
        with idle_run(processes, train_steps=3, batch_size=4) as run:
            assert (run.start, run.settings.run.batch_size) == (3, 4 // processes)
        assert run.folder.hparams.read_text() == saved
    with idle_run(2, train_steps=4, resume=True):
        assert run.folder.hparams.read_text() != saved


def test_rates_and_codebook_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stopwatch, "pop", lambda _: {"data": 1.0, "step": 2.0, "other": 5.0})
    with idle_run(train_steps=6, batch_size=5, accumulate_steps=3, steps_per_checkpoint=4) as run:
        for done in (1, 2, 3, 4):
            run.log(done, figures(1.0, code_counts=torch.tensor([4.0, 0.0, 4.0, 0.0])))
        run.save_if_due(4)
        status = shown(run.folder.path).words["run"]
        assert "4 of 6" in status
        assert "8 s" in status  # left
        run.save_if_due(6)
        assert " 0 s" in shown(run.folder.path).words["run"]
    rates = {"steps_per_second": 0.25, "images_per_second": 3.75, "data_ms": 500, "step_ms": 1000, "other_ms": 2500}
    expected = rates | {"codebook_perplexity": 2, "codebook_used": 0.5}
    assert lines(run, *expected)[-1] == pytest.approx((4, *expected.values()))


@pytest.mark.parametrize("loaded", [False, True])
def test_a_run_interrupted_before_its_first_save_starts_again_without_what_others_left(loaded: bool) -> None:
    source, trainer = idle(), idle()
    with idle_run(train_steps=3, log_dir="source", trainer=source) as run:
        go(run)
    with idle_run(train_steps=9) as run:
        run.baselines({"entropy": 1.0})
        for done in (1, 2, 3, 4):
            run.log(done, figures(0.0))
    more = {"load_dir": "source", "load_step": 3} if loaded else {}
    with idle_run(train_steps=6, **more) as run:
        run.baselines({"entropy": 2.0})
    with run_of(resolve(VQGANStage, {"log_dir": "run", "resume": True}), trainer) as run:
        assert run.start == (3 if loaded else 0)
        run.baselines({"entropy": 2.0})
        go(run)
    first, wanted = (3, [4, 6]) if loaded else (0, [2, 4, 6])
    weights = (each.models()[False].weight for each in (source, trainer))
    assert torch.equal(*weights) == loaded
    assert lines(run) == [(first,), *((step,) for step in wanted)]
    assert curve(run.folder.path, "loss", "train")[0] == wanted
    assert run.folder.log.read_text().count("entropy") == 1


@pytest.mark.parametrize("whole", [False, True])
def test_weights_of_a_step_that_could_not_be_saved_take_no_room(monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    """Unless all of it was written, and the disk failed after that."""

    def failing(folder: RunFolder, kind: str, step: int, *rest: Any) -> None:
        if step > 1 or whole:
            save_step(folder, kind, step, *rest)
        else:
            folder.model_file(kind, step).parent.mkdir()
            folder.model_file(kind, step).touch()
        if step == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("utils.runs.checkpoints.save_step", failing)
    with idle_run(train_steps=2, steps_per_checkpoint=1) as run:
        go(run)
    assert run.folder.model_steps(VQGAN) == run.folder.state_steps(VQGAN) == ([1, 2] if whole else [2])
    assert run.folder.model_file(VQGAN, 1).exists() == whole
    assert "step 1 could not be saved" in run.folder.log.read_text()


def test_unreadable_images_stay_known_until_the_data_set_changes() -> None:
    class Images(list[int]):
        fingerprint = "a"

    with idle_run(train_steps=3) as run:
        run.compare_data(Images())
        run.bad_images_met({"1.png": "cannot read it"}, 1000)
        go(run)
    with idle_run(train_steps=6, resume=True) as run:
        run.compare_data(Images())
        run.bad_images_met({"2.png": "nor this"}, 1000)
        assert run.folder.bad_images.read_text().count("\n") == 2
        run.compare_data(Images([1]))
        assert not run.folder.bad_images.exists()
