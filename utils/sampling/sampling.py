"""Drawing images from a prior, batch by batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from hparams.errors import NotFiniteError
from hparams.settings.sampling import SamplingSettings
from hparams.settings.stages import RunSettings
from models.parts import as_it_is
from models.prior.absorbing import AbsorbingDiffusion
from models.vqgan.autoencoder import VQAutoEncoder
from utils.data.pictures import to_uint8
from utils.machine.compiling import captures_graphs
from utils.machine.cuda_graphs import Captured
from utils.machine.devices import autocast, precision_name
from utils.machine.distributed import ALONE, Ranks
from utils.machine.evaluation import evaluating
from utils.machine.progress import Progress
from utils.machine.seeding import make_generator
from utils.pretrained.building import Prior
from utils.runs.results import Value
from utils.runs.shared_batches import in_order, own_indices

DECODE_BATCH = 32  # images that go through the decoder together: its activations are far larger than the prior's


def sampling_conditions(sampling: SamplingSettings, sampler: str) -> dict[str, Value]:
    """What a result from drawn images depends on; an autoregressive prior has no steps.

    Beside temperature and steps, each setting that is not at its default, so that no result takes another's place.
    """
    steps: dict[str, Value] = {"sample_steps": sampling.sample_steps} if sampler == "absorbing" else {}
    always = ("n_samples", "temp", "sample_steps")
    others = {f.name: (getattr(sampling, f.name), f.default) for f in fields(sampling) if f.name not in always}
    changed: dict[str, Value] = {name: value for name, (value, default) in others.items() if value != default}
    return {"temp": sampling.temp, **steps, **changed}


def id_batches(
    prior: Prior,
    sampling: SamplingSettings,
    run: RunSettings,
    amp_dtype: torch.dtype | None,
    indices: Sequence[int] | None = None,
    starts: Tensor | None = None,
) -> Iterator[Tensor]:
    """Ids of the images with these `indices` (None: 0..n_samples-1), in their order, [b,N] int64 on the prior's device.

    b = `batch_size` but for a smaller last batch. An image is a function of weights, sampling settings, seed and index,
    whatever is drawn beside it, but for what the size of a batch does to the network's rounding. So range(done,
    n_samples) goes on with an interrupted sampling, and `own_indices` are one process's share. starts: what an
    absorbing prior is given of each image, [n_samples,N] int64, with its mask id where it is to draw.

    Raises:
        NotFiniteError: the prior's predictions for a batch are not finite; the batch is not given.
    """
    indices = range(sampling.n_samples) if indices is None else indices
    generators = (make_generator("cpu", run.seed, "samples", index) for index in indices)
    device = next(prior.parameters()).device
    wrap = Captured if captures_graphs(run.compile, device) else as_it_is
    invalid = torch.zeros((), dtype=torch.int64, device=device)
    if isinstance(prior, AbsorbingDiffusion):
        samples = prior.samples(
            generators,
            batch_size=run.batch_size,
            temp=sampling.temp,
            sample_steps=sampling.sample_steps,
            sample_type=sampling.sample_type,
            starts=None if starts is None else starts[list(indices)],
            n=len(indices),
            wrap=wrap,
            invalid=invalid,
        )
    else:
        samples = prior.samples(generators, batch_size=run.batch_size, temp=sampling.temp, wrap=wrap, invalid=invalid)
    while True:
        with evaluating(prior), autocast(device, amp_dtype):
            batch = list(itertools.islice(samples, run.batch_size))
        if not batch:
            return
        require_finite_draws(invalid, amp_dtype)
        yield torch.stack(batch)


def image_batches(
    prior: Prior,
    autoencoder: VQAutoEncoder,
    sampling: SamplingSettings,
    run: RunSettings,
    amp_dtype: torch.dtype | None,
    indices: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """The images of `id_batches`, decoded: [b,C,H,W] float32 in [0,1]."""
    for ids in id_batches(prior, sampling, run, amp_dtype, indices):
        yield decode_images(autoencoder, ids, amp_dtype)


def decode_images(autoencoder: VQAutoEncoder, ids: Tensor, amp_dtype: torch.dtype | None) -> Tensor:
    """ids [b,N] → images [b,C,H,W] float32 in [0,1], a few at a time.

    Raises:
        NotFiniteError: pixels are not finite.
    """
    with evaluating(autoencoder), autocast(ids.device, amp_dtype):
        images = torch.cat([autoencoder.decode(part) for part in ids.split(DECODE_BATCH)])
    return require_finite_images(images, amp_dtype)


def batch_for_all(n: int, run: RunSettings, ranks: Ranks) -> int:
    """Size of the batches in which the `ranks` share n images: `batch_size`, or less, so that all have some."""
    return min(run.batch_size, -(-n // ranks.count))


def shared_decoding(
    autoencoder: VQAutoEncoder, ids: np.ndarray, run: RunSettings, amp_dtype: torch.dtype | None, ranks: Ranks
) -> Iterator[Tensor]:
    """Images of codes ids [n,N], in their order, some at a time on every one of the `ranks`: [b,C,H,W] in [0,1].

    Each decodes its share. A bar shows how many the caller is done with.
    """
    n, device = len(ids), next(autoencoder.parameters()).device
    size = batch_for_all(n, run, ranks)
    mine = own_indices(range(n), size, ranks)
    parts = (torch.from_numpy(ids[mine[first : first + size]].astype(np.int64)) for first in range(0, len(mine), size))
    own = ((decode_images(autoencoder, part.to(device), amp_dtype),) for part in parts)
    none = torch.empty((0, *autoencoder.image_shape), device=device)
    with Progress("decoding", n, "image", quiet=run.quiet) as progress:
        for (images,) in in_order(own, n, size, [none], ranks):
            yield images
            progress.update(len(images))


def decode_all(
    autoencoder: VQAutoEncoder, ids: np.ndarray, run: RunSettings, amp_dtype: torch.dtype | None, ranks: Ranks
) -> Tensor:
    """All images of `shared_decoding` at once, on the CPU: uint8 [n,C,H,W]."""
    return torch.cat([to_uint8(images).cpu() for images in shared_decoding(autoencoder, ids, run, amp_dtype, ranks)])


def draw_images(
    prior: Prior,
    autoencoder: VQAutoEncoder,
    sampling: SamplingSettings,
    run: RunSettings,
    amp_dtype: torch.dtype | None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """All images at once, in their order, on the CPU of every one of the `ranks`: [n_samples,C,H,W].

    Each draws its share. An image is the same with any number of processes, but for rounding.

    Raises:
        NotFiniteError: on all of the `ranks`, if predictions or images of one are not finite.
    """
    n, device = sampling.n_samples, next(autoencoder.parameters()).device
    size = batch_for_all(n, run, ranks)
    mine, own, problem = own_indices(range(n), size, ranks).tolist(), [], ""
    try:
        own = [(images,) for images in image_batches(prior, autoencoder, sampling, run, amp_dtype, mine)]
    except NotFiniteError as error:
        problem = str(error)
    if problems := list(filter(None, ranks.gather_objects(problem))):
        raise NotFiniteError(problems[0])
    none = torch.empty((0, *autoencoder.image_shape), device=device)
    return torch.cat([images.cpu() for (images,) in in_order(own, n, size, [none], ranks)])


def require_finite_draws(invalid: Tensor, amp_dtype: torch.dtype | None) -> None:
    """Wait for `invalid`, which counted the draws from logits that are not finite.

    Raises:
        NotFiniteError: there are some.
    """
    if invalid:
        raise NotFiniteError(_not_finite("the prior's predictions", amp_dtype))


def require_finite_images(images: Tensor, amp_dtype: torch.dtype | None) -> Tensor:
    """Decoded images of any shape, once the device has computed them.

    Raises:
        NotFiniteError: pixels are not finite.
    """
    if not images.isfinite().all():
        raise NotFiniteError(_not_finite("decoded images", amp_dtype))
    return images


def _not_finite(what: str, amp_dtype: torch.dtype | None) -> str:
    if amp_dtype is None:
        advice = "take the weights of another step"
    elif amp_dtype is torch.float16:
        advice = "use --no_amp, or --amp_dtype bfloat16"
    else:
        advice = "use --no_amp"
    return f"{what} are not finite in {precision_name(amp_dtype)}: {advice}"
