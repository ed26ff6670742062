"""Adam's moments from a checkpoint, whichever code wrote them, under the rates that this run's settings name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hparams.errors import UserError

_MOMENTS = ("exp_avg", "exp_avg_sq")


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
        f"{name} is {_shapes(moments[number])} there and {list(parameter.shape)} here"
        for number, name, parameter in zip(ids, names, parameters, strict=False)
        if number in moments and not _fits(moments[number], parameter)
    ]
    if wrong:
        more = f" and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise UserError(f"{source} does not fit this model: {', '.join(wrong[:6])}{more}")
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


def _shapes(moments: Mapping[str, Any]) -> str:
    kept = [moments.get(name) for name in ("step", *_MOMENTS)]
    if any(value is None for value in kept):
        return f"without {' or '.join(('step', *_MOMENTS)[i] for i, value in enumerate(kept) if value is None)}"
    return " and ".join(str(list(value.shape)) for value in kept[1:] if isinstance(value, Tensor))
