"""Codes larger than the training ones, drawn and decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hparams.settings.experiments import LargerSettings
from hparams.settings.sampling import SamplingSettings
from models.sampling.larger import larger_trajectory, reveal_plan, window_starts
from utils.machine.evaluation import evaluating
from utils.machine.files import content_key
from utils.machine.seeding import make_generator
from utils.pretrained.trained_models import TrainedModels
from utils.runs.job import Job
from utils.runs.shards import Shards
from utils.sampling.drawing import check_finite, decoded, rule_of


def larger_codes(
    job: Job, models: TrainedModels, larger: LargerSettings, sampling: SamplingSettings
) -> tuple[np.ndarray, float]:
    """Codes of all `n_samples` images, [n,H,W] int32, and how many windows the prior evaluated for each on average.

    An image is a function of weights, settings, seed and its number; those that are drawn are kept in the run folder.

    Raises:
        NotFiniteError: the prior's predictions are not finite.
    """
    (height, width), window = larger.shape, models.autoencoder.latent_size
    windows = len(window_starts(height, window[0], larger.stride)) * len(window_starts(width, window[1], larger.stride))
    together = -(-job.batch_size // windows)  # images, so that a batch is filled
    key = content_key("larger 1", *models.prior_key, larger, replace(sampling, n_samples=1), job.seed, job.amp_dtype)

    def draw(indices: np.ndarray, _: object) -> Iterator[Tensor]:
        for first in range(0, len(indices), together):
            yield _draw(job, models, larger, sampling, indices[first : first + together].tolist())

    like = np.empty(height * width + 1, np.int32)  # behind the codes the number of windows
    rows = Shards(job.folder.samples / key).fill(job, sampling.n_samples, like, draw, what="sampling", size=together)[:]
    return rows[:, :-1].reshape(-1, height, width), rows[:, -1].mean()


def _draw(
    job: Job, models: TrainedModels, larger: LargerSettings, sampling: SamplingSettings, indices: list[int]
) -> Tensor:
    """[b, H·W + 1] int64."""
    prior, (height, width) = models.prior, larger.shape
    assert prior.mask_id is not None  # others are refused with the settings
    generators = (make_generator("cpu", job.seed, "larger", index) for index in indices)
    plans = (reveal_plan((height, width), larger.order, sampling.sample_steps, each) for each in generators)
    reveal, uniforms = (torch.stack(part).to(job.device) for part in zip(*plans, strict=True))
    invalid = torch.zeros((), dtype=torch.int64, device=job.device)
    evaluations = 0

    def logits_at(windows: Tensor, places: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += len(windows)
        with job.autocast():
            return prior.logits_at(windows, places)

    with evaluating(prior), job.progress(f"image {indices[0] + 1}", int(reveal.max()) + 1, "step") as progress:
        for x in larger_trajectory(  # noqa: B007 (the last one is the result)
            logits_at, torch.full_like(reveal, prior.mask_id), reveal, uniforms, mask_id=prior.mask_id,
            window=models.autoencoder.latent_size, stride=larger.stride, rule=rule_of(sampling),
            batch_size=job.batch_size, invalid=invalid,
        ):
            check_finite("the prior's predictions", invalid == 0, job.amp_dtype)
            progress.update()
            job.check()
    return torch.cat([x.flatten(1), x.new_full((len(x), 1), evaluations // len(x))], dim=1)


def decode_larger(job: Job, models: TrainedModels, codes: np.ndarray) -> Tensor:
    """Images [b,C,H',W'] uint8 of codes [b,H,W], each decoded as a whole.

    The decoder's normalisation and its attention see all of an image, so that tiles are not what they would be: with an
    overlap of a training image on each side they still differ by 6 of 255 on average (toy churches).
    """
    height, width = codes.shape[1:]
    return torch.cat([decoded(job, models.autoencoder, image.reshape(1, -1), (height, width)) for image in codes])
