"""Settings that do not fit together, refused before anything is built: one line that names the flag and the fix.

Each check reads one or two groups. Ranges of single values are checked where they are read, by their fields.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

from hparams import launch
from hparams.errors import UserError
from hparams.experiment_checks import (
    LPIPS_MIN_SIDES,
    check_inpainting,
    check_larger,
    check_likelihood,
    check_neighbours,
)
from hparams.fields import as_text
from hparams.open_files import require_open_files
from hparams.settings.experiments import CheckpointSource, FeatureSettings, InpaintingSettings
from hparams.settings.models import AutoencoderSettings, PriorSettings, VQGANSettings
from hparams.settings.stages import AutoencoderSource, RunSettings, SamplingSettings, Stage
from hparams.settings.training import TrainingSettings

_LONGEST_NAME = 255  # bytes, of most file systems
_GROUPS = 32  # of every GroupNorm


def check(stage: Stage) -> None:
    """Run every check that applies to the groups of a resolved stage.

    Raises:
        UserError: something does not fit.
    """
    groups = vars(stage)
    check_run(stage.run)
    if training := groups.get("training"):
        check_training(training)
    if autoencoder := groups.get("autoencoder"):
        check_autoencoder(autoencoder)
    if prior := groups.get("prior"):
        check_prior(prior, groups["autoencoder"], trained="checkpoint" in groups)
        if training:
            check_objective(prior)
    if vqgan := groups.get("vqgan"):
        check_vqgan(vqgan, groups["autoencoder"])
    if sampling := groups.get("sampling") or groups.get("inpainting"):
        check_sampling(sampling, groups["prior"])
    images_from = image_source(stage)
    if (source := groups.get("source")) and images_from in ("prior", "latents"):
        check_source(source, stage.run)
    if (checkpoint := groups.get("checkpoint")) and images_from == "prior":
        check_checkpoint(checkpoint, stage.run)
    if features := groups.get("features"):
        check_features(features)
    if images_from == "prior" and (drawn := groups.get("sampling") or groups.get("reconstruction")) and drawn.n_samples:
        check_image_count(stage, drawn.n_samples, "--n_samples")
    if likelihood := groups.get("likelihood"):
        check_likelihood(likelihood, groups["prior"], stage.run.batch_size)
    if neighbours := groups.get("neighbours"):
        check_neighbours(neighbours, groups["autoencoder"])
    if larger := groups.get("larger"):
        check_larger(larger, groups["prior"], groups["autoencoder"])
    if inpainting := groups.get("inpainting"):
        check_inpainting(inpainting, groups["prior"], groups["autoencoder"])


def check_network(stage: Stage) -> None:
    """The checks that the network which a stage trains needs, and no others.

    Raises:
        UserError: something does not fit.
    """
    if prior := vars(stage).get("prior"):
        check_heads(prior)
    else:
        check_autoencoder(vars(stage)["autoencoder"])


def run_folder(flag: str, name: str) -> str:
    """A run's name below ``logs/`` in its shortest spelling.

    Raises:
        UserError: the name is empty or would leave ``logs/``.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or name.startswith("~") or not name.isprintable():
        raise UserError(f"{flag} {name!r}: give a name below logs/, without a leading / and without ..")
    if any(len(part.encode("utf-8", "surrogatepass")) > _LONGEST_NAME for part in path.parts):
        raise UserError(f"{flag} {name[:40]}…: too long, use names of at most {_LONGEST_NAME} bytes")
    return str(path)


def require_run(flag: str, logs: Path, folder: str, by: str = "") -> None:
    """UserError unless the run that a flag names is there; it says what to name instead, and `by` which other flag."""
    if (logs / folder).is_dir():
        return
    require_possible_folder(logs / folder)
    below = PurePosixPath(folder)
    if not logs.is_dir():
        fix = f"there is no {logs}/ here, run this in the folder that has it"
    elif below.parts[:1] == (logs.name,) and (logs / below.relative_to(logs.name)).is_dir():
        fix = f"leave out {logs.name}/, and name {below.relative_to(logs.name)}{by}"
    else:
        fix = f"name a folder under {logs}/{by}"
    raise UserError(f"{flag}: there is no run folder {logs / folder}; {fix}")


def require_possible_folder(folder: Path) -> None:
    """UserError if a folder, or one above it, is a file, or a link whose target is missing: it cannot be made."""
    for place in (folder, *folder.parents):
        if place.is_file():
            raise UserError(f"{place} is a file, where a folder belongs: move it away")
        if place.is_symlink() and not place.exists():
            raise UserError(
                f"{place} is a link to {place.readlink()}, which is not there: make that folder, or the link anew"
            )


