"""Images of which a part is painted anew: what is given of them, and a picture of what became of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.autoencoder import VQAutoEncoder
from models.inpainting import pixels_of
from utils.evaluation import evaluating
from utils.pictures import image_grid

_GREY = 128  # of what is to be painted
_MOST_ROWS = 16  # of the picture


def given_codes(images: Tensor, autoencoder: VQAutoEncoder, hidden: Tensor, *, mask_id: int, batch_size: int) -> Tensor:
    """Codes of images uint8 [n,3,S,S] with the mask id where they are hidden: [n,N] int64, on the CPU."""
    device = next(autoencoder.parameters()).device
    with evaluating(autoencoder):
        ids = torch.cat([autoencoder.encode(part.to(device) / 255).cpu() for part in images.split(batch_size)])
    return ids.masked_fill(hidden.flatten(), mask_id)


def completions_picture(originals: Tensor, hidden: Tensor, completed: Tensor) -> np.ndarray:
    """A row for each image: itself, what is given of it, and its completions.

    originals: uint8 [n,3,S,S]; hidden: [h,w] bool; completed: uint8 [n·m,3,S,S], each image's m together. The first
    rows alone where there are many. Returns uint8 [3,H',W'].
    """
    given = originals.masked_fill(pixels_of(hidden, (originals.shape[2], originals.shape[3])), _GREY)
    rows = torch.cat([originals[:, None], given[:, None], completed.unflatten(0, (len(originals), -1))], dim=1)
    return image_grid(rows[:_MOST_ROWS].flatten(0, 1), rows.shape[1])
