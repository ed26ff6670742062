"""One update of the prior, its validation, and all the state that a resumed run needs (paper, section 3.2)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hparams.settings.models import PriorSettings
from hparams.settings.stages import PriorStage
from models.ema import EMA
from models.prior.absorbing import AbsorbingDiffusion
from models.prior.autoregressive import AutoregressivePrior
from models.prior.diffusion import sample_mask, sample_time
from utils.machine.compiling import capture_stream, captured_step, compile_prior
from utils.machine.devices import autocast
from utils.machine.distributed import ALONE, Ranks, replicate
from utils.machine.evaluation import evaluating
from utils.machine.seeding import make_generator, reseed, seed_global
from utils.pretrained.building import Prior
from utils.training.optimiser import Optimiser

VALIDATION_PASSES = 5  # over the validation codes, each with fresh times and masks, as published


def warmed_up(lr: float, step: int, warmup_iters: int) -> float:
    """Learning rate of the update after `step` updates: linear from 0, `lr` from `warmup_iters` on."""
    return lr * min(1.0, step / warmup_iters) if warmup_iters else lr


@dataclass(frozen=True)
class Draws:
    """What is random in the diffusion's losses of a batch: times t [B] int64, and masks [B,N] bool."""

    t: Tensor
    mask: Tensor

    def __getitem__(self, images: slice | Tensor) -> Draws:
        return Draws(self.t[images], self.mask[images])


class Objective(nn.Module):
    """A prior's training losses as one module, so that gradients can be averaged while its backward pass goes on."""

    def __init__(self, prior: Prior, settings: PriorSettings) -> None:
        super().__init__()
        self.prior = prior
        self.settings = settings

    def forward(self, ids: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor]:
        """Codes ids [B,N] int64 → objective [B], and bound [B] in bits per token.

        Both are −log2 p per token for the autoregressive prior, which has no draws.
        """
        if isinstance(self.prior, AutoregressivePrior):
            bits = self.prior.losses(ids)
            return bits, bits
        assert draws is not None
        losses = self.prior.losses(ids, draws.t, draws.mask, self.settings.loss_type, self.settings.reweighting)
        return losses.loss, losses.vb_loss


