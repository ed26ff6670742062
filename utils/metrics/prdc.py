"""Precision, recall, density and coverage (Naeem et al. 2020, arXiv 2002.09797) in bounded memory.

Definitions, and the distances that are compared, are the prdc package's: differences in float64, rounded to float32. It
holds three n × n matrices; here they are seen block by block. Products of float32 matrices give lower bounds on the
squared distances, from which almost all pairs are decided; the few that are too close to a radius are looked at in
float64, so that no rounding error decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import torch
from torch import Tensor

from utils.machine.devices import without_tf32
from utils.machine.distributed import ALONE, Ranks
from utils.runs.job import Job
from utils.runs.shards import Rows

BLOCK = 4096  # points along a side of a block of distances
_SPARE = 5  # candidates for the nearest neighbours beyond those asked for
_PAIRS = 1024  # distances in float64 at a time
_ABOVE = 1 + 2.0**-20  # more than the rounding of a few float32 operations


def prdc(job: Job, real: Rows | np.ndarray, fake: Rows | np.ndarray, nearest_k: int) -> dict[str, float]:
    """`compute_prdc` of features [n,d] and [m,d] on the job's device, with a progress bar of this process's share."""
    reals, fakes = (torch.tensor(features[:], device=job.device) for features in (real, fake))
    with job.progress("PRDC", block_count(len(real), len(fake), ranks=job.ranks), "block") as progress:
        return compute_prdc(reals, fakes, nearest_k, tick=progress.update, ranks=job.ranks)


@without_tf32()
def compute_prdc(
    real: Tensor, fake: Tensor, nearest_k: int, *,
    block: int = BLOCK, tick: Callable[[], None] = lambda: None, ranks: Ranks = ALONE,
) -> dict[str, float]:
    """The four numbers of real features [n,d] and fake features [m,d], float32 and on one device, by name.

    Each is 0 or more, all but density at most 1. Radii are distances to the `nearest_k`-th neighbour within the same
    set. Beyond the features, memory is that of a centred copy of them and of a few blocks of distances. `tick` is
    called `block_count` times. Several `ranks` have the same features, and each computes its share of the blocks; all
    get the one result, whatever their number.

    Raises:
        ValueError: shapes do not fit, a set has no more than `nearest_k` points, or a value is not finite.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be [n,d] and [m,d], not {list(real.shape)} and {list(fake.shape)}")
    if not 1 <= nearest_k < min(len(real), len(fake)):
        raise ValueError(f"{nearest_k} neighbours need more points than {len(real)} and {len(fake)}")
    centre = real.mean(0, dtype=torch.float64)
    reals, fakes = _Points(real, centre), _Points(fake, centre)
    real_radii = _radii(reals, nearest_k, block, tick, ranks)
    fake_radii = _radii(fakes, nearest_k, block, tick, ranks)

    pairs_within = 0
    precise = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool, device=real.device) for _ in range(2))
    blocks = list(product(_blocks(len(real), block), _blocks(len(fake), block)))
    for number in ranks.share(len(blocks)):
        rows, columns = blocks[number]
        i, j, in_real, in_fake = _within(reals, fakes, rows, columns, real_radii, fake_radii)
        pairs_within += int(in_real.sum())
        precise[j[in_real]] = True
        covered[i[in_real]] = True
        recalled[i[in_fake]] = True
        tick()
    pairs_within = int(ranks.sum(torch.tensor(pairs_within)))
    return {
        "precision": _fraction(precise, ranks),
        "recall": _fraction(recalled, ranks),
        "density": pairs_within / (nearest_k * len(fake)),
        "coverage": _fraction(covered, ranks),
    }


