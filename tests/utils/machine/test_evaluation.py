"""Evaluation leaves modes and gradient recording as they were, and casts weights once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from utils.machine.evaluation import evaluating


def test_modes_come_back_as_they_were_also_after_an_error() -> None:
    first, second = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4).eval(), nn.Dropout(0.5)), nn.Linear(2, 2).eval()
    parts = [*first.modules(), second]

    def interrupted() -> None:
        with evaluating(first, second):
            with evaluating(first):
                pass
            assert not any(part.training for part in parts)
            assert not torch.is_grad_enabled()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [part.training for part in parts] == [True, True, False, True, False]
    assert torch.is_grad_enabled()


class Casts(TorchDispatchMode):
    """Shapes that were cast to another type."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default:
            self.shapes.append(args[0].shape)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("frozen", [False, True])
def test_autocast_casts_weights_once(frozen: bool) -> None:
    """As sampling wants it, which evaluates one network many times."""
    layer = nn.Linear(3, 2).requires_grad_(not frozen)
    with Casts() as casts, evaluating(layer), torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = [layer(torch.ones(4, 3)) for _ in range(3)]
    assert casts.shapes.count(layer.weight.shape) == 1
    assert casts.shapes.count(torch.Size((4, 3))) == 3
    assert not any(output.requires_grad for output in outputs)
    assert all(parameter.requires_grad is not frozen for parameter in layer.parameters())
