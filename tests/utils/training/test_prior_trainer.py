"""Updates of both priors, their validation, and their state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.prior.diffusion import LOSS_TYPES, MASK_SCHEDULES
from models.prior.prior import Codes, Draws, PriorLoss
from trainers import prior_trainer as trainer
from utils.training.optimiser import warmed_up
from utils.training.prior_trainer import VALIDATION_PASSES, PriorTrainer

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


@pytest.mark.parametrize(("sampler", "passes"), [("absorbing", VALIDATION_PASSES), ("autoregressive", 1)])
def test_validation_is_the_mean_over_images_and_passes(sampler: str, passes: int) -> None:
    training, found = trainer(sampler=sampler, ema=False), []
    run(training, 0, 5)
    losses = training.prior.losses

    def kept(codes: Codes, draws: Draws | None = None) -> PriorLoss:
        found.append(losses(codes, draws))
        return found[-1]

    training.prior.losses = kept  # type: ignore[method-assign]
    metrics = training.validate(codes(99, 11), batch_size=4)
    assert [len(each.loss) for each in found] == [4, 4, 3] * passes
    means = (torch.cat([getattr(each, name) for each in found]).double().mean() for name in ("loss", "vb_loss"))
    assert list(metrics.values()) == pytest.approx([mean.item() for mean in means])
