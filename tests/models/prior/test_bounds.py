"""Estimates of the code bounds against their values by enumeration, on a model whose likelihood is known."""

from typing import Any

import pytest
import torch
from small_models import seeded
from torch import Tensor

from models.prior.bounds import estimate_bound
from models.prior.prior import CodeLength
from models.sampling.categorical import LogitsFn

DRAWS = 3000


def estimate(logits_fn: LogitsFn, x_0: Tensor, bound: str, evaluations: int, seed: int = 0, **sizes: int) -> CodeLength:
    options: dict[str, Any] = {"total_steps": 8, "mask_id": 3, "evaluations": evaluations, **sizes}
    return estimate_bound(logits_fn, x_0, bound, **options, generator=seeded(seed))


def estimates(model: Any, bound: str, total_steps: int, evaluations: int) -> CodeLength:
    """`DRAWS` estimates of each outcome, [outcomes,DRAWS]."""
    x_0 = torch.tensor(model.outcomes).repeat_interleave(DRAWS, 0)
    found = estimate(model, x_0, bound, evaluations, total_steps=total_steps)
    assert found.nats.dtype == found.variance.dtype == torch.float64
    return CodeLength(found.nats.view(-1, DRAWS), found.variance.view(-1, DRAWS))


CASES = [("t_step", 1, 2), ("t_step", 8, 2), ("t_step", 8, 5), ("t_step", 8, 16), ("t_step", 7, 6)]
CASES += [("continuous", 8, evaluations) for evaluations in (2, 3, 6)]


@pytest.mark.parametrize(("bound", "total_steps", "evaluations"), CASES)
def test_estimates_agree_with_enumeration_within_their_stated_error(
    exact_model: Any, bound: str, total_steps: int, evaluations: int
) -> None:
    found = estimates(exact_model, bound, total_steps, evaluations)
    assert exact_model.calls == [len(exact_model.outcomes) * DRAWS] * evaluations
    expected = exact_model.bound(total_steps if bound == "t_step" else None)
    error = found.variance.sum(1).sqrt() / DRAWS
    # One step masks everything: no draw differs, and only the rounding of float32 remains.
    assert ((found.nats.mean(1) - expected).abs() < 5 * error + 1e-5).all()


@pytest.mark.parametrize(("bound", "evaluations"), [("t_step", 2), ("t_step", 7), ("continuous", 2), ("continuous", 5)])
def test_the_stated_variance_is_the_estimates_own(exact_model: Any, bound: str, evaluations: int) -> None:
    found = estimates(exact_model, bound, 16, evaluations)
    assert found.variance.mean(1).sum().item() == pytest.approx(found.nats.var(1).sum().item(), rel=0.08)


def test_with_all_levels_in_each_half_only_the_masks_vary() -> None:
    """All tokens masked or one of one: with N = 1 nothing is left to chance in continuous time."""
    p = torch.tensor([0.5, 0.2, 0.3])
    found = estimate(lambda x: p.log().expand(len(x), 1, 3), torch.tensor([[0], [2]]), "continuous", evaluations=2)
    torch.testing.assert_close(found.nats, -p[[0, 2]].double().log())
    assert found.variance.tolist() == [0, 0]


def test_stratifying_and_continuous_time_lower_the_variance() -> None:
    """A model whose loss grows with the number of masked tokens, as trained ones' do."""

    def model(x: Tensor) -> Tensor:
        masked = (x == 2).double().mean(1)
        return torch.stack([-masked, masked], dim=1)[:, None].expand(-1, 64, 2) + torch.zeros(2)

    def spread(bound: str, evaluations: int) -> float:
        x_0 = torch.zeros((500, 64), dtype=torch.int64)
        return estimate(model, x_0, bound, evaluations, total_steps=256, mask_id=2).variance.mean().item()

    assert spread("t_step", 16) < spread("t_step", 2) / 16  # more than the 1/8 of independent draws
    assert spread("continuous", 16) < spread("t_step", 16) / 4


def test_estimates_are_a_function_of_the_generator(exact_model: Any) -> None:
    x_0 = torch.tensor(exact_model.outcomes)
    first, again, other = (estimate(exact_model, x_0, "t_step", evaluations=4, seed=seed).nats for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("bound", "evaluations"), [("t_step", 1), ("t_step", 17), ("continuous", 7), ("exact", 2)])
def test_what_cannot_be_estimated_is_refused(exact_model: Any, bound: str, evaluations: int) -> None:
    with pytest.raises(ValueError, match=r"evaluations|terms|bound"):
        estimate(exact_model, torch.zeros((2, exact_model.N), dtype=torch.int64), bound, evaluations)
