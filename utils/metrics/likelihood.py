"""Bits per dimension of images: the head that they need, and both terms over a whole data set.

−log2 P(image) is at most −log2 p(pixels | codes) − log2 p(codes) at the codes that the encoder gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hparams.errors import RunError
from hparams.settings.experiments import LikelihoodExperiment
from hparams.settings.metrics import LikelihoodSettings
from models.parts import WHOLE, BatchPart
from models.prior.autoregressive import AutoregressivePrior
from models.prior.bounds import BoundEstimate, estimate_bound
from models.prior.diffusion import bound_nats
from models.vqgan.gaussian import dequantise, level_images, level_nll_nats, reduce_bits
from utils.data.bad_images import Report, SharedReport
from utils.data.batches import BatchOrder, eval_batches
from utils.data.datasets import ImageData
from utils.machine.distributed import ALONE, Ranks
from utils.machine.evaluation import evaluating
from utils.machine.seeding import make_generator
from utils.pretrained.building import Prior
from utils.pretrained.trained_models import TrainedModels
from utils.runs.results import Value
from utils.runs.shared_batches import in_order, own_indices
from utils.training.optimiser import Optimiser

MAX_NORM = 0.1  # of the head's gradients in float32, as published


class HeadTrainer:
    """Trains the log-sigma head alone. Steps count from 0: `step` is the number of updates done so far.

    Each of the `ranks` holds the models, and does its part of every batch.
    """

    def __init__(self, settings: LikelihoodExperiment, models: TrainedModels, ranks: Ranks = ALONE) -> None:
        self._settings = settings
        self._models = models
        self._ranks = ranks
        self._head = models.autoencoder.generator.logsigma.requires_grad_(True)
        self._optimiser = Optimiser(
            self._head.parameters(),
            settings.likelihood.lr,
            models.device,
            models.amp_dtype,
            max_norm=MAX_NORM if models.amp_dtype is None else None,
        )

    def step(self, pixels: Tensor, step: int) -> dict[str, Tensor]:
        """One update on images uint8 [b,C,H,W], this process's part of the step's batch.

        Returns scalars. `skipped` is 1 where gradients were not finite.
        """
        generator = make_generator(self._models.device, self._settings.run.seed, "log-sigma", step)
        _, nats = pixel_term(self._models, self._settings.likelihood, pixels, generator, self._ranks.part)
        loss = (nats / (pixels[0].numel() * math.log(2))).mean()
        self._optimiser.zero_grad()
        self._optimiser.scaler.scale(loss).backward()
        for parameter in self._head.parameters():
            if parameter.grad is not None:
                parameter.grad = self._ranks.mean(parameter.grad)
        finite = self._optimiser.step()
        return {"pixel_bits_per_dim": self._ranks.mean(loss.detach()), "skipped": (~finite).float()}

    def state_dict(self) -> dict[str, Any]:
        """Head, moments and scale."""
        return {
            "head": self._head.state_dict(),
            "adam": self._optimiser.adam.state_dict(),
            "scaler": self._optimiser.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._head.load_state_dict(state["head"])
        self._optimiser.load_adam(state["adam"])
        self._optimiser.load_scaler(state["scaler"])


@dataclass(frozen=True)
class Likelihoods:
    """Both terms of each image, and the Monte Carlo variance of the codes' one: [n] float64 on the CPU, nats."""

    pixels: Tensor
    codes: Tensor
    variance: Tensor  # 0 for an exact term, NaN where one draw does not tell it

    @staticmethod
    def none() -> Likelihoods:
        """Of no images."""
        return Likelihoods(*(torch.zeros(0, dtype=torch.float64) for _ in range(3)))

    def __len__(self) -> int:
        return len(self.pixels)

    def and_then(self, more: Likelihoods) -> Likelihoods:
        """Those of further images behind these."""
        return Likelihoods(*(torch.cat([vars(self)[name], vars(more)[name]]) for name in vars(self)))


def validation_images(data: ImageData, settings: LikelihoodExperiment) -> np.ndarray:
    """Which images to evaluate: all in order; in the published protocol the first batch of the shuffled ones."""
    if settings.likelihood.protocol == "published":
        return BatchOrder(len(data), min(settings.run.batch_size, len(data)), settings.run.seed).indices(0)
    return np.arange(len(data))


