"""Updates of both priors, their validation, and their state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.prior.absorbing import AbsorbingDiffusion
from models.prior.diffusion import LOSS_TYPES, MASK_SCHEDULES
from models.prior.prior import Codes, Draws
from trainers import prior_trainer as trainer
from trainers import state_of
from utils.training.prior_trainer import VALIDATION_PASSES, PriorTrainer, warmed_up

N = 64
SAMPLERS = ["absorbing", "autoregressive"]


def codes(step: int = 0, n: int = 8) -> Tensor:
    """Few of the codes, so that there is something to learn."""
    return torch.randint(4, (n, N), generator=torch.Generator().manual_seed(step), dtype=torch.int32)


def run(trainer: PriorTrainer, start: int, stop: int) -> None:
    for step in range(start, stop):
        trainer.step(codes(step), step)


def test_the_rate_warms_up_linearly() -> None:
    assert [warmed_up(0.4, step, 4) for step in (0, 1, 2, 4, 100)] == pytest.approx([0, 0.1, 0.2, 0.4, 0.4])
    assert warmed_up(0.4, 0, 0) == 0.4


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_float16_never_leaves_a_weight_that_is_not_finite(sampler: str) -> None:
    """300 steps from a loss scale that overflows: updates are skipped until it has fallen, then training goes on."""
    training = trainer(torch.float16, sampler=sampler)
    training.optimiser.scaler.load_state_dict(training.optimiser.scaler.state_dict() | {"scale": 2.0**40})
    losses = []
    for step in range(300):
        losses.append(training.step(codes(step), step)["loss"].item())
        assert all(value.isfinite().all() for value in state_of(training).values()), step
    assert 1 < training.optimiser.scaler.get_scale() < 2.0**30
    assert sum(losses[-20:]) < 0.7 * sum(losses[:5]) * 4


KINDS: list[dict[str, Any]] = [{"sampler": "autoregressive"}]
KINDS += [{"loss_type": loss, "mask_schedule": schedule} for loss in LOSS_TYPES for schedule in MASK_SCHEDULES]


@pytest.mark.parametrize("changes", KINDS, ids=lambda changes: "_".join(changes.values()))
def test_a_prior_learns_the_frequencies(changes: dict[str, Any]) -> None:
    training = trainer(ema=False, **changes)
    before = training.validate(codes(99, 40), batch_size=8)["elbo_bits_per_token"]
    run(training, 0, 60)
    after = training.validate(codes(99, 40), batch_size=8)["elbo_bits_per_token"]
    assert before > 3.9  # log2 16 and more
    assert 1.9 < after < 2.5  # log2 4 and more


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_metrics_are_scalars(sampler: str) -> None:
    metrics = trainer(sampler=sampler, warmup_iters=10).step(codes(5), 5)
    if sampler == "absorbing":
        assert metrics.pop("loss_by_time").shape == (8,)
    assert set(metrics) == {"loss", "elbo_bits_per_token", "lr", "skipped"}
    assert all(value.shape == () and value.isfinite() for value in metrics.values())
    assert metrics["lr"].item() == pytest.approx(5e-3)


def test_the_objective_is_weighed_as_the_settings_say() -> None:
    published, paper = (trainer(reweighting=name).step(codes(), 0) for name in ("published", "paper"))
    assert paper["loss"] > published["loss"]
    assert paper["elbo_bits_per_token"] == published["elbo_bits_per_token"]


def test_the_first_step_of_a_warm_up_moves_nothing() -> None:
    training = trainer(warmup_iters=10)
    before = state_of(training)
    training.step(codes(), 0)
    parameters = {f"False {name}" for name, _ in training.prior.named_parameters()}
    assert all(torch.equal(value, before[name]) for name, value in state_of(training).items() if name in parameters)
    assert isinstance(training.prior, AbsorbingDiffusion)
    assert training.prior.Lt_count.sum() == 8


@pytest.mark.parametrize("changes", [{}, {"sampler": "autoregressive", "resid_pdrop": 0.5}], ids=["masks", "dropout"])
def test_every_step_has_random_numbers_of_its_own(changes: dict[str, Any]) -> None:
    assert len({trainer(**changes).step(codes(), step)["loss"].item() for step in range(4)}) == 4


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_validation_changes_nothing_and_repeats(sampler: str) -> None:
    training = trainer(sampler=sampler, resid_pdrop=0.3)
    run(training, 0, 3)
    state, stream = state_of(training), torch.get_rng_state()
    first = training.validate(codes(99, 20), batch_size=8)
    assert training.validate(codes(99, 20), batch_size=8) == first
    assert all(torch.equal(value, state[name]) for name, value in state_of(training).items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert training.prior.training
    assert not training.averaged.training
    training.prior.load_state_dict(training.averaged.state_dict())  # whose figures they were
    training.ema = None
    assert training.validate(codes(99, 20), batch_size=8) == first


def test_validation_is_a_true_mean_over_images_and_passes() -> None:
    training = trainer(ema=False)
    run(training, 0, 20)
    assert isinstance(training.prior, AbsorbingDiffusion)
    single = [training.validate(codes(99, 20), batch_size=size)["elbo_bits_per_token"] for size in (20, 8, 1)]
    # Other masks, same mean: a sum of batch means over images would differ by the batch size.
    assert single[1:] == pytest.approx([single[0]] * 2, rel=0.25)
    seen: list[int] = []
    losses = training.prior.losses

    def count(codes: Codes, draws: Draws | None = None) -> Any:
        seen.append(len(codes.ids))
        return losses(codes, draws)

    training.prior.losses = count  # type: ignore[method-assign]
    training.validate(codes(99, 20), batch_size=8)
    assert seen == [8, 8, 4] * VALIDATION_PASSES


def test_autoregressive_validation_is_exact() -> None:
    training = trainer(sampler="autoregressive", ema=False)
    run(training, 0, 5)
    ids = codes(99, 11)
    with torch.no_grad():
        expected = training.prior.losses(Codes(ids.long())).loss.double().mean().item()
    metrics = training.validate(ids, batch_size=4)
    assert metrics["loss"] == metrics["elbo_bits_per_token"] == pytest.approx(expected, rel=1e-5)
