"""Codes that start at encoder outputs, and codes that are restarted."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from models.vqgan.codebook import CodeUsage, draw_latents, restart_codes


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents() -> Tensor:
    """[2,3,2,2]: eight places, each with its number in all channels."""
    return torch.arange(8.0).view(2, 1, 2, 2).expand(2, 3, 2, 2)


def drawn(count: int, seed: int = 0) -> list[float]:
    rows = draw_latents(latents(), count, seeded(seed))
    assert rows.shape == (count, 3)
    assert (rows == rows[:, :1]).all()
    return rows[:, 0].tolist()


def test_places_are_drawn_without_repetition_while_they_last() -> None:
    assert len(set(drawn(5))) == 5
    assert sorted(drawn(8)) == list(range(8))


def test_fewer_places_than_codes_are_drawn_evenly_often() -> None:
    counts = Counter(drawn(21))
    assert sorted(counts) == list(range(8))
    assert set(counts.values()) == {2, 3}


def test_draws_come_from_the_generator() -> None:
    assert drawn(8, 1) == drawn(8, 1)
    assert drawn(8, 1) != drawn(8, 2)


def test_draws_are_float32_whatever_the_encoder_computes_in() -> None:
    assert draw_latents(latents().to(torch.bfloat16), 3, seeded()).dtype == torch.float32


def test_only_dead_codes_restart_at_places_of_the_encoder() -> None:
    codebook = torch.full((6, 3), -1.0, requires_grad=True)
    dead = torch.tensor([True, False, False, True, True, False])
    restart_codes(codebook, dead, latents(), seeded())
    assert (codebook[~dead] == -1).all()
    assert len(set(codebook[dead][:, 0].tolist())) == 3
    assert codebook[dead].min() >= 0
    assert codebook.is_leaf


def test_without_dead_codes_nothing_moves() -> None:
    codebook = torch.full((6, 3), -1.0)
    restart_codes(codebook, torch.zeros(6, dtype=torch.bool), latents(), seeded())
    assert (codebook == -1).all()


def test_more_dead_codes_than_places() -> None:
    codebook = torch.full((20, 3), -1.0)
    restart_codes(codebook, torch.ones(20, dtype=torch.bool), latents(), seeded())
    assert set(codebook[:, 0].tolist()) == set(range(8))


def test_usage_counts_until_reset() -> None:
    usage = CodeUsage(5, torch.device("cpu"))
    usage.add(torch.tensor([[0, 0], [3, 0]]))
    usage.add(torch.tensor([1]))
    assert usage.counts.tolist() == [3, 1, 0, 1, 0]
    assert usage.dead().tolist() == [False, False, True, False, True]
    usage.reset()
    assert usage.dead().all()
