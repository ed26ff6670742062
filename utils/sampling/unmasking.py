"""Pictures of one sample on its way from all masked to none."""

from __future__ import annotations

import torch
from torch import Tensor

from hparams.settings.sampling import SamplingSettings
from hparams.settings.stages import RunSettings
from models.prior.absorbing import AbsorbingDiffusion
from models.sampling.samplers import diffusion_trajectory
from models.vqgan.autoencoder import VQAutoEncoder
from utils.machine.devices import autocast
from utils.machine.evaluation import evaluating
from utils.machine.seeding import make_generator
from utils.sampling.sampling import require_finite_draws, require_finite_images

MOMENTS = 10  # states that are shown
MOST_STEPS = 64  # of the reverse process, so that the picture costs little whatever T is
MASKED = 0.85  # grey level of a masked token


def unmasking_strip(
    prior: AbsorbingDiffusion,
    autoencoder: VQAutoEncoder,
    sampling: SamplingSettings,
    run: RunSettings,
    amp_dtype: torch.dtype | None,
) -> Tensor:
    """`MOMENTS` states of one ancestral sample, evenly from all masked to none: [2 · MOMENTS,C,H,W] in [0,1], CPU.

    First the tokens, a colour per code and grey where masked; then, in the same order, the images that come of filling
    each masked place with its most probable code. Changes nothing about the models.

    Raises:
        NotFiniteError: predictions or images are not finite.
    """
    device = next(prior.parameters()).device
    steps = min(sampling.sample_steps or prior.total_steps, MOST_STEPS)
    start = torch.full((1, prior.tokens), prior.mask_id, device=device)
    generator = make_generator(device, run.seed, "unmasking")
    invalid = torch.zeros((), dtype=torch.int64, device=device)
    with (
        evaluating(prior, autoencoder),
        autocast(device, amp_dtype),
    ):
        states = list(
            diffusion_trajectory(
                prior.logits,
                start,
                mask_id=prior.mask_id,
                steps=steps,
                temp=sampling.temp,
                generator=generator,
                invalid=invalid,
            )
        )
        shown = torch.linspace(0, steps, MOMENTS).round().long().tolist()
        x = torch.cat([states[number] for number in shown])
        guess = torch.where(x == prior.mask_id, prior.logits(x).argmax(-1), x)
        images = autoencoder.decode(guess).float().clamp(0, 1)
    require_finite_draws(invalid, amp_dtype)
    images = require_finite_images(images, amp_dtype).cpu()
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
