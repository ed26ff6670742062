"""What a run lets go of at its end; `tests/scripts` see to the rest."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from hparams.fields import settings_of
from hparams.resolve import resolve
from hparams.settings import PriorStage, VQGANStage
from utils.building import build_prior, build_vqgan
from utils.prior_trainer import PriorTrainer
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