def data_path_of_a_run(name: str, path: str, file: Path, logs: Path) -> None:
    """UserError unless a path that another run's settings `file` gives stays in this folder, and out of ``logs/``.

    In ``logs/`` may lie whatever came with the run; variables and ~ may lead anywhere.
    """
    pure = PurePosixPath(path)
    leaves = pure.is_absolute() or ".." in pure.parts or path.startswith("~") or "$" in path
    if leaves or pure.is_relative_to(logs):
        raise UserError(
            f"{file}: {name} {path!r} is not followed, as it leads out of this folder or into {logs}/: if the data are "
            f"there, say so by --{name}"
        )


def latent_shape(img_size: int, ch_mult: tuple[int, ...]) -> tuple[int, int, int]:
    """Shape (1, h, w) of one image's codes: each level but the first halves the image.

    Raises:
        UserError: the image cannot be halved that often.
    """
    factor = 2 ** (len(ch_mult) - 1)
    if img_size % factor:
        raise UserError(
            f"--img_size {img_size} cannot be halved {len(ch_mult) - 1} times, as the {len(ch_mult)} levels of "
            f"--ch_mult {as_text(ch_mult)} need: use a multiple of {factor}"
        )
    return (1, img_size // factor, img_size // factor)


def check_run(run: RunSettings) -> None:
    """The device is in PyTorch's notation, and not one GPU for NCCL's processes; a visdom server has an address.

    Sinks have their packages, and the system lets this process open as many files as its workers take.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", run.device):
        raise UserError(f"--device {run.device}: use auto, cpu, cuda or cuda:N")
    if ":" in run.device and launch.local_processes() > 1 and run.dist_backend != "gloo":
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
    """Where a visdom server answers, if one runs there: without a slash at its end, whatever slashes `base_url` has.

    Raises:
        UserError: server, port and path make no address.
    """
    address = f"{server if '://' in server else 'http://' + server}:{port}"
    try:
        parts = urlsplit(address)
        whole = parts.hostname is not None and parts.port == port and parts.scheme in {"http", "https"}
    except ValueError:
        whole = False
    if not whole or parts.path or parts.query or parts.fragment or re.search(r"\s", address):
        raise UserError(
            f"--visdom_server {server} --visdom_port {port}: not an address: give them as http://localhost and 8097, "
            "and a path below them by --visdom_base_url"
        )
    folders = base_url.strip("/").split("/") if base_url.strip("/") else []
    if not all(re.fullmatch(r"[\w.~%!$&'()*+,;=@-]+", folder, re.ASCII) and folder.strip(".") for folder in folders):
        raise UserError(f"--visdom_base_url {base_url}: not the path of an address: give it as /visdom, or / for none")
    return "/".join([address, *folders])


def check_training(training: TrainingSettings) -> None:
    """Flags about reloading come together, and at least one checkpoint is kept."""
    if not re.fullmatch(r"all|[1-9]\d*", training.keep_checkpoints):
        raise UserError(f"--keep_checkpoints {training.keep_checkpoints}: use a whole number from 1 on, or all")
    if training.load_step == 0:
        if training.load_optim:
            raise UserError("--load_optim needs --load_step: say which step's optimisers to read")
        if training.load_dir:
            raise UserError("--load_dir needs --load_step: say which step's weights to start from")


def check_autoencoder(autoencoder: AutoencoderSettings) -> None:
    """Image size, levels, widths and latent shape fit."""
    a = autoencoder
    if a.n_channels != 3:
        raise UserError(f"--n_channels {a.n_channels}: images are read as RGB, use --n_channels 3")
    shape = latent_shape(a.img_size, a.ch_mult)
    if a.latent_shape != shape:
        raise UserError(
            f"--latent_shape {as_text(a.latent_shape)} does not fit --img_size {a.img_size} with the {len(a.ch_mult)} "
            f"levels of --ch_mult {as_text(a.ch_mult)}: use --latent_shape {as_text(shape)}"
        )
    if a.nf % _GROUPS:
        raise UserError(
            f"--nf {a.nf} is not a multiple of {_GROUPS}, the groups of every normalisation: "
            f"use --nf {max(_GROUPS, round(a.nf / _GROUPS) * _GROUPS)}"
        )


def check_vqgan(vqgan: VQGANSettings, autoencoder: AutoencoderSettings) -> None:
    """Discriminator and perceptual network accept images of this size."""
    side = autoencoder.img_size
    # Strided 4x4 convolutions with padding 1 halve (rounding down); the two last, with stride 1, take one pixel each.
    if (side >> vqgan.disc_layers) - 2 < 1:
        deepest = (side // 3).bit_length() - 1
        fix = f"use --disc_layers {deepest} or fewer" if deepest >= 1 else "use images of at least 6 pixels"
        raise UserError(f"--disc_layers {vqgan.disc_layers} leaves nothing of --img_size {side}: {fix}")
    if vqgan.perceptual == "lpips" and side < LPIPS_MIN_SIDES["vgg"]:
        raise UserError(
            f"--perceptual lpips needs images of at least {LPIPS_MIN_SIDES['vgg']} pixels, --img_size is {side}: "
            "use --perceptual none"
        )
    if vqgan.perceptual_weights_file and vqgan.perceptual == "none":
        raise UserError("--perceptual_weights_file is not used with --perceptual none: leave one of them out")


def check_prior(prior: PriorSettings, autoencoder: AutoencoderSettings, *, trained: bool) -> None:
    """The Transformer's length and heads fit; the length of a `trained` one was its autoencoder's."""
    codes = code_count(autoencoder)
    if prior.block_size != codes:
        fix = "name the autoencoder that the prior learnt from by --ae_load_dir, or " if trained else ""
        raise UserError(
            f"--block_size {prior.block_size} does not fit --latent_shape {as_text(autoencoder.latent_shape)}: "
            f"{fix}use --block_size {codes}"
        )
    check_heads(prior)


def check_objective(prior: PriorSettings) -> None:
    """Some time has a weight in the objective."""
    published = (prior.sampler, prior.loss_type, prior.reweighting) == ("absorbing", "reweighted_elbo", "published")
    if published and prior.total_steps == 1:
        raise UserError(
            "--total_steps 1: --reweighting published weighs the last time by 0, so that nothing would be learnt: use "
            "--reweighting paper"
        )


def check_heads(prior: PriorSettings) -> None:
    """The attention heads divide the width."""
    if prior.bert_n_emb % prior.bert_n_head:
        raise UserError(
            f"--bert_n_head {prior.bert_n_head} does not divide --bert_n_emb {prior.bert_n_emb}: "
            f"use --bert_n_emb {-(-prior.bert_n_emb // prior.bert_n_head) * prior.bert_n_head}"
        )


def code_count(autoencoder: AutoencoderSettings) -> int:
    """Codes per image, N."""
    _, height, width = autoencoder.latent_shape
    return height * width


def check_sampling(sampling: SamplingSettings | InpaintingSettings, prior: PriorSettings) -> None:
    """The reverse process has no more steps than the forward one."""
    if sampling.sample_steps > prior.total_steps:
        raise UserError(
            f"--sample_steps {sampling.sample_steps} is more than --total_steps {prior.total_steps}: "
            f"use {prior.total_steps} or fewer"
        )


def check_source(source: AutoencoderSource, run: RunSettings) -> None:
    """An autoencoder is named, and its run folder is not written to."""
    if not source.ae_load_dir:
        raise UserError("--ae_load_dir is required: name the run folder of the trained VQGAN, such as vqgan_churches")
    _check_apart("--ae_load_dir", source.ae_load_dir, run)


def check_checkpoint(checkpoint: CheckpointSource, run: RunSettings) -> None:
    """A prior is named, and its run folder is not written to."""
    if not checkpoint.load_dir:
        raise UserError("--load_dir is required: name the run folder of the trained prior, such as absorbing_churches")
    _check_apart("--load_dir", checkpoint.load_dir, run)


def check_features(features: FeatureSettings) -> None:
    """Only networks with trained weights read a file of them."""
    if features.features == "r64" and features.feature_weights:
        raise UserError("--feature_weights is not used with --features r64, whose weights are fixed: leave it out")


def image_source(stage: Stage) -> Literal["prior", "latents", "images", "features"]:
    """Where an experiment's generated images come from; only the first two need trained models."""
    groups = vars(stage)
    flags: dict[Literal["latents", "images", "features"], tuple[str, str | None]] = {}
    if generated := groups.get("generated"):
        flags["latents"] = ("--latents_path", generated.latents_path)
        flags["images"] = ("--fake_images_path", generated.fake_images_path)
    if prdc := groups.get("prdc"):
        flags["features"] = ("--fake_feats", prdc.fake_feats)
    given = {source: flag for source, (flag, path) in flags.items() if path}
    if len(given) > 1:
        raise UserError(f"{' and '.join(given.values())} both say what to compare: leave one of them out")
    return next(iter(given), "prior")


def check_image_count(stage: Stage, images: int, where: str) -> None:
    """There are enough images for a covariance, for KID's subsets, and for every image's neighbours."""
    groups = vars(stage)
    if images < 2 and ("kid" in groups or "prdc" in groups):
        raise UserError(f"{where} has {images} image, too few to compare: use more images")
    if (kid := groups.get("kid")) and kid.kid_subsets and kid.kid_subset_size > images:
        raise UserError(
            f"--kid_subset_size {kid.kid_subset_size} is more than the {images} images of {where}: "
            f"use {max(2, images // 2)} or fewer, or --kid_subsets 0 for no KID"
        )
    if (prdc := groups.get("prdc")) and prdc.nearest_k >= images:
        raise UserError(
            f"--nearest_k {prdc.nearest_k} is not less than the {images} images of {where}: use more images"
        )


def _check_apart(flag: str, folder: str, run: RunSettings) -> None:
    if folder == run.log_dir:
        raise UserError(
            f"--log_dir {run.log_dir} is also {flag}: use another --log_dir, so that the settings of that run are kept"
        )
