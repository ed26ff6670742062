"""The forward process, the objectives and the bound."""

import math
from typing import Any

import pytest
import torch
from scipy.stats import binomtest, chisquare
from small_models import seeded
from torch import Tensor

from models.prior.bounds import bound_nats
from models.prior.diffusion import masked_cross_entropy, objective, sample_mask, sample_time
from models.prior.prior import PriorLoss
from models.sampling.categorical import LogitsFn


def test_times_are_uniform_from_1_on() -> None:
    t = sample_time(50_000, 7, seeded())
    counts = torch.bincount(t, minlength=8)
    assert t.dtype == torch.int64
    assert counts[0] == 0
    assert len(counts) == 8
    assert chisquare(counts[1:].numpy()).pvalue > 1e-4


@pytest.mark.parametrize("t", [1, 3, 5, 8])
def test_random_schedule_masks_each_place_independently(t: int) -> None:
    mask, again = (sample_mask(torch.full((4000,), t), 8, 20, "random", seeded()) for _ in range(2))
    assert torch.equal(mask, again)
    assert mask.dtype == torch.bool
    assert binomtest(int(mask.sum()), mask.numel(), t / 8).pvalue > 1e-4
    # Independent places: the number masked is binomial, not fixed.
    assert mask.sum(1).double().var().item() == pytest.approx(20 * t / 8 * (1 - t / 8), rel=0.15)


def test_each_image_is_masked_by_its_own_time() -> None:
    t = torch.tensor([1, 100] * 500)
    fractions = sample_mask(t, 100, 64, "random", seeded()).double().mean(1)
    assert (fractions[1::2] == 1).all()
    assert fractions[::2].mean().item() == pytest.approx(0.01, abs=0.003)


@pytest.mark.parametrize(("t", "count"), [(1, 1), (2, 1), (32, 2), (128, 8), (129, 8), (200, 12), (256, 16)])
def test_fixed_schedule_masks_an_exact_number_and_at_least_one(t: int, count: int) -> None:
    mask, again = (sample_mask(torch.full((2000,), t), 256, 16, "fixed", seeded()) for _ in range(2))
    assert torch.equal(mask, again)
    assert (mask.sum(1) == count).all()
    assert count == 16 or chisquare(mask.sum(0).numpy()).pvalue > 1e-4  # every place is as likely


# --- objectives, by hand
def diffusion_loss(
    logits_fn: LogitsFn, x_0: Tensor, t: Tensor, mask: Tensor, *, mask_id: int, **options: Any
) -> PriorLoss:
    """The objective of what a model predicts for masked codes."""
    return objective(masked_cross_entropy(logits_fn(x_0.masked_fill(mask, mask_id)), x_0, mask), t, mask, **options)


# Two images of four tokens. The model gives 3/4 to code 1 and 1/4 to code 0 wherever a token is masked.
X_0 = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0]])
MASK = torch.tensor([[True, True, False, False], [False, False, False, True]])
T_OF_IMAGE = torch.tensor([4, 2])
CROSS_ENTROPY = torch.tensor([math.log(4 / 3) + math.log(4), math.log(4)])  # nats
PER_TOKEN = CROSS_ENTROPY / (4 * math.log(2))
BOUND = PER_TOKEN * 8 / T_OF_IMAGE


def hand_model(x_t: Tensor) -> Tensor:
    assert torch.equal(x_t, torch.tensor([[2, 2, 1, 1], [0, 0, 1, 2]]))  # masked by id 2, the rest untouched
    logits = torch.tensor([0.0, math.log(3)]).expand(2, 4, 2).clone()
    logits[~MASK] = torch.tensor([100.0, -100.0])  # visible places do not count
    return logits


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss_type": "elbo"}, BOUND),
        ({"loss_type": "reweighted_elbo"}, PER_TOKEN * torch.tensor([4 / 8, 6 / 8])),
        ({"loss_type": "reweighted_elbo", "reweighting": "paper"}, PER_TOKEN * torch.tensor([5 / 8, 7 / 8])),
        ({"loss_type": "mlm"}, CROSS_ENTROPY / torch.tensor([2, 1])),
    ],
)
def test_objectives_by_hand(options: dict[str, str], expected: Tensor) -> None:
    losses = diffusion_loss(hand_model, X_0, T_OF_IMAGE, MASK, total_steps=8, mask_id=2, **options)
    torch.testing.assert_close(losses.loss, expected)
    torch.testing.assert_close(losses.vb_loss, BOUND)
    torch.testing.assert_close(losses.cross_entropy, CROSS_ENTROPY)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="schedule"):
        sample_mask(torch.tensor([1]), 8, 4, "no such", seeded())
    for option in ({"loss_type": "vae"}, {"loss_type": "reweighted_elbo", "reweighting": "none"}):
        with pytest.raises(ValueError, match=list(option)[-1]):
            objective(torch.ones(2), T_OF_IMAGE, MASK, total_steps=8, **option)


# --- the bound, by enumeration
@pytest.mark.parametrize("steps", [1, 4, 16])
def test_the_bound_estimate_has_the_enumerated_mean(exact_model: Any, steps: int) -> None:
    draws, x_0 = 4000, torch.tensor(exact_model.outcomes)
    uniforms = torch.rand((steps, len(x_0) * draws, exact_model.N), generator=seeded())
    estimates = bound_nats(exact_model, x_0.repeat_interleave(draws, 0), uniforms, mask_id=exact_model.mask_id)
    assert estimates.dtype == torch.float64
    estimates = estimates.view(len(x_0), draws)
    # One step masks everything: no draw differs, and only the rounding of float32 remains.
    error = 5 * estimates.std(1) / draws**0.5 + 1e-5
    assert ((estimates.mean(1) - exact_model.bound(steps)).abs() < error).all()


@pytest.mark.parametrize(("schedule", "steps"), [("random", 8), ("fixed", 3)])
def test_the_elbo_objective_averages_to_the_bound(exact_model: Any, schedule: str, steps: int) -> None:
    """That of T steps; masks of exactly t of N = T places give that of continuous time."""
    draws, generator, options = 100_000, seeded(), {"total_steps": steps, "loss_type": "elbo"}
    t = sample_time(draws, steps, generator)
    mask = sample_mask(t, steps, exact_model.N, schedule, generator)
    x_0 = torch.tensor([[0, 2, 1]]).expand(draws, -1)
    bits = diffusion_loss(exact_model, x_0, t, mask, mask_id=exact_model.mask_id, **options).loss.double()
    nats = bits * math.log(2) * exact_model.N
    expected = exact_model.bound(steps if schedule == "random" else None)[exact_model.outcomes.index((0, 2, 1))]
    assert abs(nats.mean() - expected) < 5 * nats.std() / draws**0.5
