"""Settings of experiments that do not fit together; see `hparams.checks`."""

from __future__ import annotations

from hparams import launch
from hparams.errors import UserError
from hparams.fields import as_text
from hparams.settings.experiments import InpaintingSettings, LargerSettings, LikelihoodSettings, NeighbourSettings
from hparams.settings.models import AutoencoderSettings, PriorSettings

LPIPS_MIN_SIDES = {"alex": 31, "vgg": 16, "squeeze": 17}  # of images, in pixels


def check_likelihood(likelihood: LikelihoodSettings, prior: PriorSettings, batch_size: int) -> None:
    """The published protocol is one of 5 bits, a bound has enough terms to evaluate, processes share updates evenly."""
    if likelihood.train_steps and batch_size % launch.processes():
        raise UserError(
            f"--batch_size {batch_size}: {launch.processes()} processes cannot share an update of the log-sigma head "
            f"of {batch_size} images evenly: use a number of processes that divides it, or another --batch_size"
        )
    if likelihood.protocol == "published" and likelihood.bits != 5:
        raise UserError(
            f"--protocol published counts log 32 per dimension, which is 5 bits, not --bits {likelihood.bits}: "
            "leave one of them out"
        )
    terms = bound_terms(likelihood.code_bound, prior.total_steps, prior.block_size)
    if likelihood.elbo_steps > 2 * terms and prior.sampler == "absorbing":
        raise UserError(
            f"--elbo_steps {likelihood.elbo_steps} is more than twice the {terms} terms of --code_bound "
            f"{likelihood.code_bound}: use {2 * terms} or fewer"
        )


def bound_terms(code_bound: str, total_steps: int, block_size: int) -> int:
    """How many levels of masking a bound on the codes sums over."""
    return total_steps if code_bound == "t_step" else block_size


def check_neighbours(neighbours: NeighbourSettings, autoencoder: AutoencoderSettings) -> None:
    """The network of LPIPS takes images of this size, and weights are named for a network that reads them."""
    if neighbours.distance != "lpips":
        if neighbours.lpips_weights:
            raise UserError(
                f"--lpips_weights is not used with --distance {neighbours.distance}: leave it out, or use "
                "--distance lpips"
            )
        return
    least = LPIPS_MIN_SIDES[neighbours.lpips_net]
    if autoencoder.img_size < least:
        raise UserError(
            f"--lpips_net {neighbours.lpips_net} needs images of at least {least} pixels, --img_size is "
            f"{autoencoder.img_size}: use --distance r64"
        )


def check_larger(larger: LargerSettings, prior: PriorSettings, autoencoder: AutoencoderSettings) -> None:
    """The prior sees both sides of a code, the grid is at least as large as its own, and windows leave no gap."""
    if prior.sampler != "absorbing":
        raise UserError(
            f"--sampler {prior.sampler}: larger images need a prior that predicts a code from all those around it, as "
            "windows overlap on every side: use an absorbing prior"
        )
    _, height, width = autoencoder.latent_shape
    if len(larger.shape) != 2 or larger.shape[0] < height or larger.shape[1] < width:
        raise UserError(
            f"--shape {as_text(larger.shape)}: give height and width in codes, at least {height} {width}, the size of "
            "the training images' codes"
        )
    if larger.stride > min(height, width):
        raise UserError(
            f"--stride {larger.stride} leaves gaps between windows of {height}x{width} codes: "
            f"use {min(height, width)} or less"
        )


def check_inpainting(inpainting: InpaintingSettings, prior: PriorSettings, autoencoder: AutoencoderSettings) -> None:
    """The prior sees what is kept on every side, and one region is given, which lies in the image."""
    if prior.sampler != "absorbing":
        raise UserError(
            f"--sampler {prior.sampler}: what is painted anew has to fit what is kept on every side of it, which only "
            "an absorbing prior sees: use one"
        )
    if inpainting.region is None:  # the file of --mask_path says it
        return
    if inpainting.mask_path:
        raise UserError("--region and --mask_path both say what to paint anew: leave one of them out")
    side = autoencoder.img_size
    told = f"--region {as_text(inpainting.region)}"
    if len(inpainting.region) != 4 or 0 in inpainting.region[2:]:
        raise UserError(f"{told}: give top, left, height and width in pixels, such as {side // 2} 0 {side // 2} {side}")
    top, left, height, width = inpainting.region
    if top + height > side or left + width > side:
        raise UserError(f"{told} leaves the image, whose sides are {side}: use a smaller region")
