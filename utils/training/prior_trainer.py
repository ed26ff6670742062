"""One update of the prior, and its validation (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hparams.settings.models import PriorSettings
from hparams.settings.stages import RunSettings
from hparams.settings.training import TrainingSettings
from models.prior.prior import Codes, Draws, Prior
from utils.machine.compiling import capture_stream, captured_step, compile_blocks
from utils.machine.devices import autocast
from utils.machine.distributed import ALONE, Ranks, replicate, synced
from utils.machine.evaluation import evaluating
from utils.machine.seeding import make_generator, reseed, seed_global
from utils.training.trainer import StageTrainer

VALIDATION_PASSES = 5  # over the validation codes, each with fresh times and masks, as published


def warmed_up(lr: float, step: int, warmup_iters: int) -> float:
    """Learning rate of the update after `step` updates: linear from 0, `lr` from `warmup_iters` on."""
    return lr * min(1.0, step / warmup_iters) if warmup_iters else lr


class Objective(nn.Module):
    """A prior's training losses as one module, so that gradients can be averaged while its backward pass goes on."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, codes: Codes, draws: Draws | None) -> tuple[Tensor, Tensor]:
        """Objective [B], and code length or bound [B] in bits per token."""
        losses = self.prior.losses(codes, draws)
        return losses.loss, losses.vb_loss


class PriorTrainer(StageTrainer[Prior]):
    """Updates of a prior and its validation."""

    def __init__(
        self,
        run: RunSettings,
        training: TrainingSettings,
        settings: PriorSettings,
        prior: Prior,
        device: torch.device,
        amp_dtype: torch.dtype | None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.prior = prior.to(device)
        trained: dict[str, nn.Module] = {settings.sampler: prior}
        super().__init__(prior, trained, prior.idle_parameters(), run, training, device, amp_dtype, ranks)
        for model in self.models().values():
            compile_blocks(model, run.compile, device)
        self.warmup_iters = settings.warmup_iters
        self.optimiser = self.optimisers[settings.sampler]
        stream = capture_stream(run.compile, device, amp_dtype, ranks)
        self._objective = replicate(Objective(prior), ranks, compress=training.compress_gradients, stream=stream)
        self._generator = torch.Generator(device)
        self._update: Callable[[Tensor], dict[str, Tensor]] = captured_step(
            self._update_weights, self._generator, stream, ranks
        )

    def step(self, ids: Tensor, step: int) -> dict[str, Tensor]:
        """One update on codes ids [B,N] int64, this process's part of the step's batch.

        Returns scalars over the whole batch: objective, bound in bits per token, rate. Of the absorbing prior also
        `loss_by_time` [T], the objective's moving average at t = 1..T. `skipped` is 1 where the gradients were not
        finite: then the weights stay as they were.
        """
        reseed(self._generator, self.seed, "prior", step)
        seed_global(self.seed, "dropout", step, *([self.ranks.rank] if self.ranks.rank else []))
        lr = warmed_up(self.lr, step, self.warmup_iters)
        self.optimiser.set_rate(lr)
        metrics = self._update(ids.long())
        if self.ema:
            self.ema.follow(self.prior, step)
        return {**metrics, "lr": torch.tensor(lr)}

    def _update_weights(self, ids: Tensor) -> dict[str, Tensor]:
        """What `step` does on the device, and what it returns but the rate."""
        draws = self.prior.draw(len(ids) * self.ranks.count, self._generator)  # for the whole batch
        self.optimiser.zero_grad()
        losses, bounds = [], []
        size = len(ids) // self.micro_batches
        for start in range(0, len(ids), size):
            first = self.ranks.rank * len(ids) + start
            last = start + size == len(ids)
            with synced(self._objective, last=last):
                with autocast(self.device, self.amp_dtype):
                    codes = Codes(ids[start : start + size])
                    loss, bound = self._objective(codes, draws and draws[first : first + size])
                self.optimiser.scaler.scale(loss.mean() / self.micro_batches).backward()
            losses.append(loss.detach())
            bounds.append(bound.detach())
        loss, bound = self.ranks.gather(torch.stack([torch.cat(losses), torch.cat(bounds)], dim=1)).unbind(1)
        if draws:
            self.prior.record(draws.t, loss, bound)
        finite = self.optimiser.step()
        means = {"loss": loss.mean(), "elbo_bits_per_token": bound.mean()}
        return {**means, **self.prior.metrics(), "skipped": (~finite).float()}

    def validate(self, ids: Tensor, batch_size: int) -> dict[str, float]:
        """Mean objective and bound of the averaged model on all codes ids [n,N].

        Where something is random, the mean is over `VALIDATION_PASSES` passes, and the same at every validation, so
        that curves compare; no history is touched. Each process evaluates its share.
        """
        model, sums = self.averaged, torch.zeros(2, dtype=torch.float64, device=self.device)
        objective, passes = Objective(model), 0
        generator = make_generator(self.device, self.seed, "validation")
        share = torch.arange(len(ids), device=ids.device)[self.ranks.rank :: self.ranks.count]
        draws: Draws | None = None
        with evaluating(model):
            while passes == 0 or (draws and passes < VALIDATION_PASSES):  # nothing random: one pass tells all
                draws = model.draw(len(ids), generator)
                for start in range(0, len(share), batch_size):  # none where there are more processes than codes
                    batch = share[start : start + batch_size]
                    with autocast(self.device, self.amp_dtype):
                        losses = objective(Codes(ids[batch].long()), draws and draws[batch])
                    sums += torch.stack([values.double().sum() for values in losses])
                passes += 1
        loss, elbo = (self.ranks.sum(sums) / (passes * len(ids))).tolist()
        return {"loss": loss, "elbo_bits_per_token": elbo}

    def release(self) -> None:
        """Let go of CUDA graphs; steps may follow, which run as they are."""
        self._update = self._update_weights

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the models."""
        return super().state_dict() | {"scaler": self.optimiser.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; the models are loaded on their own."""
        super().load_state_dict(state)
        self.optimiser.load_scaler(state["scaler"])
