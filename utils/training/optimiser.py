"""Adam for one network, with updates left out where gradients are not finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from utils.training.moments import put_moments


class Optimiser:
    """Adam, and the loss scaler that float16 needs. An update whose gradients are not all finite is skipped.

    Nothing waits for the device to know: the fused Adam is told to skip by a tensor.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        device: torch.device,
        amp_dtype: torch.dtype | None,
        *,
        max_norm: float | None = None,  # of all gradients together: longer ones are scaled down to it
    ) -> None:
        self._parameters = list(parameters)
        self._max_norm = max_norm
        # On CUDA nothing about a step is a number of the host's, so that a CUDA graph can hold it.
        on_device = device.type == "cuda"
        rate = torch.tensor(lr, device=device) if on_device else lr
        self.adam = torch.optim.Adam(self._parameters, lr=rate, fused=True, capturable=on_device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16)

    def set_rate(self, lr: float) -> None:
        """Learning rate of the updates to come."""
        for group in self.adam.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.adam.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self) -> Tensor:
        """Update the parameters by their gradients if these are finite; returns whether they were, a bool scalar."""
        self.scaler.unscale_(self.adam)
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        finite = norm.isfinite()
        if self._max_norm is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self._max_norm, norm)
        if self.scaler.is_enabled():
            self.scaler.step(self.adam)
            self.scaler.update()
        else:
            self.adam.found_inf = (~finite).to(torch.float32)  # type: ignore[attr-defined]
            self.adam.step()
        return finite

    def load_adam(self, state: Mapping[str, Any]) -> None:
        """Moments of Adam's own state dict, of whatever device it was saved on; the rate stays the settings'."""
        put_moments(self.adam, state)

    def load_scaler(self, state: Mapping[str, Any]) -> None:
        """The scaler's own state dict; it is empty where a run did without float16, and scaling then starts anew."""
        if state:
            self.scaler.load_state_dict(dict(state))
