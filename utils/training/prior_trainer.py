"""One update of the prior, and its validation (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hparams.settings.models import PriorSettings
from hparams.settings.training import TrainingSettings
from models.prior.prior import Codes, Draws, Prior
from utils.machine.compiling import compile_blocks
from utils.machine.distributed import replicate, synced
from utils.machine.evaluation import evaluating
from utils.machine.seeding import make_generator, reseed, seed_global
from utils.runs.job import Job
from utils.training.optimiser import warmed_up
from utils.training.trainer import StageTrainer

VALIDATION_PASSES = 5  # over the validation codes, each with fresh times and masks, as published


class Objective(nn.Module):
    """A prior's training losses as one module, so that gradients can be averaged while its backward pass goes on."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, codes: Codes, draws: Draws | None) -> Tensor:
        """[2,B]: the objective, and code length or bound in bits per token, without its gradient."""
        losses = self.prior.losses(codes, draws)
        return torch.stack([losses.loss, losses.vb_loss.detach()])


class PriorTrainer(StageTrainer[Prior]):
    """Updates of a prior and its validation."""

    def __init__(self, job: Job, training: TrainingSettings, settings: PriorSettings, prior: Prior) -> None:
        self.prior = prior.to(job.device)
        super().__init__(job, training, prior, {str(settings.sampler): prior}, prior.idle_parameters())
        for model in self.models().values():
            compile_blocks(model, job.compile, job.device)
        self.optimiser, self.warmup_iters = self.optimisers[settings.sampler], settings.warmup_iters
        compress = training.compress_gradients
        self._objective = replicate(Objective(prior), job.ranks, compress=compress, stream=self._stream)

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
        metrics = self.replayed(self._update)(ids.long())
        if self.ema:
            self.ema.follow(self.prior, step)
        return {**metrics, "lr": torch.tensor(lr)}

    def _update(self, ids: Tensor) -> dict[str, Tensor]:
        """What `step` does on the device, and what it returns but the rate."""
        draws = self.prior.draw(len(ids) * self.ranks.count, self._generator)  # for the whole batch
        self.optimiser.zero_grad()
        losses, size = [], len(ids) // self.micro_batches
        for start in range(0, len(ids), size):
            first = self.ranks.rank * len(ids) + start
            with synced(self._objective, last=start + size == len(ids)):
                with self.autocast():
                    both = self._objective(Codes(ids[start : start + size]), draws and draws[first : first + size])
                self.optimiser.scaler.scale(both[0].mean() / self.micro_batches).backward()
            losses.append(both.detach().T)
        loss, bound = self.ranks.gather(torch.cat(losses)).unbind(1)
        if draws:
            self.prior.record(draws.t, loss, bound)
        finite = self.optimiser.step()
        metrics = {"loss": loss.mean(), "elbo_bits_per_token": bound.mean(), "skipped": (~finite).float()}
        return {**metrics, **self.prior.metrics()}

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
                    with self.autocast():
                        sums += objective(Codes(ids[batch].long()), draws and draws[batch]).double().sum(1)
                passes += 1
        loss, elbo = (self.ranks.sum(sums) / (passes * len(ids))).tolist()
        return {"loss": loss, "elbo_bits_per_token": elbo}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"scaler": self.optimiser.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.optimiser.load_scaler(state["scaler"])
