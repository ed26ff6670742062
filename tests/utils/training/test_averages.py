"""Running means of metrics."""

from __future__ import annotations

import json

import pytest
import torch

from utils.training.averages import Averages

CPU = torch.device("cpu")


def test_means_since_the_last_pop() -> None:
    averages = Averages()
    for value in (1.0, 2.0, 6.0):
        averages.add({"loss": torch.tensor(value)})
    assert averages.pop() == ({"loss": 3.0}, {})
    assert averages.pop() == ({}, {})
    averages.add({"loss": torch.tensor(5.0)})
    assert averages.pop()[0] == {"loss": 5.0}


def test_a_metric_is_averaged_over_the_steps_that_had_it() -> None:
    averages = Averages()
    averages.add({"loss": torch.tensor(1.0)})
    averages.add({"loss": torch.tensor(3.0), "d_loss": torch.tensor(7.0)})
    assert averages.pop()[0] == {"loss": 2.0, "d_loss": 7.0}


def test_vectors_are_averaged_place_by_place() -> None:
    first, second = Averages(), Averages()
    first.add({"counts": torch.tensor([4, 0]), "loss": torch.tensor(1.0)})
    second.load_state_dict(json.loads(json.dumps(first.state_dict())), CPU)
    second.add({"counts": torch.tensor([0, 1]), "loss": torch.tensor(2.0)})
    scalars, vectors = second.pop()
    assert scalars == {"loss": 1.5}
    assert vectors["counts"].tolist() == [2, 0.5]


def test_sums_are_kept_in_float64_and_without_gradients() -> None:
    averages, value = Averages(), torch.tensor(0.1, requires_grad=True)
    for _ in range(10_000):
        averages.add({"loss": value * 1})
    assert averages.pop()[0]["loss"] == pytest.approx(float(value.detach()), rel=1e-12)


def test_half_precision_values_do_not_saturate() -> None:
    averages = Averages()
    for _ in range(4):
        averages.add({"loss": torch.tensor(60_000.0, dtype=torch.float16)})
    assert averages.pop()[0]["loss"] == 60_000 - 60_000 % 32


def test_state_continues_where_it_was() -> None:
    whole, first, second = Averages(), Averages(), Averages()
    values = [torch.tensor(v) for v in (0.1, 0.7, 0.2, 0.9)]
    for value in values:
        whole.add({"loss": value})
    for value in values[:2]:
        first.add({"loss": value})
    state = json.loads(json.dumps(first.state_dict()))
    second.load_state_dict(state, CPU)
    for value in values[2:]:
        second.add({"loss": value})
    assert second.pop() == whole.pop()
