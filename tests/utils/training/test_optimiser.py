"""Updates, those that are left out, and moments from files of this project and of the published code."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from hparams.errors import UserError
from utils.training.optimiser import Optimiser

CPU = torch.device("cpu")
TYPES = [None, torch.bfloat16, torch.float16]
NAMES = ["0.weight", "0.bias", "1.weight", "1.bias"]


def start(amp_dtype: torch.dtype | None = None) -> tuple[nn.Sequential, Optimiser]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    return network, Optimiser(network.parameters(), 0.1, CPU, amp_dtype)


def update(network: nn.Module, optimiser: Optimiser, factor: float = 1.0) -> bool:
    optimiser.zero_grad()
    optimiser.scaler.scale(network(torch.ones(4, 3)).square().mean() * factor).backward()
    return bool(optimiser.step())


def moments(optimiser: Optimiser) -> list[dict[str, Any]]:
    return [optimiser.adam.state[parameter] for parameter in optimiser.parameters]


def assert_same_moments(mine: Optimiser, theirs: Optimiser) -> None:
    for entry, other in zip(moments(mine), moments(theirs), strict=True):
        assert all(torch.equal(entry[name], other[name]) for name in other)


@pytest.mark.parametrize("amp_dtype", TYPES)
def test_updates_are_adams(amp_dtype: torch.dtype | None) -> None:
    network, optimiser = start(amp_dtype)
    twin, _ = start()
    adam = torch.optim.Adam(twin.parameters(), lr=0.1)
    for _ in range(3):
        assert update(network, optimiser)
        adam.zero_grad()
        twin(torch.ones(4, 3)).square().mean().backward()
        adam.step()
    torch.testing.assert_close(network.state_dict(), twin.state_dict(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("amp_dtype", TYPES)
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_an_update_that_is_not_finite_changes_nothing(amp_dtype: torch.dtype | None, factor: float) -> None:
    network, optimiser = start(amp_dtype)
    twin, twins = start(amp_dtype)
    for number in range(4):
        if number == 2:
            assert not update(network, optimiser, factor)
        assert update(network, optimiser)
        assert update(twin, twins)
    assert all(map(torch.equal, network.parameters(), twin.parameters()))
    assert_same_moments(optimiser, twins)


def test_with_and_without_float16_each_goes_on_from_the_other() -> None:
    (_, full), (_, half) = start(), start(torch.float16)
    full.load_scaler(half.scaler.state_dict())
    before = half.scaler.state_dict()
    half.load_scaler(full.scaler.state_dict())
    assert half.scaler.state_dict() == before
    half.load_scaler(before | {"scale": 8.0})
    assert half.scaler.get_scale() == 8


def published(*, parameters: int = 4, without: int | None = None) -> dict[str, Any]:
    """As torch wrote it when the models were published: counts are plain numbers, groups have fewer entries."""
    state = {
        i: {"step": 8, "exp_avg": torch.full_like(value, i + 1.0), "exp_avg_sq": torch.full_like(value, i + 2.0)}
        for i, value in enumerate(list(start()[0].parameters())[:parameters])
        if i != without
    }
    group = {"lr": 0.5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False}
    return {"state": state, "param_groups": [{**group, "params": list(range(parameters))}]}


def loaded(state: Any, names: list[str] = NAMES, **options: Any) -> Optimiser:
    _, optimiser = start()
    optimiser.load_moments(names, state, "file", **options)
    return optimiser


def test_published_moments_go_on() -> None:
    optimiser = loaded(published())
    for parameter in optimiser.parameters:
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    for i, entry in enumerate(moments(optimiser)):
        assert entry["step"] == 9
        torch.testing.assert_close(entry["exp_avg"], torch.full_like(entry["exp_avg"], 0.9 * (i + 1) + 0.1))
        torch.testing.assert_close(entry["exp_avg_sq"], torch.full_like(entry["exp_avg_sq"], 0.999 * (i + 2) + 0.001))


def test_a_saved_state_goes_on_exactly_with_the_rate_and_the_kernel_of_the_settings() -> None:
    network, optimiser = start()
    update(network, optimiser)
    saved = optimiser.adam.state_dict()
    saved["param_groups"][0] |= {"fused": None, "lr": 0.5}
    _, other = start()
    other.load_adam(saved)
    for each in (loaded(saved), other):
        assert_same_moments(each, optimiser)
        (group,) = each.adam.param_groups
        assert (group["lr"], group["fused"]) == (0.1, True)


def test_parameters_without_a_gradient_and_named_last_ones_may_be_without_moments() -> None:
    assert [bool(entry) for entry in moments(loaded(published(without=1)))] == [True, False, True, True]
    optimiser = loaded(published(parameters=2), may_lack=("1.",))
    assert [bool(entry) for entry in moments(optimiser)] == [True, True, False, False]
    for parameters, may_lack in ((2, ()), (2, ("0.",)), (1, ("1.",))):
        with pytest.raises(UserError, match=rf"^file does not fit .* of {parameters} parameters, the model has 4"):
            loaded(published(parameters=parameters), may_lack=may_lack)
    with pytest.raises(UserError, match="of 4 parameters, the model has 3"):
        loaded(published(), NAMES[:3])


def test_moments_of_other_shapes_are_named() -> None:
    state = published()
    state["state"][2]["exp_avg_sq"] = torch.zeros(5)
    del state["state"][3]["step"]
    with pytest.raises(UserError, match=r"no moments of the shape of 1\.weight \[2, 4\], 1\.bias \[2\]$"):
        loaded(state)


OTHERS = [None, [], {"weight": torch.zeros(2)}, {"state": {}, "param_groups": []}]
OTHERS += [{"state": {0: 1}, "param_groups": [{"params": [0, 1, 2, 3]}]}]
OTHERS += [{"state": {}, "param_groups": [{"params": [0, 1]}, {"params": [2, 3]}]}]


@pytest.mark.parametrize("content", OTHERS)
def test_other_content_is_refused(content: Any) -> None:
    with pytest.raises(UserError, match=r"^file does not hold the state of an Adam optimiser$"):
        loaded(content)


@pytest.mark.parametrize("here", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("there", [torch.contiguous_format, torch.channels_last])
def test_moments_go_on_in_another_memory_format(here: torch.memory_format, there: torch.memory_format) -> None:
    """That of CUDA's convolutions is not the CPU's."""

    def convolution(memory_format: torch.memory_format) -> tuple[nn.Module, Optimiser]:
        torch.manual_seed(0)
        network = nn.Conv2d(3, 4, 3).to(memory_format=memory_format)  # type: ignore[call-overload]
        return network, Optimiser(network.parameters(), 0.1, torch.device("cpu"), None)

    def updated(network: nn.Module, optimiser: Optimiser) -> None:
        optimiser.zero_grad()
        network(torch.linspace(0, 1, 75).view(1, 3, 5, 5)).square().mean().backward()
        optimiser.step()

    (network, optimiser), (other, others) = convolution(here), convolution(there)
    updated(other, others)
    network.load_state_dict(other.state_dict())
    optimiser.load_adam(copy.deepcopy(others.adam.state_dict()))
    for each in ((network, optimiser), (other, others)):
        updated(*each)
    torch.testing.assert_close(network.state_dict(), other.state_dict(), rtol=1e-5, atol=1e-6)
