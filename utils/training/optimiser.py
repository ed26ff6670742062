"""Adam for one network, which skips updates that are not finite, and its moments from a checkpoint of any code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hparams.errors import UserError

_MOMENTS = ("exp_avg", "exp_avg_sq")


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


def load_moments(
    optimiser: torch.optim.Adam, names: Sequence[str], state: Any, source: str, *, may_lack: tuple[str, ...] = ()
) -> None:
    """Put moments and update counts of `state`, an optimiser's saved state dict, into `optimiser`.

    Moments go to parameters by their order; `names` are those of the optimiser's parameters. A parameter that never
    had a gradient has none. Last parameters under `may_lack` may be unknown to the file.

    Raises:
        UserError: the content is no state of Adam's, or belongs to other parameters; the line lists the names.
    """
    try:
        ids, moments = list(state["param_groups"][0]["params"]), dict(state["state"])
        one_group = len(state["param_groups"]) == 1 and all(isinstance(entry, Mapping) for entry in moments.values())
    except (TypeError, KeyError, IndexError, ValueError):
        one_group = False
    if not one_group:
        raise UserError(f"{source} does not hold the state of an Adam optimiser")
    lacking = names[len(ids) :]
    if len(ids) > len(names) or not all(name.startswith(may_lack) for name in lacking):
        raise UserError(f"{source} does not fit this model: it is of {len(ids)} parameters, the model has {len(names)}")
    parameters = optimiser.param_groups[0]["params"]
    wrong = [
        f"{name} {list(parameter.shape)}"
        for number, name, parameter in zip(ids, names, parameters, strict=False)
        if number in moments and not _fits(moments[number], parameter)
    ]
    if wrong:
        names_of = ", ".join([*wrong[:6], "…"] if len(wrong) > 6 else wrong)
        raise UserError(f"{source} does not fit this model: no moments of the shape of {names_of}")
    new_ids = [f"new {name}" for name in lacking]
    put_moments(optimiser, {"state": moments, "param_groups": [{"params": [*ids, *new_ids]}]})


def put_moments(optimiser: torch.optim.Adam, state: Mapping[str, Any]) -> None:
    """Load `state` of the same parameters; rates stay the optimiser's own, so that --lr means what it says."""
    own = optimiser.state_dict()["param_groups"][0]
    ids = state["param_groups"][0]["params"]
    optimiser.load_state_dict({"state": state["state"], "param_groups": [{**own, "params": ids}]})
    # The fused Adam wants moments that lie in memory as their parameters do: on a CPU it would take each number for
    # another weight's, on CUDA it refuses. Files hold them as they lay on the device that wrote them.
    for parameter, moments in optimiser.state.items():
        for name in _MOMENTS:
            moments[name] = torch.empty_like(parameter).copy_(moments[name])


def _fits(moments: Mapping[str, Any], parameter: Tensor) -> bool:
    kept = [moments.get(name) for name in _MOMENTS]
    return "step" in moments and all(isinstance(value, Tensor) and value.shape == parameter.shape for value in kept)
