"""Single draws against the distribution that they are drawn from."""

import pytest
import torch
from small_models import CHANCE, normal, p_value, seeded
from torch import Tensor

from models.sampling.categorical import Rule, image_generators

BELOW_1 = 1 - 2.0**-53  # the largest number that torch.rand gives


def drawn(logits: Tensor, n: int, temp: float) -> Tensor:
    """n draws from one distribution."""
    return Rule(temp).draw(logits.expand(n, -1), torch.rand(n, dtype=torch.float64, generator=seeded()))


USUAL = torch.tensor([0.3, -1.0, 2.0, 0.0, -3.0])
RARE = torch.tensor([1e-5, 3e-5, 1e-4, 1e-3, 0.99886], dtype=torch.float64).log()
# In float32 scores this large would be rounded to sixteenths, and ties would go to the first code.
OFFSET = torch.tensor([1e6, 1e6, 1e6, 1e6 + 1])


@pytest.mark.parametrize(("logits", "temp"), [(USUAL, 0.5), (USUAL, 1), (USUAL, 2), (RARE, 1), (OFFSET, 1)])
def test_categorical_follows_the_tempered_softmax(logits: Tensor, temp: float) -> None:
    ids = drawn(logits, 2_000_000, temp)
    assert ids.dtype == torch.int64
    assert p_value(torch.bincount(ids, minlength=len(logits)), (logits.double() / temp).softmax(0)) > CHANCE


@pytest.mark.parametrize("temp", [5e-324, 1e-308, 1e-200, 1e-6])
def test_as_the_temperature_falls_to_nothing_only_the_most_likely_codes_are_drawn(temp: float) -> None:
    assert drawn(torch.tensor([3e38, 1.0, 3e38, -3e38]), 100, temp).unique().tolist() == [0, 2]
    near = torch.tensor([0.5, 0.5, 0.5 + 2**-24], dtype=torch.float64).log()
    assert drawn(near, 100, temp).unique().tolist() == ([2] if temp < 1e-6 else [0, 1, 2])


def test_each_code_owns_an_interval_as_long_as_its_probability() -> None:
    logits = torch.tensor([0.5, 0.0, 0.25, 0.25, 0.0], dtype=torch.float64).log()
    uniforms = torch.tensor([0.0, 0.25, 0.5, 0.7, 0.75, BELOW_1], dtype=torch.float64)
    assert Rule().draw(logits.expand(6, 5), uniforms).tolist() == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("size", [2, 1000, 16384])
def test_the_largest_uniform_draws_the_last_possible_code(size: int) -> None:
    """Rounding leaves the sum of many probabilities a little off 1."""
    logits = normal(50, size)
    logits[:, -1] = -torch.inf
    assert (Rule().draw(logits, torch.full((50,), BELOW_1, dtype=torch.float64)) == size - 2).all()


def test_the_precision_does_not_follow_autocast() -> None:
    logits = torch.tensor([0.0, 20.0])
    chance = logits.double().softmax(0)[0].item()  # about 2e-9: nothing in bfloat16 or float32 sums
    uniforms = torch.tensor([chance * 0.999, chance * 1.001], dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Rule().draw(logits.expand(2, 2), uniforms).tolist() == [0, 1]


def test_images_have_streams_of_their_own() -> None:
    def numbers(n: int, seed: int, of_torch: bool = False) -> list[float]:
        torch.manual_seed(seed)
        generators = image_generators(n, None if of_torch else seeded(seed))
        return [torch.rand((), generator=generator).item() for generator in generators]

    for of_torch in (False, True):
        assert numbers(5, 0, of_torch) == numbers(5, 0, of_torch)
        assert len(set(numbers(5, 0, of_torch) + numbers(5, 1, of_torch))) == 10


@pytest.mark.parametrize("bad", [[0.0, torch.nan, 1.0], [torch.inf, 0.0, 1.0], [-torch.inf] * 3])
def test_logits_that_are_no_distribution_draw_a_code_and_are_counted(bad: list[float]) -> None:
    """Id K would be the mask, or lie outside an embedding."""
    logits = torch.tensor([[1.0, -torch.inf, 0.5], bad, [0.5, 0.5, 0.0], bad], dtype=torch.float16)
    uniforms = torch.rand(4, dtype=torch.float64, generator=seeded())
    invalid = torch.tensor(5)
    ids = Rule(0.9).draw(logits, uniforms, invalid)
    assert ids.max() < 3
    assert invalid.item() == 5 + 2
    assert torch.equal(ids[::2], Rule(0.9).draw(logits[::2], uniforms[::2], invalid))  # the others are as they were
    assert invalid.item() == 5 + 2


@pytest.mark.parametrize("temp", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_are_numbers_above_0(temp: float) -> None:
    with pytest.raises(ValueError, match="temp must be a number above 0, not"):
        Rule(temp)
