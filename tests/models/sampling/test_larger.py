"""Larger grids: the mixture of windows and the orders of filling, against the plain algorithm."""

import itertools
import math

import pytest
import torch
from scipy.stats import chisquare
from small_models import seeded
from torch import Tensor

from models.sampling.categorical import Rule
from models.sampling.larger import larger_trajectory, reveal_plan, window_mixture, window_starts

K = MASK = 5


class FakeModel:
    """Logits that depend on every token of a window and on the place in it; remembers the rows of each call."""

    def __init__(self, tokens: int) -> None:
        self.places = torch.randn((tokens, K), generator=seeded())
        self.mix = torch.randn((tokens, K + 1, K), generator=seeded(1)) / tokens**0.5
        self.rows: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        seen = self.mix[torch.arange(x.shape[1]), x].sum(1)  # [rows,K]
        return (self.places + seen[:, None] * torch.arange(1, x.shape[1] + 1)[:, None].sqrt()).float()

    def logits_at(self, x: Tensor, places: Tensor) -> Tensor:
        assert (places.sort().values.diff() > 0).all()  # none twice
        return self(x).gather(1, places[..., None].expand(-1, -1, K))


def plain_mixture(model: FakeModel, x: Tensor, window: tuple[int, int]) -> Tensor:
    """Every window at stride 1, place by place: [B,H,W,K]."""
    (h, w), (height, width) = window, x.shape[1:]
    total = torch.zeros((*x.shape, K), dtype=torch.float64)
    count = torch.zeros(x.shape, dtype=torch.float64)
    for top in range(height - h + 1):
        for left in range(width - w + 1):
            inside = (slice(None), slice(top, top + h), slice(left, left + w))
            total[inside] += model(x[inside].flatten(1)).double().softmax(-1).view(len(x), h, w, K)
            count[inside] += 1
    return total / count[..., None]


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_mixture_is_the_mean_over_all_windows(batch_size: int) -> None:
    model = FakeModel(3 * 4)
    x = torch.randint(0, K + 1, (2, 6, 7), generator=seeded())
    everywhere = torch.ones_like(x, dtype=torch.bool)
    expected = plain_mixture(model, x, (3, 4))
    mixture = window_mixture(model.logits_at, x, everywhere, window=(3, 4), stride=1, batch_size=batch_size)
    torch.testing.assert_close(mixture, expected.flatten(0, 2))
    some = torch.rand(x.shape, generator=seeded(2)) < 0.1
    torch.testing.assert_close(
        window_mixture(model.logits_at, x, some, window=(3, 4), stride=1, batch_size=batch_size), expected[some]
    )
    assert max(model.rows) <= max(batch_size, 2)


def plans(shape: tuple[int, ...], order: str, steps: int = 8) -> tuple[Tensor, Tensor]:
    """Those of a batch [B,H,W]."""
    reveal, uniforms = zip(
        *(reveal_plan((shape[1], shape[2]), order, steps, seeded(i)) for i in range(shape[0])), strict=True
    )
    return torch.stack(reveal), torch.stack(uniforms)


def fill(model: FakeModel, x: Tensor, order: str, stride: int = 1) -> list[Tensor]:
    return list(
        larger_trajectory(
            model.logits_at, x, *plans(x.shape, order), mask_id=MASK, window=(3, 4), stride=stride, rule=Rule(0.8),
            batch_size=64,
        )
    )  # fmt: skip


def test_raster_order_with_stride_1_is_the_published_algorithm() -> None:
    """All windows at every step, averaged, raised to 1/temp, normalised; the due token is drawn."""
    model = FakeModel(3 * 4)
    expected = torch.full((2, 4, 6), MASK)
    uniforms = plans(expected.shape, "raster")[1]
    for row in range(4):
        for column in range(6):
            p = plain_mixture(model, expected, (3, 4))[:, row, column] ** (1 / 0.8)
            p /= p.sum(-1, keepdim=True)
            expected[:, row, column] = Rule().draw(p.log(), uniforms[:, row, column])
    states = fill(model, torch.full((2, 4, 6), MASK), "raster")
    assert torch.equal(states[-1], expected)
    for number, state in enumerate(states, start=1):  # one token per step, row by row
        assert (state.flatten(1)[:, :number] != MASK).all()
        assert (state.flatten(1)[:, number:] == MASK).all()


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_random_order_reveals_tokens_uniformly_over_the_steps(stride: int) -> None:
    states = fill(FakeModel(3 * 4), torch.full((30, 6, 9), MASK), "random", stride=stride)
    assert len(states) == 8
    assert (states[-1] < K).all()
    masked = [int((state == MASK).sum()) for state in states]
    revealed = [before - after for before, after in itertools.pairwise([30 * 54, *masked])]
    assert chisquare(revealed).pvalue > 1e-4
    for before, after in itertools.pairwise(states):  # what was drawn stays
        assert torch.equal(after[before != MASK], before[before != MASK])


def test_known_tokens_stay() -> None:
    x = torch.full((1, 5, 6), MASK)
    x[:, 2] = 1
    for order in ("raster", "random"):
        filled = fill(FakeModel(3 * 4), x, order)[-1]
        assert (filled[:, 2] == 1).all()
        assert (filled < K).all()


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((16, 24), 1), ((32, 32), 1), pytest.param((64, 64), 1, marks=pytest.mark.slow), ((32, 32), 8)],
)
def test_raster_order_evaluates_a_window_once_for_each_of_its_tokens(shape: tuple[int, int], stride: int) -> None:
    rows = 0

    def logits_at(x: Tensor, places: Tensor) -> Tensor:
        nonlocal rows
        rows += len(x)
        return torch.zeros((*places.shape, 2))

    states = larger_trajectory(
        logits_at, torch.full((1, *shape), 2), *plans((1, *shape), "raster"), mask_id=2, window=(16, 16), stride=stride,
        rule=Rule(), batch_size=4096,
    )  # fmt: skip
    for _ in states:
        pass
    windows = math.prod((side - 16) // stride + 1 for side in shape)
    assert rows == windows * 256
    if stride == 1 and shape != (16, 16):
        assert rows < windows * math.prod(shape)  # what every window at every step would cost


def test_windows_cover_the_grid() -> None:
    assert window_starts(24, 16, 1) == list(range(9))
    assert window_starts(24, 16, 5) == [0, 5, 8]
    assert window_starts(16, 16, 16) == [0]
    for length, window, stride in ((15, 16, 1), (24, 16, 17), (24, 16, 0)):
        with pytest.raises(ValueError, match="stride"):
            window_starts(length, window, stride)


def test_unknown_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="order"):
        reveal_plan((3, 4), "spiral", 8, seeded())


def test_predictions_that_are_not_finite_draw_codes_only_and_are_counted() -> None:
    x, invalid = torch.full((1, 4, 6), MASK), torch.tensor(0)
    reveal, uniforms = plans(x.shape, "random")
    model = FakeModel(3 * 4)
    *_, last = larger_trajectory(
        lambda windows, places: model.logits_at(windows, places) * torch.nan, x, reveal, uniforms, mask_id=MASK,
        window=(3, 4), stride=1, rule=Rule(0.8), batch_size=64, invalid=invalid,
    )  # fmt: skip
    assert last.max() < MASK
    assert invalid.item() == 24
