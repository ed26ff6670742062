"""Drawing and decoding codes larger than the training ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hparams.settings.experiments import LargerExperiment
from models.prior.absorbing import AbsorbingDiffusion
from models.sampling.larger import larger_trajectory, reveal_plan
from utils.machine.distributed import ALONE, Ranks
from utils.machine.evaluation import evaluating
from utils.machine.files import sha256_of
from utils.machine.progress import Progress
from utils.machine.seeding import make_generator
from utils.pretrained.trained_models import TrainedModels
from utils.runs.partial import Partial
from utils.runs.shared_batches import in_order, own_indices
from utils.sampling.sampling import require_finite_draws, require_finite_images


def larger_ids(
    models: TrainedModels, settings: LargerExperiment, partial: Path, ranks: Ranks = ALONE
) -> tuple[Tensor, int]:
    """Codes of all `n_samples` images, [n,H,W] int64, and how many windows the prior evaluated for them.

    An image is a function of weights, settings, seed and its number. A drawing of the same goes on from the file
    `partial`, which keeps the codes when all are drawn. Of several `ranks` each draws its share.

    Raises:
        NotFiniteError: the prior's predictions are not finite; what was kept before stays.
    """
    run, larger, sampling, prior = settings.run, settings.larger, settings.sampling, models.prior
    assert isinstance(prior, AbsorbingDiffusion)  # others are refused with the settings
    height, width = larger.shape
    plans = [
        reveal_plan((height, width), larger.order, sampling.sample_steps, make_generator("cpu", run.seed, "larger", i))
        for i in range(sampling.n_samples)
    ]
    reveal, uniforms = (torch.stack(part).to(models.device) for part in zip(*plans, strict=True))
    steps, done, evaluations = int(reveal.max()) + 1, 0, 0
    most = -(-sampling.n_samples // ranks.count)
    mine = own_indices(range(sampling.n_samples), most, ranks)
    x = torch.full_like(reveal[mine], prior.mask_id)
    invalid = torch.zeros((), dtype=torch.int64, device=models.device)

    def logits_at(windows: Tensor, places: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += len(windows)
        with models.autocast():
            return prior.logits_at(windows, places)

    def state() -> dict[str, Any]:
        """Of all images."""
        everyone = ranks.gather_rows(x, most)[: sampling.n_samples].cpu()
        return {"x": everyone, "done": done, "evaluations": int(ranks.sum(torch.tensor(evaluations)))}

    key = {
        "autoencoder": sha256_of(models.ae_file),
        "prior": sha256_of(models.prior_file),
        "precision": str(models.amp_dtype),
        "seed": run.seed,
        **vars(larger),
        **vars(sampling),
    }
    with Partial(partial, key, ranks) as work, evaluating(prior):
        if saved := work.load():
            x, done = saved["x"][mine].to(models.device), saved["done"]
            evaluations = saved["evaluations"] if ranks.first else 0
        with Progress("sampling", steps, "step", done=done, quiet=run.quiet) as progress:
            states = larger_trajectory(
                logits_at,
                x,
                reveal[mine],
                uniforms[mine],
                mask_id=prior.mask_id,
                window=models.autoencoder.latent_size,
                stride=larger.stride,
                temp=sampling.temp,
                batch_size=run.batch_size,
                start=done,
                stop=steps,
                invalid=invalid,
            )
            for x in states:  # noqa: B007 (the last one is the result)
                require_finite_draws(invalid, models.amp_dtype)
                done += 1
                progress.update()
                work.keep(state)
        whole = state()
        work.save(whole)
    return whole["x"].to(models.device), whole["evaluations"]


def decode_larger(models: TrainedModels, ids: Tensor, *, quiet: bool, ranks: Ranks = ALONE) -> Iterator[Tensor]:
    """Images [b,C,H',W'] in [0,1] of codes [n,H,W], in their order: one from each of the `ranks` at a time.

    A bar, which `quiet` hides, shows how many the caller is done with.

    Each goes through the decoder as a whole. Its normalisation and its attention see all of an image, so that tiles are
    not what they would be: with an overlap of a training image on each side they still differ by 6 of 255 on average
    (toy churches).
    """

    def own() -> Iterator[list[Tensor]]:
        for image in ids[own_indices(range(len(ids)), 1, ranks)]:
            with evaluating(models.autoencoder), models.autocast():
                decoded = models.autoencoder.decode(image.view(1, -1), size=image.shape)
            yield [require_finite_images(decoded, models.amp_dtype)]

    channels, *sides = models.autoencoder.image_shape
    axes = zip(sides, ids.shape[1:], models.autoencoder.latent_size, strict=True)
    larger_sides = (side * codes // usual for side, codes, usual in axes)
    none = torch.empty((0, channels, *larger_sides), device=ids.device)
    with Progress("decoding", len(ids), "image", quiet=quiet) as progress:
        for (images,) in in_order(own(), len(ids), 1, [none], ranks):
            yield images
            progress.update(len(images))
