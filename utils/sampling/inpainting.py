"""What a prior is given of images of which a part is painted anew, and a picture of what comes of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.sampling.inpainting import pixels_of
from models.vqgan.autoencoder import VQAutoEncoder
from utils.data.batches import eval_batches
from utils.data.datasets import ImageData
from utils.data.pictures import image_grid
from utils.runs.job import Job
from utils.runs.shards import Rows
from utils.sampling.drawing import decoded

_GREY = 128  # of what is painted anew
_MOST_ROWS = 16  # of the picture
_MOST_COMPLETIONS = 8  # in a row of it


def given_codes(codes: np.ndarray, hidden: Tensor, *, mask_id: int, completions: int) -> Tensor:
    """What is given of each completion: [n · completions,N] int64, `mask_id` where it is to be drawn.

    codes: [n,N], of the images; hidden: [h,w] bool, h · w = N. The completions of an image come one after the other.
    """
    given = torch.from_numpy(codes.astype(np.int64)).masked_fill(hidden.flatten(), mask_id)
    return given.repeat_interleave(completions, dim=0)


def completions_picture(
    job: Job, autoencoder: VQAutoEncoder, data: ImageData, ids: Rows | np.ndarray, hidden: Tensor
) -> np.ndarray:
    """A row for each of the first images: itself, what is given of it, and its first completions. uint8 [3,H',W'].

    ids: codes of all completions [n · completions,N], those of an image one after the other; hidden: [h,w] bool.
    """
    each, rows = len(ids) // len(data), min(len(data), _MOST_ROWS)
    shown = np.arange(rows)[:, None] * each + np.arange(min(each, _MOST_COMPLETIONS))
    completed = decoded(job, autoencoder, ids[shown.flatten()]).cpu().unflatten(0, shown.shape)
    originals = next(eval_batches(data, rows, 0, bad=job.bad_images))
    given = originals.masked_fill(pixels_of(hidden, (originals.shape[2], originals.shape[3])), _GREY)
    pictures = torch.cat([originals[:, None], given[:, None], completed], dim=1)
    return image_grid(pictures.flatten(0, 1), pictures.shape[1])
