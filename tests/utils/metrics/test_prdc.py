"""PRDC in blocks against the prdc package, which sees whole matrices; by several processes, see `spread.py`."""

from __future__ import annotations

from pathlib import Path

import prdc
import pytest
import torch
from torch import Tensor

from spread import score
from utils.machine.distributed import Ranks
from utils.metrics.prdc import _SPARE, block_count, compute_prdc
from warm import together

NAMES = ("precision", "recall", "density", "coverage")


def gaussian(n: int, d: int, seed: int, *, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return torch.randn((n, d), generator=torch.Generator().manual_seed(seed)) * scale + shift


def near_ties() -> tuple[Tensor, Tensor]:
    """Real and fake points, all equally far apart as far as float32 products tell, so that rows are searched whole."""
    n = 8 * _SPARE
    real, fake = (torch.eye(n) + gaussian(n, n, seed, scale=1e-7) for seed in (0, 1))
    return real, fake


def check_against_package(real: Tensor, fake: Tensor, k: int, **more: int) -> dict[str, float]:
    got, expected = compute_prdc(real, fake, k, **more), prdc.compute_prdc(real.numpy(), fake.numpy(), k)
    assert got == pytest.approx(expected, abs=1e-6)
    return got


@pytest.mark.parametrize(
    ("n", "m", "d", "k", "block"),
    [(300, 200, 5, 3, 64), (200, 300, 40, 5, 1000), (65, 257, 3, 1, 64), (5, 6, 2, 3, 2), (500, 400, 2048, 3, 128)],
)
def test_equal_to_the_package(n: int, m: int, d: int, k: int, block: int) -> None:
    got = check_against_package(gaussian(n, d, 0), gaussian(m, d, 1, scale=0.9, shift=0.1), k, block=block)
    assert all(0 <= got[name] <= 1 for name in NAMES if name != "density")


def test_where_single_precision_cannot_decide() -> None:
    """Far from the origin, in clusters, with an outlier that blows up a common error bound."""
    centres = gaussian(20, 64, 0, scale=30, shift=500)
    real = centres.repeat(15, 1) + gaussian(300, 64, 1, scale=1e-2)
    fake = centres[:15].repeat(20, 1) + gaussian(300, 64, 2, scale=1e-2)
    real[7] += 1e5
    got = check_against_package(real, fake, 3, block=100)
    assert got["precision"] > 0.3
    assert got["coverage"] < 0.8


def test_duplicates_are_at_distance_zero() -> None:
    real = torch.arange(8.0)[:, None].repeat(1, 3)
    got = compute_prdc(real, real.clone(), 2)
    assert (got["precision"], got["recall"], got["coverage"]) == (1, 1, 1)
    same = torch.ones(6, 3)  # every radius is zero, and no distance is below it
    assert compute_prdc(same, same.clone(), 2) == dict.fromkeys(NAMES, 0.0)


def test_several_processes_have_the_result_of_one_to_the_bit(tmp_path: Path) -> None:
    """Also where distances are equal, where rows are searched whole, and where a process has no block or no point."""
    grid = [torch.randint(3, (150, 4), generator=torch.Generator().manual_seed(seed)).float() for seed in (0, 1)]
    cases = [
        (gaussian(2, 4, 0), gaussian(3, 4, 1), 1, 2),
        (gaussian(300, 16, 0), gaussian(200, 16, 1, scale=0.9), 5, 32),
        (gaussian(40, 4, 0), gaussian(70, 4, 1), 3, 1000),
        (*grid, 20, 32),
        (*near_ties(), 3, 8),
    ]
    torch.save(cases, tmp_path / "cases.pt")
    for count in (2, 3, 4):
        together(count, score, tmp_path)
    expected = [compute_prdc(real, fake, k, block=block) for real, fake, k, block in cases]
    for real, fake, k, block in cases[1:]:  # the package needs a third point
        assert check_against_package(real, fake, k, block=block)["density"] > 0
    for count in (2, 3, 4):
        for rank in range(count):
            found = torch.load(tmp_path / f"{count}.{rank}.pt", weights_only=True)
            assert [values for values, _ in found] == expected
            assert [ticks for _, ticks in found] == [
                block_count(len(real), len(fake), block, Ranks(rank, count)) for real, fake, _, block in cases
            ]


def test_what_cannot_be_compared() -> None:
    zeros = torch.zeros(10, 3)
    for real, fake in ((zeros, torch.zeros(10, 4)), (zeros[:3], zeros), (zeros, zeros * torch.nan)):
        with pytest.raises(ValueError):
            compute_prdc(real, fake, 3)
