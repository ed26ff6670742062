"""Running nearest neighbours against all distances at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from utils.metrics.nearest import NearestNeighbours


def points(n: int, seed: int) -> Tensor:
    return torch.randn((n, 20), generator=torch.Generator().manual_seed(seed))


def search(queries: Tensor, data: Tensor, k: int, batch_size: int) -> NearestNeighbours:
    found = NearestNeighbours(queries, k)
    for batch in data.split(batch_size):
        found.add(batch)
    return found


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_they_are_those_of_all_distances(batch_size: int) -> None:
    queries, data = points(5, 0), points(50, 1)
    found = search(queries, data, 4, batch_size)
    expected, order = torch.cdist(queries.double(), data.double()).square().sort(1)
    assert found.seen == 50
    assert torch.equal(found.indices, order[:, :4])
    torch.testing.assert_close(found.distances.double(), expected[:, :4], rtol=1e-5, atol=1e-5)


def test_a_copy_is_at_no_distance_and_the_earlier_of_equals_counts() -> None:
    data = points(9, 1)
    found = search(data[3:4], torch.cat([data, data]), 2, 4)
    assert found.indices.tolist() == [[3, 12]]
    assert found.distances.max() < 1e-4  # squared, of points whose squared lengths are some 20 and are rounded
    many = points(200, 1)  # some of whose distances to themselves are rounded to less than nothing
    assert search(many, many, 1, 50).distances.min() >= 0


def test_fewer_than_k() -> None:
    found = search(points(2, 0), points(3, 1), 5, 2)
    assert (found.indices[:, 3:] == -1).all()
    assert found.distances[:, 3:].isinf().all()
    assert found.distances[:, :3].isfinite().all()


def test_what_is_not_present_counts_and_is_no_neighbour() -> None:
    data = points(9, 1)
    found = NearestNeighbours(data[3:4], 9)
    found.add(data[:5], torch.tensor([True, True, True, False, True]))
    found.add(data[5:])
    assert found.seen == 9
    assert sorted(found.indices[0, :8].tolist()) == [0, 1, 2, 4, 5, 6, 7, 8]
    assert found.distances[0, 8].isinf()
