"""Settings that do not fit together, refused before anything is built: one line that names the flag and the fix.

A rule is a function whose parameters are groups of a stage; it holds for every stage that has them all. Ranges of
single values are checked where they are read, by their fields.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection
from importlib.util import find_spec
from typing import Literal

from hparams import launch
from hparams.derived import bound_terms, latent_shape
from hparams.errors import UserError
from hparams.fields import as_text, values_of
from hparams.script import require_open_files
from hparams.settings.experiments import InpaintingSettings, LargerSettings, LikelihoodSettings, NeighbourSettings
from hparams.settings.models import AutoencoderSettings, PriorSettings, VQGANSettings
from hparams.settings.sampling import SamplingSettings
from hparams.settings.stages import AutoencoderSource, RunSettings, Stage
from hparams.settings.training import TrainingSettings

ImageSource = Literal["prior", "latents", "images", "features"]
_GIVEN: dict[str, ImageSource] = {"latents_path": "latents", "fake_images_path": "images", "fake_feats": "features"}
LPIPS_MIN_SIDES = {"alex": 31, "vgg": 16, "squeeze": 17}  # of images, in pixels
_RULES: list[Callable[..., None]] = []


def check(stage: Stage) -> None:
    """UserError unless a resolved stage keeps every rule for its groups."""
    groups = vars(stage) | {"stage": stage}
    for rule in _RULES:
        names = inspect.signature(rule).parameters
        if names.keys() <= groups.keys():
            rule(**{name: groups[name] for name in names})


def _rule(function: Callable[..., None]) -> Callable[..., None]:
    _RULES.append(function)
    return function


@_rule
def _run(run: RunSettings) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", run.device):
        raise UserError(f"--device {run.device}: use auto, cpu, cuda or cuda:N")
    if ":" in run.device and launch.local_processes() > 1 and run.dist_backend != "gloo":  # NCCL wants one for each
        raise UserError(
            f"--device {run.device} is one GPU for {launch.local_processes()} processes: use --device cuda for one "
            "each, or --dist_backend gloo to share it"
        )
    visdom_address(run.visdom_server, run.visdom_port, run.visdom_base_url)
    require_packages(run.sinks)
    require_open_files(run.num_workers)


def require_packages(sinks: Collection[str]) -> None:
    """UserError unless the packages of the sinks that are installed only on demand are there."""
    for name in ("tensorboard", "wandb"):
        if name in sinks and not find_spec(name):
            raise UserError(f"--sinks {name}: its package is missing: python -m pip install {name}, or leave it out")


def visdom_address(server: str, port: int, base_url: str = "/") -> str:
    """Where a visdom server answers, without a slash at its end; UserError if server, port and path make no address."""
    address = f"{server if '://' in server else 'http://' + server}:{port}"
    if not re.fullmatch(r"https?://([^\s/?#@\[\]]*@)?([^\s/?#@:\[\]]+|\[[0-9a-fA-F:.]+\]):\d+", address):
        raise UserError(
            f"--visdom_server {server} --visdom_port {port}: not an address: give them as http://localhost and 8097, "
            "and a path below them by --visdom_base_url"
        )
    path = base_url.strip("/")
    folders = path.split("/") if path else []
    if not all(re.fullmatch(r"[\w.~%!$&'()*+,;=@-]+", folder, re.ASCII) and folder.strip(".") for folder in folders):
        raise UserError(f"--visdom_base_url {base_url}: not the path of an address: give it as /visdom, or / for none")
    return "/".join([address, *folders])


@_rule
def _training(training: TrainingSettings) -> None:
    if training.load_optim and not training.load_step:
        raise UserError("--load_optim needs --load_step: say which step's optimisers to read")
    if training.load_dir and not training.load_step:
        raise UserError("--load_dir needs --load_step: say which step's weights to start from")
    if not re.fullmatch(r"all|[1-9]\d*", training.keep_checkpoints):
        raise UserError(f"--keep_checkpoints {training.keep_checkpoints}: use a whole number from 1 on, or all")


@_rule
def _objective(training: TrainingSettings, prior: PriorSettings) -> None:
    published = (prior.sampler, prior.loss_type, prior.reweighting) == ("absorbing", "reweighted_elbo", "published")
    if published and prior.total_steps == 1:
        raise UserError(
            "--total_steps 1: --reweighting published weighs the last time by 0, so that nothing would be learnt: use "
            "--reweighting paper"
        )


@_rule
def autoencoder_fits(autoencoder: AutoencoderSettings) -> None:
    """UserError unless image size, levels, widths and latent shape fit."""
    a, groups = autoencoder, 32  # of every GroupNorm
    if a.n_channels != 3:
        raise UserError(f"--n_channels {a.n_channels}: images are read as RGB, use --n_channels 3")
    shape = latent_shape(a.img_size, a.ch_mult)
    if a.latent_shape != shape:
        raise UserError(
            f"--latent_shape {as_text(a.latent_shape)} does not fit --img_size {a.img_size} with the {len(a.ch_mult)} "
            f"levels of --ch_mult {as_text(a.ch_mult)}: use --latent_shape {as_text(shape)}"
        )
    if a.nf % groups:
        fix = max(groups, round(a.nf / groups) * groups)
        raise UserError(f"--nf {a.nf} is not a multiple of {groups}, the groups of every normalisation: use --nf {fix}")


@_rule
def _losses(vqgan: VQGANSettings, autoencoder: AutoencoderSettings) -> None:
    side, least = autoencoder.img_size, LPIPS_MIN_SIDES["vgg"]
    # Strided 4x4 convolutions with padding 1 halve (rounding down); the two last, with stride 1, take one pixel each.
    if (side >> vqgan.disc_layers) - 2 < 1:
        deepest = (side // 3).bit_length() - 1
        fix = f"use --disc_layers {deepest} or fewer" if deepest >= 1 else "use images of at least 6 pixels"
        raise UserError(f"--disc_layers {vqgan.disc_layers} leaves nothing of --img_size {side}: {fix}")
    if vqgan.perceptual == "lpips" and side < least:
        problem = f"--perceptual lpips needs images of at least {least} pixels, --img_size is {side}"
        raise UserError(f"{problem}: use --perceptual none")


@_rule
def _length(stage: Stage, prior: PriorSettings, autoencoder: AutoencoderSettings) -> None:
    codes = autoencoder.latent_shape[1] * autoencoder.latent_shape[2]
    if prior.block_size != codes:  # that of a trained prior was its autoencoder's
        is_trained = hasattr(stage, "checkpoint")
        fix = "name the autoencoder that the prior learnt from by --ae_load_dir, or " if is_trained else ""
        raise UserError(
            f"--block_size {prior.block_size} does not fit --latent_shape {as_text(autoencoder.latent_shape)}: "
            f"{fix}use --block_size {codes}"
        )


@_rule
def heads_fit(prior: PriorSettings) -> None:
    """UserError unless the attention heads divide the width."""
    if prior.bert_n_emb % prior.bert_n_head:
        fix = -(-prior.bert_n_emb // prior.bert_n_head) * prior.bert_n_head
        problem = f"--bert_n_head {prior.bert_n_head} does not divide --bert_n_emb {prior.bert_n_emb}"
        raise UserError(f"{problem}: use --bert_n_emb {fix}")


@_rule
def _trained(stage: Stage, source: AutoencoderSource) -> None:
    """The runs of trained models are named, and not written to."""
    images_from, needed = image_source(stage), []
    if images_from in ("prior", "latents"):
        needed.append(("--ae_load_dir", source.ae_load_dir, "VQGAN, such as vqgan_churches"))
    if images_from == "prior" and (checkpoint := vars(stage).get("checkpoint")):
        needed.append(("--load_dir", checkpoint.load_dir, "prior, such as absorbing_churches"))
    for flag, folder, what in needed:
        if not folder:
            raise UserError(f"{flag} is required: name the run folder of the trained {what}")
        if folder == stage.run.log_dir:
            fix = "use another --log_dir, so that the settings of that run are kept"
            raise UserError(f"--log_dir {folder} is also {flag}: {fix}")


def image_source(stage: Stage) -> ImageSource:
    """Where generated images come from; only the first two need trained models. UserError if two flags say it."""
    values = values_of(stage)
    given = [name for name in _GIVEN if values.get(name)]
    if len(given) > 1:
        flags = " and ".join(f"--{name}" for name in given)
        raise UserError(f"{flags} both say what to compare: leave one of them out")
    return _GIVEN[given[0]] if given else "prior"


@_rule
def _sampling_steps(sampling: SamplingSettings, prior: PriorSettings) -> None:
    steps, most = sampling.sample_steps, prior.total_steps
    if steps > most:
        raise UserError(f"--sample_steps {steps} is more than --total_steps {most}: use {most} or fewer")


@_rule
def _larger(
    larger: LargerSettings, sampling: SamplingSettings, prior: PriorSettings, autoencoder: AutoencoderSettings
) -> None:
    if prior.sampler != "absorbing":
        raise UserError(
            f"--sampler {prior.sampler}: larger images need a prior that predicts a code from all those around it, as "
            "windows overlap on every side: use an absorbing prior"
        )
    _ancestral(sampling, "larger images are drawn code by code")
    _, height, width = autoencoder.latent_shape
    shape, side = larger.shape, min(height, width)
    if len(shape) != 2 or shape[0] < height or shape[1] < width:
        raise UserError(
            f"--shape {as_text(shape)}: give height and width in codes, at least {height} {width}, the size of the "
            "training images' codes"
        )
    if larger.stride > side:
        problem = f"--stride {larger.stride} leaves gaps between windows of {height}x{width} codes"
        raise UserError(f"{problem}: use {side} or less")


@_rule
def _inpainting(
    inpainting: InpaintingSettings, sampling: SamplingSettings, prior: PriorSettings, autoencoder: AutoencoderSettings
) -> None:
    if prior.sampler != "absorbing":
        raise UserError(
            f"--sampler {prior.sampler}: what is painted anew has to fit what is kept on every side of it, which only "
            "an absorbing prior sees: use one"
        )
    _ancestral(sampling, "it would draw anew what is to be kept")
    if inpainting.region is None:  # the file of --mask_path says it
        return
    if inpainting.mask_path:
        raise UserError("--region and --mask_path both say what to paint anew: leave one of them out")
    side, told = autoencoder.img_size, f"--region {as_text(inpainting.region)}"
    if len(inpainting.region) != 4 or 0 in inpainting.region[2:]:
        raise UserError(f"{told}: give top, left, height and width in pixels, such as {side // 2} 0 {side // 2} {side}")
    top, left, height, width = inpainting.region
    if top + height > side or left + width > side:
        raise UserError(f"{told} leaves the image, whose sides are {side}: use a smaller region")


def _ancestral(sampling: SamplingSettings, why_not: str) -> None:
    if sampling.sample_type != "diffusion":
        raise UserError(f"--sample_type {sampling.sample_type}: {why_not}: use --sample_type diffusion")


@_rule
def _weights(stage: Stage) -> None:
    """Only networks with trained weights read a file of them."""
    values = values_of(stage)
    for flag, network, without in (
        ("perceptual_weights_file", "perceptual", "none"),
        ("feature_weights", "features", "r64"),
        ("lpips_weights", "distance", "r64"),
    ):
        if values.get(flag) and values.get(network) == without:
            raise UserError(f"--{flag} is not used with --{network} {without}: leave one of them out")


@_rule
def _image_count(stage: Stage) -> None:
    n_samples = values_of(stage).get("n_samples")
    if n_samples and image_source(stage) == "prior":
        check_image_count(stage, n_samples, "--n_samples")


def check_image_count(stage: Stage, images: int, where: str) -> None:
    """UserError unless the images suffice for a covariance, for KID's subsets, and for every image's neighbours."""
    groups = vars(stage)
    kid, prdc = groups.get("kid"), groups.get("prdc")
    if images < 2 and (kid or prdc):
        raise UserError(f"{where} has {images} image, too few to compare: use more images")
    if kid and kid.kid_subsets and kid.kid_subset_size > images:
        raise UserError(
            f"--kid_subset_size {kid.kid_subset_size} is more than the {images} images of {where}: "
            f"use {max(2, images // 2)} or fewer, or --kid_subsets 0 for no KID"
        )
    if prdc and prdc.nearest_k >= images:
        problem = f"--nearest_k {prdc.nearest_k} is not less than the {images} images of {where}"
        raise UserError(f"{problem}: use more images")


@_rule
def _likelihood(likelihood: LikelihoodSettings, prior: PriorSettings, run: RunSettings) -> None:
    if likelihood.train_steps and run.batch_size % launch.processes():
        raise UserError(
            f"--batch_size {run.batch_size}: {launch.processes()} processes cannot share an update of the log-sigma "
            f"head evenly: use a number of processes that divides it, or another --batch_size"
        )
    if likelihood.protocol == "published" and likelihood.bits != 5:
        problem = f"--protocol published counts log 32 per dimension, which is 5 bits, not --bits {likelihood.bits}"
        raise UserError(f"{problem}: leave one of them out")
    most = 2 * bound_terms(likelihood.code_bound, prior.total_steps, prior.block_size)
    if likelihood.elbo_steps > most and prior.sampler == "absorbing":
        bound = f"the {most // 2} terms of --code_bound {likelihood.code_bound}"
        raise UserError(f"--elbo_steps {likelihood.elbo_steps} is more than twice {bound}: use {most} or fewer")


@_rule
def _neighbours(neighbours: NeighbourSettings, autoencoder: AutoencoderSettings) -> None:
    net, side = neighbours.lpips_net, autoencoder.img_size
    if neighbours.distance == "lpips" and side < LPIPS_MIN_SIDES[net]:
        problem = f"--lpips_net {net} needs images of at least {LPIPS_MIN_SIDES[net]} pixels, --img_size is {side}"
        raise UserError(f"{problem}: use --distance r64")
