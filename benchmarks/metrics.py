"""Rows of nearest neighbours, PRDC and samples larger than the training images."""

from __future__ import annotations

import contextlib
import io
from functools import partial

import prdc
import torch
from torch import Tensor

from benchmarks.measure import Row, interleave
from benchmarks.scale import Scale
from models.sampling.larger import window_mixture
from utils.machine.seeding import make_generator, seed_global
from utils.metrics.neighbours import NearestNeighbours
from utils.metrics.prdc import compute_prdc
from utils.pretrained.perceptual import LPIPSEmbedding, untrained_lpips

SAMPLES, NEAREST, SIDE = 16, 10, 64  # pixels: LPIPS' cost is proportional to their number in both ways of counting


def neighbours(scale: Scale, device: torch.device) -> Row:
    """Each training image embedded once and compared by one product, against one LPIPS call per pair."""
    seed_global(0)
    network = untrained_lpips("alex").to(device).eval()
    generator = make_generator("cpu", "neighbours")
    samples, images = (
        torch.rand((n, 3, SIDE, SIDE), generator=generator).to(device) for n in (SAMPLES, scale.neighbour_images)
    )
    found: dict[str, Tensor] = {}

    @torch.no_grad()
    def pair_by_pair() -> None:
        distances = torch.tensor([[network(s[None], x[None], normalize=True).item() for x in images] for s in samples])
        found["baseline"] = distances.topk(NEAREST, largest=False)[0]

    def embedded() -> None:
        embed = LPIPSEmbedding(network, device)
        nearest = NearestNeighbours(embed(samples), NEAREST)
        for first, batch in zip(range(0, len(images), 32), images.split(32), strict=True):
            nearest.merge(*nearest.nearest(embed(batch), first))
        found["float32"] = nearest.distances.cpu()

    row = Row(
        name=f"nearest neighbours, {SAMPLES} samples, LPIPS (alex)",
        unit=f"s per {scale.neighbour_images} images",
        reduced=f"{scale.neighbour_images} of 10,000 images, {SIDE}² pixels, LPIPS of random weights",
        target="≥ 10 ×",
    )
    row.timings = interleave({"baseline": pair_by_pair, "float32": embedded}, min(3, scale.repeats), device, 0)
    row.checks["largest difference of distances"] = (found["baseline"] - found["float32"]).abs().max().item()
    return row


def precision_recall(scale: Scale, device: torch.device) -> Row:
    """PRDC in blocks against the prdc package, on features of width 2048."""
    generator = make_generator("cpu", "prdc")
    decay = torch.arange(1, 2049).rsqrt()
    real, fake = (torch.randn((scale.prdc_points, 2048), generator=generator) * decay for _ in range(2))
    results: dict[str, dict[str, float]] = {}

    def package() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            results["baseline"] = prdc.compute_prdc(real.numpy(), fake.numpy(), 3)

    def blocked() -> None:
        results["float32"] = compute_prdc(real.to(device), fake.to(device), 3)

    row = Row(
        name=f"PRDC, N = {scale.prdc_points}",
        unit="s",
        reduced="" if scale.prdc_points == 10_000 else f"N {scale.prdc_points} of 10,000",
        target="no slower than prdc at N = 10,000",
    )
    row.timings = interleave({"baseline": package, "float32": blocked}, min(3, scale.repeats), device, 0)
    row.checks["largest difference from the package"] = max(
        abs(float(results["baseline"][name]) - value) for name, value in results["float32"].items()
    )
    return row


def larger(scale: Scale, device: torch.device) -> Row:
    """Windows that are evaluated for a 64×64 grid in raster order: all of them for every token as published."""
    side, window = 64, 16
    evaluated = 0

    def counting(x: Tensor, places: Tensor) -> Tensor:
        nonlocal evaluated
        evaluated += len(x)
        return torch.zeros((*places.shape, 2))

    x = torch.full((1, side, side), 2)
    places = range(0, side * side, scale.big_every)
    mixture = partial(window_mixture, counting, x, window=(window, window), stride=1, batch_size=512)
    for place in places:
        due = torch.zeros_like(x, dtype=torch.bool)
        due.view(-1)[place] = True
        mixture(due=due)
    published = len(places) * (side - window + 1) ** 2
    row = Row(
        name="samples of 64×64 tokens",
        unit="evaluations",
        reduced="" if scale.big_every == 1 else f"counted at every {scale.big_every}th place",
        target="≤ 1/15 of the published",
    )
    row.figures["evaluations of the network, published"] = published
    row.figures["evaluations of the network, here"] = evaluated
    row.figures["published / here"] = round(published / evaluated, 1)
    return row
