"""Codes and images drawn from a trained prior."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from hparams.errors import NotFiniteError
from hparams.settings.stages import SamplingSettings
from models.prior.prior import Codes, Prior
from models.sampling.categorical import Rule
from models.sampling.rounds import Drawing
from models.vqgan.autoencoder import VQAutoEncoder
from utils.data.pictures import to_uint8
from utils.machine.compiling import captures_graphs
from utils.machine.cuda_graphs import Captured
from utils.machine.devices import autocast, precision_name
from utils.machine.evaluation import evaluating
from utils.machine.files import content_key
from utils.machine.seeding import make_generator
from utils.pretrained.trained_models import TrainedModels
from utils.runs.job import Job
from utils.runs.results import Value
from utils.runs.shards import Rows, Shards

DECODE_BATCH = 32  # images that go through the decoder together: its activations are far larger than the prior's


@dataclass(frozen=True)
class SampledCodes:
    """Codes drawn for some images.

    Attributes:
        ids: [n,N].
        key: a name of all that determines them, but for their number.
    """

    ids: Rows
    key: str


def sampling_conditions(sampling: SamplingSettings, sampler: str) -> dict[str, Value]:
    """What a result from drawn images depends on; an autoregressive prior has no steps.

    Beside temperature and steps, each setting that is not at its default, so that no result takes another's place.
    """
    steps: dict[str, Value] = {"sample_steps": sampling.sample_steps} if sampler == "absorbing" else {}
    always = ("n_samples", "temp", "sample_steps")
    others = {f.name: (getattr(sampling, f.name), f.default) for f in fields(sampling) if f.name not in always}
    changed: dict[str, Value] = {name: value for name, (value, default) in others.items() if value != default}
    return {"temp": sampling.temp, **steps, **changed}


def sampled_codes(
    job: Job, models: TrainedModels, sampling: SamplingSettings, starts: Tensor | None = None
) -> SampledCodes:
    """`n_samples` codes from the prior, kept in the run folder under all that determines them.

    An interrupted sampling goes on where it stopped, and more samples than before extend those that are there. starts:
    what is given of each image; see `drawn_ids`.
    """
    options = asdict(replace(sampling, n_samples=0))
    made_from = [*models.prior_key, options, job.seed, job.amp_dtype, *([] if starts is None else [starts])]
    key = content_key("samples 2", *made_from)
    ids = Shards(job.folder.samples / key).fill(
        job,
        sampling.n_samples,
        np.empty(models.prior.tokens, ids_dtype(models.autoencoder.quantize.size)),
        lambda indices, _: drawn_ids(job, models.prior, sampling, indices.tolist(), starts),
        what="sampling",
        size=job.batch_size,
    )
    return SampledCodes(ids, key)


def ids_dtype(codebook_size: int) -> np.dtype:
    """The smallest type for codes, of those that every library reads."""
    return np.min_scalar_type(codebook_size - 1) if codebook_size <= 2**16 else np.dtype(np.int32)


def drawn_ids(
    job: Job, prior: Prior, sampling: SamplingSettings, indices: Sequence[int], starts: Tensor | None = None
) -> Iterator[Tensor]:
    """Ids of the images with these indices, in their order, [b,N] int64 on the prior's device.

    b = `job.batch_size` but for a smaller last batch. An image is a function of weights, sampling settings, seed and
    index, whatever is drawn beside it, but for what the size of a batch does to the network's rounding. starts: what an
    absorbing prior is given of each image, [n_samples,N] int64, with its mask id where it is to draw.

    Raises:
        NotFiniteError: the prior's predictions for a batch are not finite; the batch is not given.
    """
    generators = (make_generator("cpu", job.seed, "samples", index) for index in indices)
    invalid = torch.zeros((), dtype=torch.int64, device=job.device)
    drawing = Drawing(
        job.batch_size,
        Rule(sampling.temp),
        steps=sampling.sample_steps,
        sampler=sampling.sample_type,
        n=len(indices),
        wrap=Captured if captures_graphs(job.compile, job.device) else None,
        invalid=invalid,
    )
    samples = prior.samples(generators, drawing, None if starts is None else Codes(starts[list(indices)]))
    while True:
        with evaluating(prior), job.autocast():
            batch = list(itertools.islice(samples, job.batch_size))
        if not batch:
            return
        require_finite_draws(invalid, job.amp_dtype)
        yield torch.stack(batch)


def decoded(job: Job, autoencoder: VQAutoEncoder, ids: np.ndarray) -> Tensor:
    """Codes [b,N] → images [b,C,H,W] uint8 on the device, a few at a time.

    Raises:
        NotFiniteError: pixels are not finite.
    """
    return to_uint8(decode_images(autoencoder, torch.from_numpy(ids.astype(np.int64)).to(job.device), job.amp_dtype))


def decode_images(autoencoder: VQAutoEncoder, ids: Tensor, amp_dtype: torch.dtype | None) -> Tensor:
    """ids [b,N] → images [b,C,H,W] float32 in [0,1], a few at a time.

    Raises:
        NotFiniteError: pixels are not finite.
    """
    with evaluating(autoencoder), autocast(ids.device, amp_dtype):
        images = torch.cat([autoencoder.decode(part) for part in ids.split(DECODE_BATCH)])
    return require_finite_images(images, amp_dtype)


def draw_images(job: Job, prior: Prior, autoencoder: VQAutoEncoder, sampling: SamplingSettings) -> Tensor:
    """`n_samples` images, in their order, on the CPU of every process: uint8 [n_samples,C,H,W]. Each draws its share.

    Raises:
        NotFiniteError: on all processes, if predictions or images of one are not finite.
    """
    ranks, n = job.ranks, sampling.n_samples
    own: list[Tensor] = []
    problem = ""
    try:
        for ids in drawn_ids(job, prior, sampling, ranks.share(n)):
            own += to_uint8(decode_images(autoencoder, ids, job.amp_dtype)).cpu()
    except NotFiniteError as error:
        problem = str(error)
    if problems := list(filter(None, ranks.gather_objects(problem))):
        raise NotFiniteError(problems[0])
    shares = ranks.gather_objects(own)
    return torch.stack([shares[index % ranks.count][index // ranks.count] for index in range(n)])


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
