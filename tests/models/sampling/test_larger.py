"""Larger grids: the mixture of windows and the orders of filling, against the plain algorithm."""

import itertools
import math
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from small_models import normal, seeded, uniform
from torch import Tensor

from models.prior.transformer import pick
from models.sampling.categorical import LogitsAtFn, Rule
from models.sampling.larger import larger_trajectory, reveal_plan, window_mixture, window_starts

K = MASK = 5
WINDOW = (3, 4)


class FakeModel:
    """Logits that depend on every token of a window and on the place in it; remembers the rows of each call."""

    def __init__(self) -> None:
        self.places, self.mix = normal(12, K), normal(12, K + 1, K, seed=1) / 12**0.5
        self.rows: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        seen = self.mix[torch.arange(12), x].sum(1)  # [rows,K]
        return self.places + seen[:, None] * torch.arange(1, 13)[:, None].sqrt()

    def logits_at(self, x: Tensor, places: Tensor) -> Tensor:
        assert (places.sort().values.diff() > 0).all()  # none twice
        return pick(self(x), places)


def plain_mixture(model: FakeModel, x: Tensor) -> Tensor:
    """Every window at stride 1, place by place: [B,H,W,K]."""
    (h, w), (height, width) = WINDOW, x.shape[1:]
    total = torch.zeros((*x.shape, K), dtype=torch.float64)
    count = torch.zeros(x.shape, dtype=torch.float64)
    for top, left in itertools.product(range(height - h + 1), range(width - w + 1)):
        inside = (slice(None), slice(top, top + h), slice(left, left + w))
        total[inside] += model(x[inside].flatten(1)).double().softmax(-1).view(len(x), h, w, K)
        count[inside] += 1
    return total / count[..., None]


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_mixture_is_the_mean_over_all_windows(batch_size: int) -> None:
    model, x = FakeModel(), torch.randint(0, K + 1, (2, 6, 7), generator=seeded())
    expected, options = plain_mixture(model, x), {"window": WINDOW, "stride": 1, "batch_size": batch_size}
    for due in (torch.ones_like(x, dtype=torch.bool), uniform(*x.shape, seed=2) < 0.1):
        torch.testing.assert_close(window_mixture(model.logits_at, x, due, **options), expected[due])
    assert max(model.rows) <= max(batch_size, 2)


def plans(x: Tensor, order: str) -> tuple[Tensor, Tensor]:
    """Those of a batch [B,H,W], in 8 steps."""
    each = [reveal_plan((x.shape[1], x.shape[2]), order, 8, seeded(i)) for i in range(len(x))]
    reveal, uniforms = zip(*each, strict=True)
    return torch.stack(reveal), torch.stack(uniforms)


def fill(logits_at: LogitsAtFn, x: Tensor, order: str, stride: int = 1, **changes: Any) -> list[Tensor]:
    options = {"mask_id": MASK, "window": WINDOW, "rule": Rule(0.8), "batch_size": 4096} | changes
    return list(larger_trajectory(logits_at, x, *plans(x, order), stride=stride, **options))


def test_raster_order_with_stride_1_is_the_published_algorithm() -> None:
    """All windows at every step, averaged, raised to 1/temp, normalised; the due token is drawn."""
    model, expected = FakeModel(), torch.full((2, 4, 6), MASK)
    uniforms = plans(expected, "raster")[1]
    for row, column in itertools.product(range(4), range(6)):
        p = plain_mixture(model, expected)[:, row, column] ** (1 / 0.8)
        expected[:, row, column] = Rule().draw((p / p.sum(-1, keepdim=True)).log(), uniforms[:, row, column])
    states = fill(model.logits_at, torch.full((2, 4, 6), MASK), "raster")
    assert torch.equal(states[-1], expected)
    for number, state in enumerate(states, start=1):  # one token per step, row by row
        assert (state.flatten(1)[:, :number] != MASK).all()
        assert (state.flatten(1)[:, number:] == MASK).all()


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_random_order_reveals_tokens_uniformly_over_the_steps(stride: int) -> None:
    states = fill(FakeModel().logits_at, torch.full((30, 6, 9), MASK), "random", stride)
    assert len(states) == 8
    assert (states[-1] < K).all()
    masked = [int((state == MASK).sum()) for state in states]
    revealed = [before - after for before, after in itertools.pairwise([30 * 54, *masked])]
    assert chisquare(revealed).pvalue > 1e-4
    for before, after in itertools.pairwise(states):  # what was drawn stays
        assert torch.equal(after[before != MASK], before[before != MASK])


@pytest.mark.parametrize("order", ["raster", "random"])
def test_known_tokens_stay(order: str) -> None:
    x = torch.full((1, 5, 6), MASK)
    x[:, 2] = 1
    filled = fill(FakeModel().logits_at, x, order)[-1]
    assert (filled[:, 2] == 1).all()
    assert (filled < K).all()


@pytest.mark.parametrize(("shape", "stride"), [((16, 24), 1), ((32, 32), 1), ((32, 32), 8)])
def test_raster_order_evaluates_a_window_once_for_each_of_its_tokens(shape: tuple[int, int], stride: int) -> None:
    rows: list[int] = []

    def logits_at(x: Tensor, places: Tensor) -> Tensor:
        rows.append(len(x))
        return torch.zeros((*places.shape, K))

    fill(logits_at, torch.full((1, *shape), MASK), "raster", stride, window=(16, 16))
    windows = math.prod((side - 16) // stride + 1 for side in shape)
    assert sum(rows) == windows * 256  # where every window at every step would cost windows · H · W


def test_windows_cover_the_grid_and_unknown_orders_are_refused() -> None:
    assert window_starts(24, 16, 1) == list(range(9))
    assert window_starts(24, 16, 5) == [0, 5, 8]
    assert window_starts(16, 16, 16) == [0]
    for length, window, stride in ((15, 16, 1), (24, 16, 17), (24, 16, 0)):
        with pytest.raises(ValueError, match="stride"):
            window_starts(length, window, stride)
    with pytest.raises(ValueError, match="order"):
        reveal_plan((3, 4), "spiral", 8, seeded())


def test_predictions_that_are_not_finite_draw_codes_only_and_are_counted() -> None:
    x, invalid = torch.full((1, 4, 6), MASK), torch.tensor(0)
    *_, last = fill(lambda _, places: torch.full((*places.shape, K), torch.nan), x, "random", invalid=invalid)
    assert last.max() < MASK
    assert invalid.item() == 24
