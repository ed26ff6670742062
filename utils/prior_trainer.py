"""One update of the prior, its validation, and all the state that a resumed run needs (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hparams.settings import PriorStage
from models.absorbing import AbsorbingDiffusion
from models.autoregressive import AutoregressivePrior
from models.diffusion import sample_mask, sample_time
from utils.building import Prior
from utils.compiling import compile_prior
from utils.ema import EMA
from utils.evaluation import evaluating
from utils.optimiser import Optimiser
from utils.seeding import make_generator, seed_global

VALIDATION_PASSES = 5  # over the validation codes, each with fresh times and masks, as published


def warmed_up(lr: float, step: int, warmup_iters: int) -> float:
    """Learning rate of the update after `step` updates: linear from 0, `lr` from `warmup_iters` on."""
    return lr * min(1.0, step / warmup_iters) if warmup_iters else lr


@dataclass(frozen=True)
class Losses:
    """Objective and bound, one value per image [B]; both are −log2 p per token for the autoregressive prior."""

    loss: Tensor
    elbo: Tensor  # bits per token


class PriorTrainer:
    """Owns prior, average and optimiser. Steps count from 0: `step` is the number of updates done so far."""

    def __init__(self, settings: PriorStage, prior: Prior, device: torch.device, amp_dtype: torch.dtype | None) -> None:
        self.prior = prior.to(device).train()
        self.device = device
        self.amp_dtype = amp_dtype
        self.seed = settings.run.seed
        self.ema = EMA(prior, settings.training.ema_beta) if settings.training.ema else None
        for model in self.models().values():
            compile_prior(model, settings.run.compile, device)
        self.steps_per_update_ema = settings.training.steps_per_update_ema
        self.settings = settings.prior
        self.lr = settings.training.lr
        self.optimiser = Optimiser(prior.parameters(), self.lr, device, amp_dtype)
        self.optimisers = {self.settings.sampler: self.optimiser}

    @property
    def averaged(self) -> Prior:
        """The averaged model where there is one, else the trained one."""
        return self.ema.model if self.ema else self.prior

    def models(self) -> Mapping[bool, torch.nn.Module]:
        """The models to save, by whether they are the average."""
        return {False: self.prior} | ({True: self.ema.model} if self.ema else {})

    def step(self, ids: Tensor, step: int) -> dict[str, Tensor]:
        """One update on codes ids [B,N] int64; returns scalars: objective, bound in bits per token, rate.

        `skipped` is 1 where the gradients were not finite: then the weights stay as they were.
        """
        generator = make_generator(self.device, self.seed, "prior", step)
        seed_global(self.seed, "dropout", step)
        lr = warmed_up(self.lr, step, self.settings.warmup_iters)
        for group in self.optimiser.adam.param_groups:
            group["lr"] = lr

        losses = self._losses(self.prior, ids, generator, record=True)
        self.optimiser.zero_grad()
        self.optimiser.scaler.scale(losses.loss.mean()).backward()
        finite = self.optimiser.step()
        if self.ema and step > 0 and step % self.steps_per_update_ema == 0:
            self.ema.update(self.prior)
        means = {"loss": losses.loss.mean(), "elbo_bits_per_token": losses.elbo.mean()}
        return {**means, "lr": torch.tensor(lr), "skipped": (~finite).float()}

    def validate(self, ids: Tensor, batch_size: int) -> dict[str, float]:
        """Mean objective and bound of the averaged model on all codes ids [n,N], over `VALIDATION_PASSES` passes.

        Times and masks are the same at every validation, so that curves compare; no history is touched.
        """
        model, sums, seen = self.averaged, torch.zeros(2, dtype=torch.float64), 0
        generator = make_generator(self.device, self.seed, "validation")
        passes = VALIDATION_PASSES if isinstance(model, AbsorbingDiffusion) else 1
        with evaluating(model):
            for _ in range(passes):
                for batch in ids.split(batch_size):
                    losses = self._losses(model, batch, generator)
                    sums += torch.stack([losses.loss.double().sum(), losses.elbo.double().sum()]).cpu()
                    seen += len(batch)
        loss, elbo = (sums / seen).tolist()
        return {"loss": loss, "elbo_bits_per_token": elbo}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the models."""
        optimisers = {name: optimiser.adam.state_dict() for name, optimiser in self.optimisers.items()}
        return {"optimisers": optimisers, "scaler": self.optimiser.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; the models are loaded on their own."""
        for name, optimiser in self.optimisers.items():
            optimiser.load_adam(state["optimisers"][name])
        self.optimiser.scaler.load_state_dict(state["scaler"])

    def _losses(self, model: Prior, ids: Tensor, generator: torch.Generator, *, record: bool = False) -> Losses:
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            ids = ids.long()
            if isinstance(model, AutoregressivePrior):
                bits = model.losses(ids)
                return Losses(bits, bits)
            t = sample_time(len(ids), model.total_steps, generator)
            mask = sample_mask(t, model.total_steps, ids.shape[1], self.settings.mask_schedule, generator)
            losses = model.losses(ids, t, mask, self.settings.loss_type, self.settings.reweighting)
        if record:
            model.record(t, losses)
        return Losses(losses.loss, losses.vb_loss)
