"""Running means of training metrics, kept on the device until they are logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Averages:
    """Means since the last `pop`, each metric over the steps that had it. Sums are float64."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Enter one step's scalars and vectors, without waiting for the device."""
        for name, value in metrics.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def pop(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The means by name, scalars and then vectors (on the CPU), and a new start."""
        means = {name: (total / self._counts[name]).cpu() for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        scalars = {name: mean.item() for name, mean in means.items() if not mean.ndim}
        return scalars, {name: mean for name, mean in means.items() if mean.ndim}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Sums and counts so far, as plain numbers and lists of them."""
        return {"sums": {name: total.tolist() for name, total in self._sums.items()}, "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]], device: torch.device) -> None:
        """Continue from `state_dict`."""
        self._sums = {
            name: torch.tensor(total, dtype=torch.float64, device=device) for name, total in state["sums"].items()
        }
        self._counts = {name: int(count) for name, count in state["counts"].items()}