def validation_batches(
    data: ImageData,
    settings: LikelihoodExperiment,
    start: int = 0,
    bad: Report | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[int, Tensor]]:
    """Batches of `validation_images`, each with its number, uint8 [b,C,H,W], from image `start` on.

    `bad` is as for `eval_batches`. Of several `ranks` each gets its share.
    """
    images, size = validation_images(data, settings), settings.run.batch_size
    own = own_indices(range(start, len(images)), size, ranks)
    batches = eval_batches(data, size, settings.run.num_workers, indices=images[own], bad=bad)
    yield from zip((own[::size] // size).tolist(), batches, strict=True)


def evaluate_batch(models: TrainedModels, settings: LikelihoodExperiment, number: int, pixels: Tensor) -> Likelihoods:
    """Both terms of a batch of `validation_batches`; a function of the seed and its number."""
    with evaluating(models.prior, models.autoencoder):
        ids, nats = pixel_term(models, settings.likelihood, pixels, _noise(models, settings, "pixels", number))
        with models.autocast():
            codes = code_term(models.prior, settings.likelihood, ids, _noise(models, settings, "codes", number))
    return Likelihoods(nats.double().cpu(), codes.nats.cpu(), codes.variance.cpu())


def mean_pixel_bits(
    models: TrainedModels,
    settings: LikelihoodExperiment,
    data: ImageData,
    bad: Report | None = None,
    ranks: Ranks = ALONE,
) -> float:
    """The pixel term over the validation images, bits per dimension, with the same noise at every call."""
    n, size, report = len(validation_images(data, settings)), settings.run.batch_size, SharedReport(bad, ranks)

    def own() -> Iterator[list[Tensor]]:
        for number, pixels in validation_batches(data, settings, bad=report, ranks=ranks):
            _, nats = pixel_term(models, settings.likelihood, pixels, _noise(models, settings, "pixels", number))
            yield [nats]

    none = [torch.empty(0, device=models.device)]
    with evaluating(models.autoencoder):
        nats = torch.cat([part for (part,) in in_order(own(), n, size, none, ranks)])
    report.exchange()
    return nats.double().mean().item() / (math.prod(models.autoencoder.image_shape) * math.log(2))


def pixel_term(
    models: TrainedModels,
    likelihood: LikelihoodSettings,
    pixels: Tensor,
    generator: torch.Generator,
    part: BatchPart = WHOLE,
) -> tuple[Tensor, Tensor]:
    """Images uint8 [B,C,H,W], a part of a batch → their codes [B,N] int64, and −log p(pixels | codes), [B] nats."""
    pixels = pixels.to(models.device)
    if likelihood.protocol == "published":
        seen = x = pixels.float() / 255
    else:
        levels = reduce_bits(pixels, likelihood.bits)
        seen, x = level_images(levels, likelihood.bits), dequantise(levels, likelihood.bits, generator, part)
    with torch.no_grad():
        ids = models.autoencoder.encode(seen, check_range=False)  # in float32, as for the prior's training
    with models.autocast():
        mean, logsigma = models.autoencoder.distribution(ids)
    return ids, level_nll_nats(x, mean, logsigma, likelihood.bits)


def code_term(prior: Prior, likelihood: LikelihoodSettings, ids: Tensor, generator: torch.Generator) -> BoundEstimate:
    """−log p(codes) of an autoregressive prior, or an estimate of a bound on it: ids [B,N] → [B] nats."""
    if isinstance(prior, AutoregressivePrior):
        nats = prior.losses(ids).double() * (ids.shape[1] * math.log(2))
        return BoundEstimate(nats, torch.zeros_like(nats))
    if likelihood.protocol == "published":
        uniforms = torch.rand((prior.total_steps, *ids.shape), generator=generator, device=ids.device)
        nats = bound_nats(prior.logits, ids, uniforms, mask_id=prior.mask_id)
        return BoundEstimate(nats, torch.full_like(nats, torch.nan))
    return estimate_bound(
        prior.logits,
        ids,
        likelihood.code_bound,
        total_steps=prior.total_steps,
        mask_id=prior.mask_id,
        evaluations=likelihood.elbo_steps,
        generator=generator,
    )


def describe_code_term(prior: Prior, likelihood: LikelihoodSettings) -> str:
    """What `code_term` computes, in words."""
    if isinstance(prior, AutoregressivePrior):
        return "exact"
    if likelihood.protocol == "published":
        return f"bound of T = {prior.total_steps} steps, one draw of masks for each t"
    name = f"bound of T = {prior.total_steps} steps" if likelihood.code_bound == "t_step" else "continuous-time bound"
    return f"{name}, {likelihood.elbo_steps} evaluations per image"


def summarise(likelihoods: Likelihoods, dimensions: int, tokens: int) -> dict[str, Value]:
    """Means over images, with standard errors over images; `code_mc_error` is the part of it that masks cause.

    Raises:
        RunError: an image's term is not finite.
    """
    if not (likelihoods.pixels + likelihoods.codes).isfinite().all():
        raise RunError(
            "some images have no finite likelihood: the prior or the head overflows in half precision (use --no_amp), "
            "or the head's training diverged (lower --lr)"
        )
    values: dict[str, Value] = {}
    for name, nats in (
        ("", likelihoods.pixels + likelihoods.codes),
        ("pixel_", likelihoods.pixels),
        ("code_", likelihoods.codes),
    ):
        bits = nats / (dimensions * math.log(2))
        values[f"{name}bits_per_dim"] = bits.mean().item()
        values[f"{name}standard_error"] = (bits.std() / len(bits) ** 0.5).item() if len(bits) > 1 else None
    error = likelihoods.variance.sum().sqrt().item() / (len(likelihoods) * dimensions * math.log(2))
    values["code_mc_error"] = error if math.isfinite(error) else None
    values["code_bits_per_token"] = likelihoods.codes.mean().item() / (tokens * math.log(2))
    return values


def _noise(models: TrainedModels, settings: LikelihoodExperiment, term: str, number: int) -> torch.Generator:
    return make_generator(models.device, settings.run.seed, "likelihood", term, number)
