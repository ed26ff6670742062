"""What the trainers of both stages have: a model, its average, its optimisers, and their state for a resumed run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Generic

import torch
from torch import nn

from hparams.settings.stages import RunSettings
from hparams.settings.training import TrainingSettings
from models.ema import EMA, ModelT
from utils.machine.distributed import Ranks
from utils.training.optimiser import Optimiser


class StageTrainer(Generic[ModelT]):
    """Each of the `ranks` holds all of it, alike, and does its part of every batch.

    Steps count from 0: `step` is the number of updates done so far.
    """

    def __init__(
        self,
        model: ModelT,  # on the device
        trained: Mapping[str, nn.Module],  # networks with an optimiser each, by the published names of these
        idle: Iterable[nn.Parameter],  # parameters that training never uses
        run: RunSettings,
        training: TrainingSettings,
        device: torch.device,
        amp_dtype: torch.dtype | None,
        ranks: Ranks,
    ) -> None:
        self._model = model.train()
        self.device = device
        self.amp_dtype = amp_dtype
        self.ranks = ranks
        self.seed = run.seed
        self.lr = training.lr
        self.micro_batches = training.accumulate_steps
        self.ema: EMA[ModelT] | None = None
        if training.ema:
            every, warmup = training.steps_per_update_ema, training.ema_warmup
            self.ema = EMA(model, training.ema_beta, every=every, warmup=warmup)
        self.optimisers = {
            name: Optimiser(network.parameters(), training.lr, device, amp_dtype) for name, network in trained.items()
        }
        if ranks.count > 1:
            for parameter in idle:
                parameter.requires_grad_(False)  # nothing to send

    @property
    def averaged(self) -> ModelT:
        """The averaged model where there is one, else the trained one."""
        return self.ema.model if self.ema else self._model

    def models(self) -> Mapping[bool, nn.Module]:
        """The models to save, by whether they are the average."""
        return {False: self._model} | ({True: self.ema.model} if self.ema else {})

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the models."""
        return {"optimisers": {name: optimiser.adam.state_dict() for name, optimiser in self.optimisers.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; the models are loaded on their own."""
        for name, optimiser in self.optimisers.items():
            optimiser.load_adam(state["optimisers"][name])
