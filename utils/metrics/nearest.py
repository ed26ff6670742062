"""Exact nearest neighbours by squared distance, over embeddings that come batch by batch and are not kept."""

from __future__ import annotations

import torch
from torch import Tensor


class NearestNeighbours:
    """The k nearest of all embeddings seen so far, for each of some queries.

    queries: [S,D] float32. `distances` [S,k] are squared and ascending, +∞ where fewer than k were seen; `indices`
    [S,k] int64 number the embeddings in the order in which they came. Of equally near ones the earlier counts.
    """

    def __init__(self, queries: Tensor, k: int) -> None:
        self._queries = queries
        self._query_norms = queries.square().sum(1, keepdim=True)
        self.distances = torch.full((len(queries), k), torch.inf, device=queries.device)
        self.indices = torch.full((len(queries), k), -1, device=queries.device)
        self.seen = 0

    def add(self, embeddings: Tensor, present: Tensor | None = None) -> None:
        """Take the next embeddings, [b,D] float32. Those not `present`, bool [b], are numbered all the same."""
        self.merge(*self.nearest(embeddings, self.seen, present), len(embeddings))

    def nearest(self, embeddings: Tensor, first: int, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Distances and indices [S,k] as above of some embeddings [b,D] float32 alone, numbered from `first` on."""
        # |q − e|² by one product; its rounding, about 1e-7 of |q|² + |e|², may leave equal ones slightly below zero.
        distances = torch.addmm(
            self._query_norms + embeddings.square().sum(1), self._queries, embeddings.t(), alpha=-2
        ).clamp(min=0)
        if present is not None:
            distances = distances.where(present, torch.inf)
        numbers = torch.arange(first, first + len(embeddings), device=embeddings.device)
        nothing = torch.full_like(self.distances, torch.inf), torch.full_like(self.indices, -1)
        return self._first(
            torch.cat([distances, nothing[0]], dim=1),
            torch.cat([numbers.expand(len(distances), -1), nothing[1]], dim=1),
        )

    def merge(self, distances: Tensor, indices: Tensor, count: int) -> None:
        """Take what `nearest` found [S,m] among `count` further embeddings, which come after those seen before."""
        self.distances, self.indices = self._first(
            torch.cat([self.distances, distances], dim=1), torch.cat([self.indices, indices], dim=1)
        )
        self.seen += count

    def _first(self, distances: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        distances, order = distances.sort(dim=1, stable=True)
        k = self.distances.shape[1]
        return distances[:, :k], indices.gather(1, order[:, :k])