def block_count(n: int, m: int, block: int = BLOCK, ranks: Ranks = ALONE) -> int:
    """How many blocks of distances this process computes in `compute_prdc` of n real and m fake features."""
    a, b = -(-n // block), -(-m // block)
    return sum(len(ranks.share(blocks)) for blocks in (a * (a + 1) // 2, b * (b + 1) // 2, a * b))


class _Points:
    """Features, with what their distances' lower bounds are computed from.

    With x, y the centred features in float32, fl(x·y) differs from x·y by at most γ|x||y| ≤ γ(|x|² + |y|²)/2, where
    γ = d·2^-24 to first order, whatever the order of summation. So (1−c)(|x|² + |y|²) − 2 fl(x·y) is a lower bound on
    the squared distance, and 2c(|x|² + |y|²) more an upper one; c leaves room for the rounding of everything else.
    """

    def __init__(self, features: Tensor, centre: Tensor) -> None:
        self.features = features
        self.centred = torch.empty_like(features)
        self.squares = features.new_empty(len(features))
        for part in _blocks(len(features), BLOCK):
            centred = features[part].double() - centre
            self.centred[part] = centred
            self.squares[part] = centred.square().sum(1)
        if not self.squares.isfinite().all():
            raise ValueError("features must be finite")
        self.c = (features.shape[1] + 32) * 2.0**-24

    def lower_bounds(self, rows: slice, other: _Points, columns: slice) -> Tensor:
        """Of the squared distances of some points to some others: [rows, columns] float32."""
        low = torch.addmm((1 - self.c) * other.squares[columns], self.centred[rows], other.centred[columns].T, alpha=-2)
        return low.add_((1 - self.c) * self.squares[rows].unsqueeze(1))


def _radii(points: _Points, k: int, block: int, tick: Callable[[], None], ranks: Ranks) -> Tensor:
    """Distance of each point to its k-th neighbour, [n] float32."""
    n = len(points.features)
    low = points.squares.new_full((n, k + _SPARE), torch.inf)  # the lowest bounds so far, in order, and whose they are
    index = torch.zeros((n, k + _SPARE), dtype=torch.int64, device=low.device)

    def merge(rows: slice, columns: slice, bounds: Tensor) -> None:
        values, places = bounds.topk(min(k + _SPARE, bounds.shape[1]), dim=1, largest=False)
        values, order = torch.cat([low[rows], values], 1).topk(k + _SPARE, dim=1, largest=False)
        low[rows] = values
        index[rows] = torch.cat([index[rows], places + columns.start], 1).gather(1, order)

    parts = list(_blocks(n, block))
    blocks = [(rows, columns) for number, rows in enumerate(parts) for columns in parts[number:]]
    for number in ranks.share(len(blocks)):
        rows, columns = blocks[number]
        bounds = points.lower_bounds(rows, points, columns)
        if rows == columns:
            bounds.fill_diagonal_(torch.inf)
        else:
            merge(columns, rows, bounds.T.contiguous())
        merge(rows, columns, bounds)
        tick()

    # The lowest bounds of all blocks; then each process sees to its share of the points.
    ranks.wait()  # here, as NCCL would not say who is missing
    low, order = ranks.gather(low.T).T.topk(k + _SPARE, dim=1, largest=False)
    index = ranks.gather(index.T).T.gather(1, order)
    own = torch.arange(n, device=low.device)[ranks.rank :: ranks.count]
    low, index = low[own], index[own]
    i = own.unsqueeze(1).expand_as(index)
    squared = _squared_distances(points.features, points.features, i.flatten(), index.flatten()).view_as(low)
    squared[low.isinf()] = torch.inf
    kth = squared.sort(1).values[:, k - 1]
    # Every point that is no candidate is at least as far as the last candidate's bound.
    for row in (kth > low[:, -1]).nonzero().flatten().tolist():
        everyone = torch.arange(n, device=low.device)
        others = everyone[everyone != own[row]]
        to_others = _squared_distances(points.features, points.features, own[row], others)
        kth[row] = to_others.sort().values[k - 1]
    radii = points.squares.new_zeros(n)
    radii[own] = _rounded(kth)
    ranks.wait()
    return ranks.sum(radii)


def _within(
    reals: _Points, fakes: _Points, rows: slice, columns: slice, real_radii: Tensor, fake_radii: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs of a block that may be within a radius: real index i, fake index j, within i's radius?, within j's?"""
    bounds = reals.lower_bounds(rows, fakes, columns)
    near = bounds < (real_radii[rows].square() * _ABOVE).unsqueeze(1)
    near |= bounds < fake_radii[columns].square() * _ABOVE
    i, j = near.nonzero(as_tuple=True)
    low = bounds[i, j]
    i, j = i + rows.start, j + columns.start
    high = (low + 2 * reals.c * (reals.squares[i] + fakes.squares[j])) * _ABOVE
    r, s = real_radii[i], fake_radii[j]
    in_real, in_fake = high < r.square(), high < s.square()
    may_be = (low < r.square() * _ABOVE) & ~in_real | (low < s.square() * _ABOVE) & ~in_fake
    unsure = may_be.nonzero().flatten()
    distances = _rounded(_squared_distances(reals.features, fakes.features, i[unsure], j[unsure]))
    in_real[unsure], in_fake[unsure] = distances < r[unsure], distances < s[unsure]
    return i, j, in_real, in_fake


def _squared_distances(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """|x_i − y_j|² pair by pair, in float64: [pairs]. A single i goes with every j."""
    i = i.expand_as(j)
    squared = torch.empty(len(j), dtype=torch.float64, device=j.device)
    for part in _blocks(len(j), _PAIRS):
        difference = x[i[part]].double().sub_(y[j[part]])
        squared[part] = torch.linalg.vecdot(difference, difference)
    return squared


def _rounded(squared: Tensor) -> Tensor:
    """As the prdc package rounds: squared distances, then distances, in float32."""
    return squared.float().double().sqrt().float()  # torch's root of float32 itself may be a bit off


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _fraction(flags: Tensor, ranks: Ranks) -> float:
    """Share of the flags that some process has set."""
    return int((ranks.sum(flags.int()) > 0).sum()) / len(flags)
