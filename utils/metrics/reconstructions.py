"""Images through an autoencoder and back: their features, and how close they are one by one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hparams.checks import LPIPS_MIN_SIDES
from models.vqgan.autoencoder import VQAutoEncoder
from models.vqgan.similarity import SSIM_WINDOW, psnr, ssim
from utils.data.bad_images import Report
from utils.data.batches import eval_batches
from utils.data.datasets import ImageData
from utils.data.pictures import comparison_rows, image_grid
from utils.machine.devices import without_tf32
from utils.machine.files import content_key
from utils.metrics.features import FeatureExtractor
from utils.pretrained.perceptual import LPIPS, load_lpips
from utils.pretrained.weights import NoWeightsError
from utils.runs.job import Job
from utils.runs.shards import Shards
from utils.sampling.drawing import decoded
from utils.sampling.latents import part_size

QUALITIES = ("psnr_db", "ssim", "lpips")
_ROWS = 32  # originals in the picture of them and their reconstructions


def compare_reconstructions(
    job: Job, autoencoder: VQAutoEncoder, ae_key: tuple[object, ...], data: ImageData, codes: np.ndarray,
    extractor: FeatureExtractor, lpips: LPIPS | None,
) -> tuple[np.ndarray, dict[str, float]]:
    """Features [n,d] of the reconstructions of images with codes [n,N], and means of what compares them one by one."""

    def rows(indices: np.ndarray, report: Report) -> Iterator[Tensor]:
        done = 0
        for batch in eval_batches(data, job.batch_size, job.num_workers, indices=indices, bad=report):
            images = decoded(job, autoencoder, codes[indices[done : done + len(batch)]])
            done += len(batch)
            yield torch.cat([extractor(images), _qualities(batch.to(job.device), images, lpips)], dim=1)

    made_from = (data.fingerprint, *ae_key, job.amp_dtype, lpips and lpips.weights, extractor.name, extractor.weights)
    shards = Shards(job.folder.features / content_key("reconstructions 6", *made_from))
    like, what = np.empty(extractor.width + len(QUALITIES), np.float32), f"{extractor.name} of reconstructions"
    found = shards.fill(job, len(codes), like, rows, what=what, size=part_size(job))[:]
    features, quality = np.split(found, [extractor.width], axis=1)
    means = quality.mean(0, dtype=np.float64)
    return features, {name: float(mean) for name, mean in zip(QUALITIES, means, strict=True) if not np.isnan(mean)}


def picture_of(job: Job, autoencoder: VQAutoEncoder, data: ImageData, codes: np.ndarray) -> np.ndarray:
    """A grid of the first originals over their reconstructions, uint8 [3,H',W']."""
    originals = next(eval_batches(data, min(_ROWS, len(data)), 0, bad=job.bad_images))
    return image_grid(*comparison_rows(originals, decoded(job, autoencoder, codes[: len(originals)])))


@torch.no_grad()
@without_tf32()
def _qualities(originals: Tensor, images: Tensor, lpips: LPIPS | None) -> Tensor:
    """uint8 [B,3,S,S], twice → [B, QUALITIES] float32; NaN for what cannot be said."""
    x, y = originals.float() / 255, images.float() / 255
    unknown = x.new_full((len(x),), torch.nan)
    similar = ssim(x, y) if x.shape[-1] >= SSIM_WINDOW else unknown
    return torch.stack([psnr(x, y), similar, lpips(x, y).flatten() if lpips else unknown], dim=1)


def lpips_if_there(job: Job, net: str, weights_file: str | None, side: int) -> LPIPS | None:
    """LPIPS of images of a side, or None after a line that says why not. UserError: a named file is not usable."""
    if side < LPIPS_MIN_SIDES[net]:
        job.warn(f"no LPIPS: --lpips_net {net} needs images of at least {LPIPS_MIN_SIDES[net]} pixels")
        return None
    try:
        return LPIPS(load_lpips(net, weights_file), job.device, symmetric=True)
    except NoWeightsError as error:
        job.warn(f"no LPIPS: {error}")
        return None
