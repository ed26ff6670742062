"""Drawing and decoding codes larger than the training ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hparams.experiments import LargerExperiment
from models.absorbing import AbsorbingDiffusion
from models.larger import larger_trajectory, reveal_plan
from utils.evaluation import evaluating
from utils.files import sha256_of
from utils.partial import Partial
from utils.progress import Progress
from utils.seeding import make_generator
from utils.trained_models import TrainedModels


def larger_ids(models: TrainedModels, settings: LargerExperiment, partial: Path) -> tuple[Tensor, int]:
    """Codes of all `n_samples` images, [n,H,W] int64, and how many windows the prior evaluated for them.

    An image is a function of weights, settings, seed and its number. A drawing of the same goes on from the file
    `partial`, which keeps the codes when all are drawn.
    """
    run, larger, prior = settings.run, settings.larger, models.prior
    assert isinstance(prior, AbsorbingDiffusion)  # others are refused with the settings
    height, width = larger.shape
    plans = [
        reveal_plan((height, width), larger.order, larger.sample_steps, make_generator("cpu", run.seed, "larger", i))
        for i in range(larger.n_samples)
    ]
    reveal, uniforms = (torch.stack(part).to(models.device) for part in zip(*plans, strict=True))
    x = torch.full(reveal.shape, prior.mask_id, device=models.device)
    steps, done, evaluations = int(reveal.max()) + 1, 0, 0

    def logits(windows: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += len(windows)
        with models.autocast():
            return prior.logits(windows)

    def state() -> dict[str, Any]:
        return {"x": x.cpu(), "done": done, "evaluations": evaluations}

    key = {
        "autoencoder": sha256_of(models.ae_file),
        "prior": sha256_of(models.prior_file),
        "precision": str(models.amp_dtype),
        "seed": run.seed,
        **vars(larger),
    }
    with Partial(partial, key) as work, evaluating(prior):
        if saved := work.load():
            x, done, evaluations = saved["x"].to(models.device), saved["done"], saved["evaluations"]
        with Progress("sampling", steps, "step", done=done, quiet=run.quiet) as progress:
            states = larger_trajectory(
                logits,
                x,
                reveal,
                uniforms,
                mask_id=prior.mask_id,
                window=models.autoencoder.latent_size,
                stride=larger.stride,
                temp=larger.temp,
                batch_size=run.batch_size,
                start=done,
            )
            for x in states:  # noqa: B007 (the last one is the result)
                done += 1
                progress.update()
                work.keep(state)
        work.save(state())
    return x, evaluations


def decode_larger(models: TrainedModels, ids: Tensor) -> Iterator[Tensor]:
    """Images [1,C,H',W'] in [0,1] of codes [n,H,W], one by one.

    Each goes through the decoder as a whole. Its normalisation and its attention see all of an image, so that tiles are
    not what they would be: with an overlap of a training image on each side they still differ by 6 of 255 on average
    (toy churches).
    """
    for image in ids:
        with evaluating(models.autoencoder), models.autocast():
            yield models.autoencoder.decode(image.view(1, -1), size=image.shape)
