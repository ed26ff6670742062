"""Codes drawn from a prior, kept in the run folder of an experiment."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hparams.settings.experiments import PriorExperiment
from hparams.settings.sampling import SamplingSettings
from utils.machine.distributed import ALONE, Ranks
from utils.machine.files import content_key, sha256_of
from utils.pretrained.trained_models import TrainedModels
from utils.runs.growing_array import made_array
from utils.runs.run_folder import RunFolder
from utils.runs.shared_batches import fill_array
from utils.sampling.latents import ids_dtype
from utils.sampling.sampling import batch_for_all, id_batches


def sampled_ids(
    folder: RunFolder,
    models: TrainedModels,
    settings: PriorExperiment,
    sampling: SamplingSettings,
    ranks: Ranks = ALONE,
    starts: Tensor | None = None,
) -> np.ndarray:
    """`n_samples` ids [n,N] from the prior, mapped from a file in the run folder that is keyed by what makes them.

    An interrupted sampling goes on where it stopped, also with another number of processes. starts: what is given of
    each image; see `id_batches`.
    """
    run = settings.run
    made_from = [sha256_of(models.prior_file), asdict(settings.prior), asdict(sampling), run.seed, models.amp_dtype]
    if starts is not None:
        made_from.append(starts)
    key = content_key("samples 1", *made_from)

    def make(path: Path) -> None:
        fill_array(
            path,
            sampling.n_samples,
            np.empty(models.prior.tokens, ids_dtype(settings.autoencoder.codebook_size)),
            lambda indices, _: id_batches(models.prior, sampling, run, models.amp_dtype, indices.tolist(), starts),
            batch_size=batch_for_all(sampling.n_samples, run, ranks),
            none=torch.empty((0, models.prior.tokens), dtype=torch.int64, device=models.device),
            what="sampling",
            quiet=run.quiet,
            ranks=ranks,
        )

    return made_array(folder.samples / f"{key}.npy", make, ranks)[0]
