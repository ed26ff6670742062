"""Drawing images from a prior, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hparams.settings import RunSettings, SamplingSettings
from models.absorbing import AbsorbingDiffusion
from models.autoencoder import VQAutoEncoder
from utils.building import Prior
from utils.evaluation import evaluating
from utils.seeding import make_generator


def image_batches(
    prior: Prior,
    autoencoder: VQAutoEncoder,
    sampling: SamplingSettings,
    run: RunSettings,
    amp_dtype: torch.dtype | None,
) -> Iterator[Tensor]:
    """Exactly `n_samples` images in batches [b,C,H,W] float32 in [0,1], b = `batch_size` but for a smaller last one.

    A batch is a function of the seed and its number alone.
    """
    device = next(prior.parameters()).device
    for number, first in enumerate(range(0, sampling.n_samples, run.batch_size)):
        count = min(run.batch_size, sampling.n_samples - first)
        generator = make_generator(device, run.seed, "samples", number)
        with (
            evaluating(prior, autoencoder),
            torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None),
        ):
            if isinstance(prior, AbsorbingDiffusion):
                ids = prior.sample(
                    count,
                    generator=generator,
                    temp=sampling.temp,
                    sample_steps=sampling.sample_steps,
                    sample_type=sampling.sample_type,
                )
            else:
                ids = prior.sample(count, generator=generator, temp=sampling.temp)
            images = autoencoder.decode(ids)
        yield images


def draw_images(
    prior: Prior,
    autoencoder: VQAutoEncoder,
    sampling: SamplingSettings,
    run: RunSettings,
    amp_dtype: torch.dtype | None,
) -> Tensor:
    """All of `image_batches` at once, on the CPU: [n_samples,C,H,W]."""
    return torch.cat([images.cpu() for images in image_batches(prior, autoencoder, sampling, run, amp_dtype)])
