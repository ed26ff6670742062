"""Sampling in lock-step, where every state on the way can be seen."""

from typing import Any

import pytest
import torch
from small_models import CHANCE, p_value, seeded
from torch import Tensor

from models.sampling.categorical import Rule
from models.sampling.samplers import diffusion_trajectory


def trajectory(model: Any, steps: int, n: int, temp: float = 1.0, seed: int = 0) -> Tensor:
    x_T = torch.full((n, model.N), model.mask_id)
    states = diffusion_trajectory(
        model, x_T, mask_id=model.mask_id, steps=steps, rule=Rule(temp), generator=seeded(seed)
    )
    return torch.stack(list(states))


@pytest.mark.parametrize(("steps", "temp"), [(1, 1.0), (3, 0.7), (8, 1.0)])
def test_the_last_state_has_the_exact_distribution(exact_model: Any, steps: int, temp: float) -> None:
    counts = exact_model.counts(trajectory(exact_model, steps, 50_000, temp)[-1])
    assert p_value(counts, exact_model.ancestral(steps, temp)) > CHANCE


def test_the_trajectory_reveals_each_token_once_and_for_good(exact_model: Any) -> None:
    states = trajectory(exact_model, 8, 2000)
    assert states.shape == (9, 2000, exact_model.N)
    assert (states[0] == exact_model.mask_id).all()
    assert (states[-1] != exact_model.mask_id).all()
    changed = states[1:] != states[:-1]
    assert (changed.sum(0) == 1).all()


def test_the_reveal_step_is_uniform(exact_model: Any) -> None:
    states = trajectory(exact_model, 8, 10_000)
    step = (states[1:] != states[:-1]).long().argmax(0)
    uniform = torch.full((8,), 1 / 8, dtype=torch.float64)
    assert p_value(torch.bincount(step.flatten(), minlength=8), uniform) > CHANCE


def test_an_image_is_evaluated_only_when_one_of_its_tokens_is_due(exact_model: Any) -> None:
    states = trajectory(exact_model, 8, 500)
    assert exact_model.calls == (states[1:] != states[:-1]).any(2).sum(1).tolist()


def test_a_trajectory_is_a_function_of_the_generator(exact_model: Any) -> None:
    first, again, other = (trajectory(exact_model, 8, 100, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_lock_step_sampler_draws_codes_only() -> None:
    x_T, invalid = torch.full((2, 6), 7), torch.tensor(0)
    options = {"mask_id": 7, "steps": 3, "rule": Rule(), "generator": seeded(), "invalid": invalid}
    *_, last = diffusion_trajectory(lambda x: torch.full((len(x), 6, 7), torch.nan), x_T, **options)
    assert last.max() < 7
    assert invalid.item() == 12
