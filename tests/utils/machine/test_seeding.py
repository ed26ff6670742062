"""Random streams from (seed, stream, step)."""

from __future__ import annotations

import torch

from utils.machine.seeding import derive_seed, make_generator, seed_global


def test_seeds_are_the_same_on_every_machine_every_part_counts_and_torch_accepts_them() -> None:
    assert derive_seed(0, "vqgan", 7) == 1579675695082453827
    parts = ((0, "vqgan", 7), (1, "vqgan", 7), (0, "prior", 7), (0, "vqgan", 8), (0, "vqgan"), (0, "vqgan", 70))
    assert len({derive_seed(*each) for each in parts}) == 6
    seeds = {derive_seed(0, step) for step in range(2000)}
    assert len(seeds) == 2000
    assert min(seeds) >= 0
    assert 2**62 < max(seeds) < 2**63


def test_generators_repeat_and_leave_the_global_stream_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (torch.rand(4, generator=make_generator("cpu", 0, "s", step)) for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_global_streams_repeat() -> None:
    first, again, other = (seed_global(0, "dropout", step) or torch.rand(4) for step in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
