"""What the trainers of both stages have: a model, its average, its optimisers, and their state for a resumed run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Generic

import torch
from torch import Tensor, nn

from hparams.settings.training import TrainingSettings
from models.ema import EMA, ModelT
from utils.machine.compiling import capture_stream, captured_step
from utils.runs.job import Job
from utils.training.optimiser import Optimiser


class StageTrainer(Generic[ModelT]):
    """Each process holds all of it, alike, and does its part of every batch. `step` is the number of updates before."""

    def __init__(
        self,
        job: Job,
        training: TrainingSettings,
        model: ModelT,  # on the job's device
        trained: Mapping[str, nn.Module],  # networks with an optimiser each, by the published names of these
        idle: Iterable[nn.Parameter],  # parameters that training never uses
        *,
        capturable: bool = True,  # whether a CUDA graph can hold an update
    ) -> None:
        self.device, self.ranks, self.seed, self.autocast = job.device, job.ranks, job.seed, job.autocast
        self.lr, self.micro_batches = training.lr, training.accumulate_steps
        self._model = model.train()
        self.ema: EMA[ModelT] | None = None
        if training.ema:
            self.ema = EMA(model, training.ema_beta, every=training.steps_per_update_ema, warmup=training.ema_warmup)
        self.optimisers = {
            name: Optimiser(net.parameters(), self.lr, job.device, job.amp_dtype) for name, net in trained.items()
        }
        for parameter in idle if job.ranks.count > 1 else ():
            parameter.requires_grad_(False)  # nothing to send
        self._generator = torch.Generator(job.device)  # of a step's random numbers
        self._stream = capture_stream(job.compile, job.device, job.amp_dtype, job.ranks) if capturable else None
        self._graph: tuple[Hashable, Callable[..., Any]] | None = None

    @property
    def averaged(self) -> ModelT:
        """The averaged model where there is one, else the trained one."""
        return self.ema.model if self.ema else self._model

    def models(self) -> Mapping[bool, nn.Module]:
        """The models to save, by whether they are the average."""
        return {False: self._model} | ({True: self.ema.model} if self.ema else {})

    def replayed(self, update: Callable[[Tensor], Any], phase: Hashable = None) -> Callable[[Tensor], Any]:
        """`update`, or its CUDA graph: one for each phase, in which it does the same work on the device."""
        if self._stream is None:
            return update
        if self._graph is None or self._graph[0] != phase:
            self._graph = phase, captured_step(update, self._generator, self._stream, self.ranks)
        return self._graph[1]

    def release(self) -> None:
        """Let go of CUDA graphs; steps may follow, which run as they are for a while."""
        self._graph = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the models."""
        return {"optimisers": {name: optimiser.adam.state_dict() for name, optimiser in self.optimisers.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, optimiser in self.optimisers.items():
            optimiser.load_adam(state["optimisers"][name])
