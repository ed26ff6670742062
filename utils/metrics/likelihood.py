"""Bits per dimension of images: both terms of the bound over a whole data set.

−log2 P(image) is at most −log2 p(pixels | codes) − log2 p(codes) at the codes that the encoder gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hparams.errors import RunError
from hparams.settings.experiments import LikelihoodSettings
from models.parts import Noise
from models.prior.prior import CodeLength, Codes, Prior
from models.vqgan.autoencoder import VQAutoEncoder
from models.vqgan.gaussian import dequantise, level_images, level_nll_nats, reduce_bits
from utils.data.bad_images import Report
from utils.data.batch_order import BatchOrder
from utils.data.batches import eval_batches
from utils.data.datasets import ImageData
from utils.machine.evaluation import evaluating
from utils.machine.files import content_key
from utils.machine.seeding import make_generator
from utils.pretrained.trained_models import TrainedModels
from utils.runs.job import Job
from utils.runs.results import Value
from utils.runs.shards import Shards


def images_to_evaluate(job: Job, likelihood: LikelihoodSettings, data: ImageData) -> np.ndarray:
    """Which images: all in order; in the published protocol the first batch of the shuffled ones."""
    if likelihood.protocol == "published":
        return BatchOrder(len(data), min(job.batch_size, len(data)), job.seed).indices(0)
    return np.arange(len(data))


def terms_of_images(job: Job, models: TrainedModels, likelihood: LikelihoodSettings, data: ImageData) -> np.ndarray:
    """Both terms of each image, and the Monte Carlo variance of the codes' one: [n,3] float64, nats.

    The variance is 0 for an exact term, NaN where one draw does not tell it. Images that an interrupted evaluation of
    the same models has done are kept in the run folder.
    """
    images, size = images_to_evaluate(job, likelihood, data), job.batch_size

    def evaluate(numbers: np.ndarray, report: Report) -> Iterator[Tensor]:
        batches = eval_batches(data, size, job.num_workers, indices=images[numbers], bad=report)
        for number, pixels in zip((numbers[::size] // size).tolist(), batches, strict=True):
            noise = [make_generator(job.device, job.seed, "likelihood", term, number) for term in ("pixels", "codes")]
            with evaluating(models.prior, models.autoencoder):
                ids, nats = pixel_term(job, models.autoencoder, likelihood, pixels, Noise(noise[0]))
                with job.autocast():
                    codes = code_term(models.prior, likelihood, ids, noise[1])
            yield torch.stack([nats.double().cpu(), codes.nats.cpu(), codes.variance.cpu()], dim=1)

    made_from = (*models.prior_key, *models.ae_key, data.fingerprint, job.amp_dtype, job.seed, size, likelihood)
    shards = Shards(job.folder.likelihoods / content_key("likelihoods 1", *made_from))
    what = "bits per dimension"
    return shards.fill(job, len(images), np.empty(3), evaluate, what=what, size=size, of=len(data))[:]


def pixel_term(
    job: Job, autoencoder: VQAutoEncoder, likelihood: LikelihoodSettings, pixels: Tensor, noise: Noise
) -> tuple[Tensor, Tensor]:
    """Images uint8 [B,C,H,W] → their codes [B,N] int64, and −log p(pixels | codes), [B] nats."""
    pixels = pixels.to(job.device)
    if likelihood.protocol == "published":
        seen = x = pixels.float() / 255
    else:
        levels = reduce_bits(pixels, likelihood.bits)
        seen, x = level_images(levels, likelihood.bits), dequantise(levels, likelihood.bits, noise)
    with torch.no_grad():
        ids = autoencoder.encode(seen, check_range=False)  # in float32, as for the prior's training
    with job.autocast():
        mean, logsigma = autoencoder.distribution(ids)
    return ids, level_nll_nats(x, mean, logsigma, likelihood.bits)


def code_term(prior: Prior, likelihood: LikelihoodSettings, ids: Tensor, generator: torch.Generator) -> CodeLength:
    """−log p(codes) of an exact prior, or an estimate of a bound on it: ids [B,N] → [B] nats."""
    if likelihood.protocol == "published":
        return prior.code_length(Codes(ids), generator)
    return prior.code_length(Codes(ids), generator, bound=likelihood.code_bound, evaluations=likelihood.elbo_steps)


def describe_code_term(prior: Prior, likelihood: LikelihoodSettings) -> str:
    """What `code_term` computes, in words."""
    if prior.exact:
        return "exact"
    if likelihood.protocol == "published":
        return f"bound of T = {prior.total_steps} steps, one draw of masks for each t"
    name = f"bound of T = {prior.total_steps} steps" if likelihood.code_bound == "t_step" else "continuous-time bound"
    return f"{name}, {likelihood.elbo_steps} evaluations per image"


def summarise(terms: np.ndarray, dimensions: int, tokens: int) -> dict[str, Value]:
    """Means of `terms_of_images` with standard errors over images; `code_mc_error` is the part of it that masks cause.

    Raises:
        RunError: an image's term is not finite.
    """
    pixels, codes, variance = torch.from_numpy(terms).unbind(1)
    if not (pixels + codes).isfinite().all():
        raise RunError(
            "some images have no finite likelihood: the prior or the head overflows in half precision (use --no_amp), "
            "or the head's training diverged (lower --lr)"
        )
    values: dict[str, Value] = {}
    for name, nats in {"": pixels + codes, "pixel_": pixels, "code_": codes}.items():
        bits = nats / (dimensions * math.log(2))
        values[f"{name}bits_per_dim"] = bits.mean().item()
        values[f"{name}standard_error"] = (bits.std() / len(bits) ** 0.5).item() if len(bits) > 1 else None
    error = variance.sum().sqrt().item() / (len(terms) * dimensions * math.log(2))
    values["code_mc_error"] = error if math.isfinite(error) else None
    values["code_bits_per_token"] = codes.mean().item() / (tokens * math.log(2))
    return values
