"""Pictures of one sample on its way from all masked to none."""

from __future__ import annotations

import torch
from torch import Tensor

from hparams.settings.sampling import SamplingSettings
from models.prior.prior import Prior
from models.sampling.samplers import diffusion_trajectory
from models.vqgan.autoencoder import VQAutoEncoder
from utils.machine.evaluation import evaluating
from utils.machine.seeding import make_generator
from utils.runs.job import Job
from utils.sampling.drawing import check_finite, rule_of

MOMENTS = 10  # states that are shown
MOST_STEPS = 64  # of the reverse process, so that the picture costs little whatever T is
MASKED = 0.85  # grey level of a masked token


def unmasking_strip(job: Job, prior: Prior, autoencoder: VQAutoEncoder, sampling: SamplingSettings) -> Tensor:
    """`MOMENTS` states of one ancestral sample, evenly from all masked to none: [2 · MOMENTS,C,H,W] in [0,1], CPU.

    The prior is one that has a mask. First the tokens, a colour per code and grey where masked; then, in the same
    order, the images that come of filling each masked place with its most probable code. Changes nothing about the
    models.

    Raises:
        NotFiniteError: predictions or images are not finite.
    """
    assert prior.mask_id is not None
    steps = min(sampling.sample_steps, MOST_STEPS)
    start = torch.full((1, prior.tokens), prior.mask_id, device=job.device)
    generator = make_generator(job.device, job.seed, "unmasking")
    invalid = torch.zeros((), dtype=torch.int64, device=job.device)
    with evaluating(prior, autoencoder), job.autocast():
        trajectory = diffusion_trajectory(
            prior.logits, start, mask_id=prior.mask_id, steps=steps, rule=rule_of(sampling), generator=generator,
            invalid=invalid,
        )
        states = list(trajectory)
        x = torch.cat([states[number] for number in torch.linspace(0, steps, MOMENTS).round().long().tolist()])
        guess = torch.where(x == prior.mask_id, prior.logits(x).argmax(-1), x)
        images = autoencoder.decode(guess).float().clamp(0, 1)
    check_finite("the prior's predictions", invalid == 0, job.amp_dtype)
    check_finite("decoded images", images.isfinite().all(), job.amp_dtype)
    images = images.cpu()
    return torch.cat([_coloured(x.cpu(), prior.mask_id, autoencoder.latent_size, images.shape), images])


def _coloured(x: Tensor, mask_id: int, latent_size: tuple[int, int], shape: torch.Size) -> Tensor:
    """Tokens [n,N] as pictures of `shape` [n,C,H,W]."""
    _, channels, height, width = shape
    # Hues far apart for neighbouring ids; sines, a third of a turn apart, make the channels.
    hue = x.float() * 2.399963 + 2 * torch.pi / 3 * torch.arange(channels)[:, None, None]
    colour = (0.5 + 0.4 * hue.sin()).where(x != mask_id, MASKED).permute(1, 0, 2)
    h, w = latent_size
    small = colour.reshape(len(x), channels, h, w)
    return small.repeat_interleave(height // h, 2).repeat_interleave(width // w, 3)
