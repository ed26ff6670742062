"""Codes and images drawn from a trained prior."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace

import numpy as np
import torch
from torch import Tensor

from hparams.errors import NotFiniteError
from hparams.settings.sampling import SamplingSettings
from models.prior.prior import Codes, Prior
from models.sampling.categorical import Rule
from models.sampling.rounds import Drawing
from models.vqgan.autoencoder import VQAutoEncoder
from utils.data.pictures import to_uint8
from utils.machine.compiling import captures_graphs
from utils.machine.cuda_graphs import Captured
from utils.machine.devices import precision_name
from utils.machine.evaluation import evaluating
from utils.machine.files import content_key
from utils.machine.seeding import make_generator
from utils.pretrained.trained_models import TrainedModels
from utils.runs.job import Job
from utils.runs.results import Value
from utils.runs.shards import Rows, Shards

DECODE_BATCH = 32  # images that go through the decoder together: its activations are far larger than the prior's


def sampling_conditions(sampling: SamplingSettings, sampler: str) -> dict[str, Value]:
    """What a result from drawn images depends on; an autoregressive prior has no steps.

    Beside temperature and steps, each setting that is not at its default, so that no result takes another's place.
    """
    steps = {"sample_steps": sampling.sample_steps} if sampler == "absorbing" else {}
    others = [f for f in fields(sampling) if f.name not in ("n_samples", "temp", "sample_steps")]
    changed = {f.name: value for f in others if (value := getattr(sampling, f.name)) != f.default}
    return {"temp": sampling.temp, **steps, **changed}


def rule_of(sampling: SamplingSettings) -> Rule:
    """What is drawn where a token is due."""
    return Rule(sampling.temp)


def sampled_codes(
    job: Job, models: TrainedModels, sampling: SamplingSettings, starts: Tensor | None = None
) -> tuple[Rows, str]:
    """Codes [n_samples,N] from the prior, kept in the run folder, and a name of all that determines them but for n.

    An interrupted sampling goes on where it stopped, and more samples than before extend those that are there. starts:
    what is given of each image; see `drawn_ids`.
    """

    def draw(indices: np.ndarray, _: object) -> Iterator[Tensor]:
        return drawn_ids(job, models.prior, sampling, indices.tolist(), starts)

    options = asdict(replace(sampling, n_samples=0))
    made_from = [*models.prior_key, options, job.seed, job.amp_dtype, *([] if starts is None else [starts])]
    key = content_key("samples 2", *made_from)
    like = np.empty(models.prior.tokens, ids_dtype(models.autoencoder.quantize.size))
    shards = Shards(job.folder.samples / key)
    return shards.fill(job, sampling.n_samples, like, draw, what="sampling", size=job.batch_size), key


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
        job.batch_size, rule_of(sampling), steps=sampling.sample_steps, sampler=sampling.sample_type,
        n=len(indices), wrap=Captured if captures_graphs(job.compile, job.device) else None, invalid=invalid,
    )
    samples = prior.samples(generators, drawing, None if starts is None else Codes(starts[list(indices)]))
    while True:
        with evaluating(prior), job.autocast():
            batch = list(itertools.islice(samples, job.batch_size))
        if not batch:
            return
        check_finite("the prior's predictions", invalid == 0, job.amp_dtype)
        yield torch.stack(batch)


def decoded(
    job: Job, autoencoder: VQAutoEncoder, ids: np.ndarray | Tensor, size: tuple[int, int] | None = None
) -> Tensor:
    """Codes [b,N] → images [b,C,H,W] uint8 on the device, a few at a time. NotFiniteError: pixels are not finite.

    size: height and width of the codes, if not the training ones.
    """
    codes = ids if isinstance(ids, Tensor) else torch.from_numpy(ids.astype(np.int64)).to(job.device)
    with evaluating(autoencoder), job.autocast():
        images = torch.cat([autoencoder.decode(part, size=size) for part in codes.split(DECODE_BATCH)])
    check_finite("decoded images", images.isfinite().all(), job.amp_dtype)
    return to_uint8(images)


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
            own += decoded(job, autoencoder, ids).cpu()
    except NotFiniteError as error:
        problem = str(error)
    if problems := list(filter(None, ranks.gather_objects(problem))):
        raise NotFiniteError(problems[0])
    shares = ranks.gather_objects(own)
    return torch.stack([shares[index % ranks.count][index // ranks.count] for index in range(n)])


def check_finite(what: str, finite: Tensor, amp_dtype: torch.dtype | None) -> None:
    """Wait for the device to say whether `what` it computed in a type is finite; NotFiniteError with advice if not."""
    if not finite:
        advice = {None: "take the weights of another step", torch.float16: "use --no_amp, or --amp_dtype bfloat16"}
        fix = advice.get(amp_dtype, "use --no_amp")
        raise NotFiniteError(f"{what} are not finite in {precision_name(amp_dtype)}: {fix}")
