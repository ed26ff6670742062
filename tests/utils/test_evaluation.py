"""Evaluation without a trace: modes and gradient recording come back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from utils.evaluation import evaluating


def mixed() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[1].eval()
    return model


def modes(module: nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


def test_modes_come_back_as_they_were() -> None:
    first, second = mixed(), nn.Linear(2, 2).eval()
    before = modes(first), modes(second)
    with evaluating(first, second):
        assert not any(modes(first) + modes(second))
        assert not torch.is_grad_enabled()
    assert (modes(first), modes(second)) == before
    assert torch.is_grad_enabled()


def test_modes_come_back_after_an_error() -> None:
    model = mixed()
    before = modes(model)
    with pytest.raises(ZeroDivisionError), evaluating(model):
        _ = 1 / 0
    assert modes(model) == before
    assert torch.is_grad_enabled()


def test_evaluations_may_be_nested() -> None:
    model = mixed()
    before = modes(model)
    with evaluating(model):
        with evaluating(model):
            pass
        assert not any(modes(model))
    assert modes(model) == before
