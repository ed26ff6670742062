"""The training images nearest to some samples: every one is embedded once, and none is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hparams.errors import UserError
from hparams.settings.metrics import FeatureSettings, NeighbourSettings
from utils.data.bad_images import Report, SharedReport
from utils.data.batches import eval_batches
from utils.data.datasets import ImageData
from utils.machine.devices import without_tf32
from utils.machine.distributed import ALONE, Ranks
from utils.machine.progress import Progress
from utils.metrics.features import build_features
from utils.metrics.nearest import NearestNeighbours
from utils.pretrained.perceptual import LPIPSEmbedding, digest_of, load_lpips
from utils.pretrained.weights import NoWeightsError
from utils.runs.partial import Partial
from utils.runs.shared_batches import in_order, own_indices


@dataclass(frozen=True)
class Embedding:
    """Images to vectors; what their squared distance is, in words."""

    name: str
    weights: str  # which: the first digits of a hash, or "fixed"
    embed: Callable[[Tensor], Tensor]  # images uint8 [b,3,H,W] on the device → [b,D] float32


def build_embedding(settings: NeighbourSettings, device: torch.device, warn: Callable[[str], None]) -> Embedding:
    """The distance that the settings name; features of R64 where the weights of LPIPS cannot be had, with a warning.

    Raises:
        UserError: weights that were named are not usable.
    """
    if settings.distance == "lpips":
        try:
            network = load_lpips(
                settings.lpips_net,
                settings.lpips_weights,
                what=f"the weights of --lpips_net {settings.lpips_net}",
                instead="name a file by --lpips_weights",
            )
        except NoWeightsError as error:
            warn(f"WARNING: {error}. For now features of R64 stand in for LPIPS: other distances, other neighbours")
        else:
            embed = LPIPSEmbedding(network, device)
            return Embedding(
                f"LPIPS ({settings.lpips_net})", digest_of(network), lambda pixels: embed(pixels.float() / 255)
            )
    r64 = build_features(FeatureSettings(features="r64"), device)
    return Embedding("squared distance of R64 features", r64.weights, r64)


def images_to_compare(data: ImageData, images: int | None, k: int) -> int:
    """How many of the first `images` there are, or of all where that is None; UserError if fewer than k are."""
    total = min(images or len(data), len(data))
    if k > total:
        raise UserError(f"--top_k {k} is more than the {total} training images: use {total} or fewer")
    return total


def search(
    embedding: Embedding,
    samples: Tensor,
    data: ImageData,
    k: int,
    *,
    images: int | None,
    batch_size: int,
    num_workers: int,
    partial: Path,
    quiet: bool,
    bad: Report | None = None,
    ranks: Ranks = ALONE,
) -> NearestNeighbours:
    """The k of the first `images` of `data` (None: of all) nearest to each of samples uint8 [S,3,H,W] on the device.

    An interrupted search of the same goes on from the file `partial`. Images that cannot be read are left out, and
    reported to `bad`. Of several `ranks` each compares its share.

    Raises:
        UserError: there are fewer than k images, one cannot be read and there is no `bad`, or the embedding gives NaN.
    """
    total = images_to_compare(data, images, k)

    def embed(images: Tensor) -> Tensor:
        vectors = embedding.embed(images)
        if not vectors.isfinite().all():
            raise UserError(f"{embedding.name} gives values that are not finite: replace its damaged weights")
        return vectors

    queries = torch.cat([embed(batch) for batch in samples.split(batch_size)])
    found, report = NearestNeighbours(queries, k), SharedReport(bad, ranks)

    def state() -> dict[str, Any]:
        arrays = {"distances": found.distances.cpu(), "indices": found.indices.cpu()}
        return {**arrays, "seen": found.seen, "unreadable": report.found}

    key = {
        "embedding": (embedding.name, embedding.weights),
        "samples": hashlib.sha256(samples.cpu().numpy().tobytes()).hexdigest(),
        "data": data.fingerprint,
        "k": k,
        "images": total,
    }
    with Partial(partial, key, ranks) as work:
        if saved := work.load():
            found.distances, found.indices = (saved[name].to(samples.device) for name in ("distances", "indices"))
            found.seen = saved["seen"]
            if bad and saved["unreadable"]:
                bad(saved["unreadable"], len(data))
            report.found |= saved["unreadable"]
        mine = own_indices(range(found.seen, total), batch_size, ranks)

        def own() -> Iterator[list[Tensor]]:
            """What is nearest in each of this process's batches, [1,S,k] each."""
            batches = eval_batches(data, batch_size, num_workers, indices=mine, bad=report)
            for first, pixels in zip(mine[::batch_size].tolist(), batches, strict=True):
                present = None
                if report.found:  # where another image stands in
                    here = [data.source(i) not in report.found for i in range(first, first + len(pixels))]
                    present = torch.tensor(here, device=samples.device)
                with without_tf32():
                    nearest = found.nearest(embed(pixels.to(samples.device)), first, present)
                yield [part[None] for part in nearest]

        none = [part.new_empty((0, *part.shape)) for part in (found.distances, found.indices)]
        batches_left = -(-(total - found.seen) // batch_size)
        with Progress("comparing", total, "image", done=found.seen, quiet=quiet) as progress:
            for parts in in_order(own(), batches_left, 1, none, ranks):
                report.exchange()
                seen = min(len(parts[0]) * batch_size, total - found.seen)
                distances, indices = (part.transpose(0, 1).flatten(1) for part in parts)
                found.merge(distances, indices, seen)
                progress.update(seen)
                work.keep(state)
        work.remove()
    if found.distances.isinf().any():
        raise UserError(f"--top_k {k} is more than the training images that can be read: use fewer")
    return found
