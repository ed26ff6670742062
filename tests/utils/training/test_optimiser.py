"""Updates, and those that are left out."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from utils.training.optimiser import Optimiser

CPU = torch.device("cpu")


def start(amp_dtype: torch.dtype | None = None) -> tuple[nn.Linear, Optimiser]:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    return network, Optimiser(network.parameters(), 0.1, CPU, amp_dtype)


def update(network: nn.Linear, optimiser: Optimiser, factor: float = 1.0) -> bool:
    optimiser.zero_grad()
    optimiser.scaler.scale(network(torch.ones(4, 3)).square().mean() * factor).backward()
    return bool(optimiser.step())


@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16, torch.float16])
def test_updates_are_adams(amp_dtype: torch.dtype | None) -> None:
    network, optimiser = start(amp_dtype)
    twin, _ = start()
    adam = torch.optim.Adam(twin.parameters(), lr=0.1)
    for _ in range(3):
        assert update(network, optimiser)
        adam.zero_grad()
        twin(torch.ones(4, 3)).square().mean().backward()
        adam.step()
    torch.testing.assert_close(network.weight, twin.weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_an_update_that_is_not_finite_changes_nothing(amp_dtype: torch.dtype | None, factor: float) -> None:
    network, optimiser = start(amp_dtype)
    twin, twins = start(amp_dtype)
    for number in range(4):
        if number == 2:
            assert not update(network, optimiser, factor)
        assert update(network, optimiser)
        assert update(twin, twins)
    assert torch.equal(network.weight, twin.weight)
    state, expected = (o.adam.state_dict()["state"][0] for o in (optimiser, twins))
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_state_saved_by_the_plain_kernel_is_taken_by_the_fused_one() -> None:
    network, optimiser = start()
    update(network, optimiser)
    saved = optimiser.adam.state_dict()
    saved["param_groups"][0]["fused"] = None
    _, other = start()
    other.load_adam(saved)
    assert other.adam.param_groups[0]["fused"] is True
    assert torch.equal(other.adam.state_dict()["state"][0]["exp_avg"], saved["state"][0]["exp_avg"])


def test_with_and_without_float16_each_goes_on_from_the_other() -> None:
    (_, full), (_, half) = start(), start(torch.float16)
    full.load_scaler(half.scaler.state_dict())
    before = half.scaler.state_dict()
    half.load_scaler(full.scaler.state_dict())
    assert half.scaler.state_dict() == before
    half.load_scaler(before | {"scale": 8.0})
    assert half.scaler.get_scale() == 8


@pytest.mark.parametrize("here", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("there", [torch.contiguous_format, torch.channels_last])
def test_moments_go_on_in_another_memory_format(here: torch.memory_format, there: torch.memory_format) -> None:
    """That of CUDA's convolutions is not the CPU's."""

    def convolution(memory_format: torch.memory_format) -> tuple[nn.Module, Optimiser]:
        torch.manual_seed(0)
        network = nn.Conv2d(3, 4, 3).to(memory_format=memory_format)  # type: ignore[call-overload]
        return network, Optimiser(network.parameters(), 0.1, CPU, None)

    def updated(network: nn.Module, optimiser: Optimiser) -> None:
        optimiser.zero_grad()
        network(torch.linspace(0, 1, 75).view(1, 3, 5, 5)).square().mean().backward()
        optimiser.step()

    network, optimiser = convolution(here)
    other, others = convolution(there)
    updated(other, others)
    network.load_state_dict(other.state_dict())
    optimiser.load_adam(copy.deepcopy(others.adam.state_dict()))
    for each in ((network, optimiser), (other, others)):
        updated(*each)
    torch.testing.assert_close(network.state_dict(), other.state_dict(), rtol=1e-5, atol=1e-6)
