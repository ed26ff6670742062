"""Runs of a network that learns nothing; `tests/scripts` see to the rest."""

from __future__ import annotations

import itertools
import json
import os
import signal
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hparams.fields import settings_of
from hparams.resolve import resolve
from hparams.settings import PriorStage, VQGANStage
from utils.building import build_prior, build_vqgan
from utils.prior_trainer import PriorTrainer
from utils.run_folder import VQGAN
from utils.stopwatch import Stopwatch
from utils.training_run import TrainingRun
from utils.vqgan_trainer import VQGANTrainer

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "dataset": "churches",
    "log_dir": "run",
    "device": "cpu",
    "visdom_port": 9,
    "quiet": True,
    "summary": False,
    "img_size": 8,
    "nf": 32,
    "ch_mult": (1, 1),
    "codebook_size": 16,
    "perceptual": "none",
    "disc_layers": 1,
    "ae_load_dir": "vqgan",
    "bert_n_emb": 16,
    "bert_n_head": 2,
    "bert_n_layers": 1,
}


class Replayed:
    """Stands for a step's CUDA graph."""


@pytest.mark.parametrize("stage", [VQGANStage, PriorStage])
def test_a_run_that_ends_holds_no_graph(stage: type[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL, which ends after it, waits until no graph holds its messages."""
    monkeypatch.chdir(tmp_path)
    settings = resolve(stage, {name: value for name, value in SMALL.items() if name in settings_of(stage)})
    trainer: Any
    graph = Replayed()
    if stage is VQGANStage:
        vqgan = build_vqgan(settings.autoencoder, settings.vqgan, perceptual=None)
        trainer = VQGANTrainer(settings, vqgan, CPU, None)
        trainer._of_phase = (True, True), graph
    else:
        prior = build_prior(settings.prior, settings.autoencoder.codebook_size)
        trainer = PriorTrainer(settings, prior, CPU, None)
        trainer._update = graph
    held = weakref.ref(graph)
    del graph
    with TrainingRun(settings, "vqgan" if stage is VQGANStage else "absorbing", trainer):
        assert held() is not None
    assert held() is None


class Idle:
    """A trainer without training."""

    def __init__(self) -> None:
        self.device = CPU
        self.optimisers: dict[str, Any] = {}
        self.network = nn.Linear(2, 2)

    def models(self) -> dict[bool, nn.Module]:
        return {False: self.network}

    def release(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def idle_run(**changes: Any) -> TrainingRun:
    cadences = {name: 0 for name in settings_of(VQGANStage) if name.startswith("steps_per_")}
    given = {"ema": False, **cadences, "steps_per_log": 2, "steps_per_update_ema": 1, **SMALL, **changes}
    settings = resolve(VQGANStage, {name: value for name, value in given.items() if name in settings_of(VQGANStage)})
    return TrainingRun(settings, VQGAN, Idle())


def go(run: TrainingRun, signals: dict[int, signal.Signals] | None = None) -> None:
    """Make the steps of a run; during those in `signals` there is one."""
    for step, _ in run.steps(itertools.repeat(torch.zeros(1))):
        if signals and step + 1 in signals:
            os.kill(os.getpid(), signals[step + 1])
        run.log(step + 1, {"loss": torch.zeros(()), "l1": torch.zeros(()), "skipped": torch.zeros(())})
        run.save_if_due(step + 1, Idle())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("here")
def test_a_signal_during_the_last_step_finds_a_run_that_is_done() -> None:
    with idle_run(train_steps=3) as run:
        go(run, {3: signal.SIGTERM})
    assert run.folder.state_steps(VQGAN) == [3]
    with pytest.raises(SystemExit) as end, idle_run(train_steps=3, log_dir="other") as run:
        go(run, {2: signal.SIGTERM})
    assert end.value.code == 143
    assert run.folder.state_steps(VQGAN) == [2]


@pytest.mark.usefixtures("here")
def test_a_step_is_saved_once_each_time_that_it_is_asked_for() -> None:
    with idle_run(train_steps=6, keep_states=9) as run:
        go(run, {1: signal.SIGUSR1, 4: signal.SIGUSR1})
    assert run.folder.state_steps(VQGAN) == [1, 4, 6]


@pytest.mark.usefixtures("here")
def test_rates_count_the_steps_since_the_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stopwatch, "pop", lambda _: {"step": 1.0})
    with idle_run(train_steps=3) as run:
        go(run)
    with idle_run(train_steps=6, resume=True) as run:
        go(run)
    lines = [json.loads(line) for line in run.folder.metrics.read_text().splitlines()]
    assert [(line["step"], line["steps_per_second"]) for line in lines] == [(2, 2), (4, 1), (6, 2)]


@pytest.mark.usefixtures("here")
def test_unreadable_images_stay_known_until_the_data_set_changes() -> None:
    class Images(SimpleNamespace):
        def __len__(self) -> int:
            return 1000

    with idle_run(train_steps=3) as run:
        run.compare_data(Images(fingerprint="a"))
        run.bad_images.report({"1.png": "cannot read it"}, 1000)
        go(run)
    with idle_run(train_steps=6, resume=True) as run:
        run.compare_data(Images(fingerprint="a"))
        assert len(run.bad_images) == 1
        run.compare_data(Images(fingerprint="b"))
        assert len(run.bad_images) == 0
        assert not run.folder.bad_images.exists()
