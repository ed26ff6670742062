"""The training images nearest to some samples: every one is embedded once, and none is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hparams.errors import UserError
from utils.data.bad_images import Report
from utils.data.batches import eval_batches
from utils.data.datasets import ImageData
from utils.data.pictures import image_grid
from utils.machine.devices import without_tf32
from utils.machine.files import content_key, whole_file
from utils.metrics.features import build_features
from utils.pretrained.perceptual import LPIPSEmbedding, digest_of, load_lpips
from utils.pretrained.weights import NoWeightsError
from utils.runs.job import Job
from utils.runs.results import Value
from utils.runs.shards import Shards

GAP = 12  # pixels between samples and neighbours
_BATCHES = 16  # of a part file


@dataclass(frozen=True)
class Embedding:
    """Images to vectors; what their squared distance is, in words."""

    name: str
    weights: str  # which: the first digits of a hash, or "fixed"
    embed: Callable[[Tensor], Tensor]  # images uint8 [b,3,H,W] on the device → [b,D] float32

    def __call__(self, images: Tensor) -> Tensor:
        """UserError if a vector is not finite."""
        vectors = self.embed(images)
        if not vectors.isfinite().all():
            raise UserError(f"{self.name} gives values that are not finite: replace its damaged weights")
        return vectors


def build_embedding(job: Job, distance: str, lpips_net: str, lpips_weights: str | None) -> Embedding:
    """The distance that the flags name, or after a warning R64's features. UserError: named weights are not usable."""
    if distance == "lpips":
        try:
            network = load_lpips(lpips_net, lpips_weights)
        except NoWeightsError as error:
            job.warn(f"WARNING: {error}. For now features of R64 stand in for LPIPS: other distances, other neighbours")
        else:
            embed = LPIPSEmbedding(network, job.device)
            return Embedding(f"LPIPS ({lpips_net})", digest_of(network), lambda pixels: embed(pixels.float() / 255))
    r64 = build_features("r64", None, job.device)
    return Embedding("squared distance of R64 features", r64.weights, r64)


def images_to_compare(data: ImageData, images: int | None, k: int) -> int:
    """How many of the first `images` there are, or of all where that is None; UserError if fewer than k are."""
    total = min(images or len(data), len(data))
    if k > total:
        raise UserError(f"--top_k {k} is more than the {total} training images: use {total} or fewer")
    return total


def nearest_images(
    job: Job, embedding: Embedding, samples: Tensor, data: ImageData, n: int, k: int
) -> NearestNeighbours:
    """The k of the first n images of `data` nearest to each of samples uint8 [S,3,H,W].

    Images that cannot be read are left out. What an interrupted search has compared is kept in the run folder.

    Raises:
        UserError: fewer than k images can be read, or the embedding gives NaN.
    """
    queries = torch.cat([embedding(batch.to(job.device)) for batch in samples.split(job.batch_size)])
    found = NearestNeighbours(queries, k)

    def search(batches: np.ndarray, report: Report) -> Iterator[Tensor]:
        """For each batch of training images what is nearest in it: distance and number, [1,S,k,2] float64."""
        unreadable: dict[str, str] = {}

        def note(found: Mapping[str, str], images: int) -> None:
            unreadable.update(found)
            report(found, images)

        firsts = batches * job.batch_size
        indices = np.concatenate([np.arange(first, min(first + job.batch_size, n)) for first in firsts])
        images = eval_batches(data, job.batch_size, job.num_workers, indices=indices, bad=note)
        for first, pixels in zip(firsts.tolist(), images, strict=True):
            present = None
            if unreadable:  # not where another image stands in
                here = [data.source(i) not in unreadable for i in range(first, first + len(pixels))]
                present = torch.tensor(here, device=job.device)
            with without_tf32():
                nearest = found.nearest(embedding(pixels.to(job.device)), first, present)
            yield torch.stack([part.double() for part in nearest], dim=-1)[None]

    made_from = (embedding.name, embedding.weights, samples, data.fingerprint, n, k, job.batch_size)
    shards = Shards(job.folder.features / content_key("neighbours 1", *made_from))
    like, batches = np.empty((len(samples), k, 2)), -(-n // job.batch_size)
    for row in shards.fill(job, batches, like, search, what="comparing", size=_BATCHES, of=len(data)):
        distances, indices = torch.from_numpy(row).to(job.device).unbind(-1)
        found.merge(distances.float(), indices.long())
    if found.distances.isinf().any():
        raise UserError(f"--top_k {k} is more than the training images that can be read: use fewer")
    return found


def write_neighbours(
    job: Job, samples: Tensor, found: NearestNeighbours, data: ImageData, conditions: Mapping[str, Value]
) -> np.ndarray:
    """Write `neighbours.json`: number, file (or LMDB and key) and distance of each. Returns a picture, uint8 [3,H',W'].

    samples: uint8 [S,3,H,W] on the CPU. A row of the picture is a sample and, behind a gap, its neighbours.
    """
    indices, distances = found.indices.tolist(), found.distances.tolist()
    neighbours = torch.stack([torch.from_numpy(data[i]) for row in indices for i in row])
    left, right = image_grid(samples, columns=1), image_grid(neighbours, columns=found.indices.shape[1])
    rows = [
        [{"index": i, "source": data.source(i), "distance": distance} for i, distance in zip(*row, strict=True)]
        for row in zip(indices, distances, strict=True)
    ]
    with whole_file(job.folder.path / "neighbours.json") as file:
        file.write((json.dumps({"conditions": dict(conditions), "samples": rows}, indent=2) + "\n").encode())
    return np.concatenate([left, np.full((*left.shape[:2], GAP), 255, np.uint8), right], axis=2)


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

    def nearest(self, embeddings: Tensor, first: int, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Distances and indices [S,k] as above of some embeddings [b,D] float32 alone, numbered from `first` on."""
        # |q − e|² by one product; its rounding, about 1e-7 of |q|² + |e|², may leave equal ones slightly below zero.
        norms = self._query_norms + embeddings.square().sum(1)
        distances = torch.addmm(norms, self._queries, embeddings.t(), alpha=-2).clamp(min=0)
        if present is not None:
            distances = distances.where(present, torch.inf)
        numbers = torch.arange(first, first + len(embeddings), device=embeddings.device)
        nothing = torch.full_like(self.distances, torch.inf), torch.full_like(self.indices, -1)
        return self._first((distances, nothing[0]), (numbers.expand(len(distances), -1), nothing[1]))

    def merge(self, distances: Tensor, indices: Tensor) -> None:
        """Take what `nearest` found [S,m] among further embeddings, which come after those seen before."""
        self.distances, self.indices = self._first((self.distances, distances), (self.indices, indices))

    def _first(self, distances: tuple[Tensor, Tensor], indices: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        values, order = torch.cat(distances, dim=1).sort(dim=1, stable=True)
        k = self.distances.shape[1]
        return values[:, :k], torch.cat(indices, dim=1).gather(1, order[:, :k])