class PriorTrainer:
    """Owns prior, average and optimiser. Steps count from 0: `step` is the number of updates done so far.

    Each of the `ranks` holds all of them, alike, and does its part of every batch.
    """

    def __init__(
        self,
        settings: PriorStage,
        prior: Prior,
        device: torch.device,
        amp_dtype: torch.dtype | None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.prior = prior.to(device).train()
        self.device = device
        self.amp_dtype = amp_dtype
        self.ranks = ranks
        self.micro_batches = settings.training.accumulate_steps
        self.seed = settings.run.seed
        training = settings.training
        self.ema: EMA[Prior] | None = None
        if training.ema:
            every, warmup = training.steps_per_update_ema, training.ema_warmup
            self.ema = EMA(prior, training.ema_beta, every=every, warmup=warmup)
        for model in self.models().values():
            compile_prior(model, settings.run.compile, device)
        self.settings = settings.prior
        self.lr = settings.training.lr
        self.optimiser = Optimiser(prior.parameters(), self.lr, device, amp_dtype)
        self.optimisers: dict[str, Optimiser] = {self.settings.sampler: self.optimiser}
        if ranks.count > 1:
            for parameter in prior.idle_parameters():
                parameter.requires_grad_(False)  # nothing to send
        stream = capture_stream(settings.run.compile, device, amp_dtype, ranks)
        self._objective = replicate(
            Objective(prior, self.settings), ranks, compress=settings.training.compress_gradients, stream=stream
        )
        self._generator = torch.Generator(device)
        self._update: Callable[[Tensor], dict[str, Tensor]] = captured_step(
            self._update_weights, self._generator, stream, ranks
        )

    @property
    def averaged(self) -> Prior:
        """The averaged model where there is one, else the trained one."""
        return self.ema.model if self.ema else self.prior

    def models(self) -> Mapping[bool, torch.nn.Module]:
        """The models to save, by whether they are the average."""
        return {False: self.prior} | ({True: self.ema.model} if self.ema else {})

    def step(self, ids: Tensor, step: int) -> dict[str, Tensor]:
        """One update on codes ids [B,N] int64, this process's part of the step's batch.

        Returns scalars over the whole batch: objective, bound in bits per token, rate. Of the absorbing prior also
        `loss_by_time` [T], the objective's moving average at t = 1..T. `skipped` is 1 where the gradients were not
        finite: then the weights stay as they were.
        """
        reseed(self._generator, self.seed, "prior", step)
        seed_global(self.seed, "dropout", step, *([self.ranks.rank] if self.ranks.rank else []))
        lr = warmed_up(self.lr, step, self.settings.warmup_iters)
        self.optimiser.set_rate(lr)
        metrics = self._update(ids.long())
        if self.ema:
            self.ema.follow(self.prior, step)
        return {**metrics, "lr": torch.tensor(lr)}

    def _update_weights(self, ids: Tensor) -> dict[str, Tensor]:
        """What `step` does on the device, and what it returns but the rate."""
        draws = self._draw(self.prior, len(ids) * self.ranks.count, self._generator)
        self.optimiser.zero_grad()
        losses, bounds = [], []
        size = len(ids) // self.micro_batches
        for start in range(0, len(ids), size):
            first = self.ranks.rank * len(ids) + start
            last = start + size == len(ids)
            with contextlib.nullcontext() if last else self._objective.no_sync():
                with autocast(self.device, self.amp_dtype):
                    loss, bound = self._objective(ids[start : start + size], draws and draws[first : first + size])
                self.optimiser.scaler.scale(loss.mean() / self.micro_batches).backward()
            losses.append(loss.detach())
            bounds.append(bound.detach())
        loss, bound = self.ranks.gather(torch.stack([torch.cat(losses), torch.cat(bounds)], dim=1)).unbind(1)
        if draws and isinstance(self.prior, AbsorbingDiffusion):
            self.prior.record(draws.t, loss, bound)
        finite = self.optimiser.step()
        means = {"loss": loss.mean(), "elbo_bits_per_token": bound.mean()}
        if isinstance(self.prior, AbsorbingDiffusion):
            means["loss_by_time"] = self.prior.loss_by_time()
        return {**means, "skipped": (~finite).float()}

    def validate(self, ids: Tensor, batch_size: int) -> dict[str, float]:
        """Mean objective and bound of the averaged model on all codes ids [n,N], over `VALIDATION_PASSES` passes.

        Times and masks are the same at every validation, so that curves compare; no history is touched. Each process
        evaluates its share.
        """
        model, sums = self.averaged, torch.zeros(2, dtype=torch.float64, device=self.device)
        objective = Objective(model, self.settings)
        generator = make_generator(self.device, self.seed, "validation")
        passes = VALIDATION_PASSES if isinstance(model, AbsorbingDiffusion) else 1
        share = torch.arange(len(ids), device=ids.device)[self.ranks.rank :: self.ranks.count]
        with evaluating(model):
            for _ in range(passes):
                draws = self._draw(model, len(ids), generator)
                for start in range(0, len(share), batch_size):  # none where there are more processes than codes
                    batch = share[start : start + batch_size]
                    with autocast(self.device, self.amp_dtype):
                        losses = objective(ids[batch].long(), draws and draws[batch])
                    sums += torch.stack([values.double().sum() for values in losses])
        loss, elbo = (self.ranks.sum(sums) / (passes * len(ids))).tolist()
        return {"loss": loss, "elbo_bits_per_token": elbo}

    def release(self) -> None:
        """Let go of CUDA graphs; steps may follow, which run as they are."""
        self._update = self._update_weights

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the models."""
        optimisers = {name: optimiser.adam.state_dict() for name, optimiser in self.optimisers.items()}
        return {"optimisers": optimisers, "scaler": self.optimiser.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; the models are loaded on their own."""
        for name, optimiser in self.optimisers.items():
            optimiser.load_adam(state["optimisers"][name])
        self.optimiser.load_scaler(state["scaler"])

    def _draw(self, model: Prior, images: int, generator: torch.Generator) -> Draws | None:
        """Times and masks of a whole batch, or of all validation images."""
        if isinstance(model, AutoregressivePrior):
            return None
        t = sample_time(images, model.total_steps, generator)
        return Draws(t, sample_mask(t, model.total_steps, model.tokens, self.settings.mask_schedule, generator))
