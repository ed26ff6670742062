"""The moving average of weights."""

import pytest
import torch
from small_models import normal
from torch import nn

from models.ema import EMA, decay_of, share_of_start, updates_before


def test_the_average_is_a_frozen_copy_that_follows_weights_and_takes_over_buffers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    ema, expected = EMA(model, beta=0.9), [parameter.detach().double() for parameter in model.parameters()]
    assert not any(module.training for module in ema.model.modules())
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert all(module.training for module in model.modules())
    for step in range(1, 6):
        model(torch.randn(8, 3))
        assert not torch.equal(ema.model[1].running_mean, model[1].running_mean)
        assert ema.model[1].num_batches_tracked == step - 1  # a copy, not the same tensor
        for parameter in model.parameters():
            parameter.data.add_(normal(*parameter.shape, seed=step))
        ema.follow(model, step)
        assert torch.equal(ema.model[1].running_mean, model[1].running_mean)
        expected = [0.9 * old + 0.1 * new.double() for old, new in zip(expected, model.parameters(), strict=True)]
    for average, value in zip(ema.model.parameters(), expected, strict=True):
        torch.testing.assert_close(average, value.float(), rtol=1e-5, atol=1e-6)


def test_tied_weights_are_averaged_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    nn.init.zeros_(model[0].weight)
    ema = EMA(model, beta=0.5)
    nn.init.ones_(model[0].weight)
    ema.follow(model, 1)
    assert (ema.model[0].weight == 0.5).all()
    assert ema.model[1].weight is ema.model[0].weight


def test_the_decay_grows_with_the_updates_up_to_beta() -> None:
    assert [decay_of(n, 0.3, warmup=True) for n in range(4)] == [1 / 10, 2 / 11, 3 / 12, 0.3]
    assert [decay_of(n, 0.3, warmup=False) for n in range(4)] == [0.3] * 4


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("every", [1, 3])
def test_what_the_start_weighs_after_any_step(every: int, warmup: bool) -> None:
    """A start of 1 and weights of 0 from then on show it."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    ema = EMA(model, beta=0.9, every=every, warmup=warmup)
    nn.init.zeros_(model.weight)
    for step in range(60):
        left = share_of_start(updates_before(step, every), 0.9, warmup=warmup)
        assert ema.model.weight.item() == pytest.approx(left, rel=1e-4, abs=1e-12)
        ema.follow(model, step)
