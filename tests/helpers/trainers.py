"""Small models in training, whose settings a test changes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from hparams.resolve import resolve
from hparams.settings.stages import PriorStage, VQGANStage
from models.vqgan.vqgan import PerceptualLoss
from utils.pretrained.building import build_prior, build_vqgan
from utils.runs.job import Job
from utils.training.prior_trainer import PriorTrainer
from utils.training.vqgan_trainer import VQGANTrainer

_BOTH = {"dataset": "churches", "img_size": 16, "nf": 32, "ch_mult": (1, 2)}
_BOTH |= {"ema": True, "ema_beta": 0.9, "steps_per_update_ema": 1}
PRIOR: dict[str, Any] = _BOTH | {"ae_load_dir": "vqgan", "codebook_size": 16, "total_steps": 8}  # of 64 codes
PRIOR |= {"bert_n_emb": 16, "bert_n_head": 2, "bert_n_layers": 1, "lr": 1e-2, "warmup_iters": 0}
VQGAN: dict[str, Any] = _BOTH | {"res_blocks": 1, "attn_resolutions": (), "codebook_size": 32, "emb_dim": 4, "ndf": 8}
VQGAN |= {"disc_layers": 1, "perceptual": "none", "lr": 1e-3, "disc_start_step": 2}


def _job(settings: PriorStage | VQGANStage, device: str, amp_dtype: torch.dtype | None) -> Job:
    job = Job(settings, torch.device(device))
    job.amp_dtype = amp_dtype
    return job


def prior_trainer(amp_dtype: torch.dtype | None = None, *, device: str = "cpu", **changes: Any) -> PriorTrainer:
    settings = resolve(PriorStage, PRIOR | changes)
    torch.manual_seed(0)
    prior = build_prior(settings.prior, settings.autoencoder.codebook_size)
    return PriorTrainer(_job(settings, device, amp_dtype), settings.training, settings.prior, prior)


def vqgan_trainer(
    amp_dtype: torch.dtype | None = None,
    *,
    device: str = "cpu",
    perceptual: PerceptualLoss | None = None,
    **changes: Any,
) -> VQGANTrainer:
    settings = resolve(VQGANStage, VQGAN | changes)
    torch.manual_seed(0)
    vqgan = build_vqgan(settings.autoencoder, settings.vqgan, perceptual)
    return VQGANTrainer(_job(settings, device, amp_dtype), settings.training, settings.vqgan, vqgan)


def state_of(trainer: PriorTrainer | VQGANTrainer) -> dict[str, Tensor]:
    """What is saved of its models, copied."""
    return {
        f"{ema} {name}": value.clone()
        for ema, model in trainer.models().items()
        for name, value in model.state_dict().items()
    }


def go_on(trainer: PriorTrainer | VQGANTrainer, other: PriorTrainer | VQGANTrainer) -> None:
    """From where another one is."""
    for ema, model in trainer.models().items():
        model.load_state_dict(other.models()[ema].state_dict())
    trainer.load_state_dict(copy.deepcopy(other.state_dict()))
