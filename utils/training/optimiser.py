"""Adam for one network, which skips updates that are not finite; its rate, and moments from checkpoints of any code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hparams.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")  # names in Adam's state of a parameter


def warmed_up(lr: float, step: int, warmup_iters: int) -> float:
    """Learning rate of the update after `step` updates: linear from 0, `lr` from `warmup_iters` on."""
    return lr * min(1.0, step / warmup_iters) if warmup_iters else lr


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
        self.parameters, self._max_norm = list(parameters), max_norm
        # On CUDA nothing about a step is a number of the host's, so that a CUDA graph can hold it.
        on_device = device.type == "cuda"
        rate = torch.tensor(lr, device=device) if on_device else lr
        self.adam = torch.optim.Adam(self.parameters, lr=rate, fused=True, capturable=on_device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16)

    def set_rate(self, lr: float) -> None:
        (group,) = self.adam.param_groups
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr

    def zero_grad(self) -> None:
        self.adam.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self) -> Tensor:
        """Update the parameters by their gradients if these are finite; returns whether they were, a bool scalar."""
        self.scaler.unscale_(self.adam)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        finite = norm.isfinite()
        if self._max_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self._max_norm, norm)
        if self.scaler.is_enabled():
            self.scaler.step(self.adam)
            self.scaler.update()
        else:
            self.adam.found_inf = (~finite).to(torch.float32)  # type: ignore[attr-defined]
            self.adam.step()
        return finite

    def load_adam(self, state: Mapping[str, Any]) -> None:
        """Moments from a state dict of Adam's, of the same parameters on any device; the rate stays that of --lr."""
        own = self.adam.state_dict()["param_groups"][0]
        ids = state["param_groups"][0]["params"]
        self.adam.load_state_dict({"state": state["state"], "param_groups": [{**own, "params": ids}]})
        # The fused Adam wants moments that lie in memory as their parameters do: on a CPU it would take each number for
        # another weight's, on CUDA it refuses. Files hold them as they lay on the device that wrote them.
        for parameter, moments in self.adam.state.items():
            for name in MOMENTS:
                moments[name] = torch.empty_like(parameter).copy_(moments[name])

    def load_scaler(self, state: Mapping[str, Any]) -> None:
        """The scaler's own state dict; it is empty where a run did without float16, and scaling then starts anew."""
        if state:
            self.scaler.load_state_dict(dict(state))

    def load_moments(self, names: Sequence[str], state: Any, source: str, *, may_lack: tuple[str, ...] = ()) -> None:
        """As `load_adam`, from a file of any code, which may be of another network; a parameter may have no moments.

        They go to parameters by their order; `names` are those of the parameters. Last ones under `may_lack` may be
        unknown to the file. UserError: the content is no state of Adam's, or belongs to other parameters, as listed.
        """
        try:
            (group,) = state["param_groups"]
            ids = list(group["params"])
            moments = {number: dict(entry) for number, entry in state["state"].items()}
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(f"{source} does not hold the state of an Adam optimiser") from None
        lacking, counts = names[len(ids) :], f"of {len(ids)} parameters, the model has {len(names)}"
        if len(ids) > len(names) or not all(name.startswith(may_lack) for name in lacking):
            raise UserError(f"{source} does not fit this model: it is {counts}")

        def fits(entry: Mapping[str, Any], shape: torch.Size) -> bool:
            both = [entry.get(name) for name in MOMENTS]
            return "step" in entry and all(isinstance(value, Tensor) and value.shape == shape for value in both)

        wrong = [
            f"{name} {list(parameter.shape)}"
            for number, name, parameter in zip(ids, names, self.parameters, strict=False)
            if number in moments and not fits(moments[number], parameter.shape)
        ]
        if wrong:
            listed = ", ".join(wrong[:6]) + (", …" if len(wrong) > 6 else "")
            raise UserError(f"{source} does not fit this model: no moments of the shape of {listed}")
        without_moments = [f"new {name}" for name in lacking]  # the state has nothing of these: Adam starts them anew
        self.load_adam({"state": moments, "param_groups": [{"params": [*ids, *without_moments]}]})
