"""What a prior is given of images of which a part is painted anew, and a picture of what comes of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.sampling.inpainting import pixels_of
from utils.data.pictures import image_grid

_GREY = 128  # of what is painted anew
_MOST_ROWS = 16
_MOST_COMPLETIONS = 8  # in a row


def given_codes(codes: np.ndarray, hidden: Tensor, *, mask_id: int, completions: int) -> Tensor:
    """What is given of each completion: [n · completions,N] int64, `mask_id` where it is to be drawn.

    codes: [n,N], of the images; hidden: [h,w] bool, h · w = N. The completions of an image come one after the other.
    """
    given = torch.from_numpy(codes.astype(np.int64)).masked_fill(hidden.flatten(), mask_id)
    return given.repeat_interleave(completions, dim=0)


class CompletionsPicture:
    """A row for each of the first images: itself, what is given of it, and its first completions.

    Attributes:
        rows: how many images are shown.
        completions: how many of each.
    """

    def __init__(self, n_images: int, n_samples: int) -> None:
        self.rows = min(n_images, _MOST_ROWS)
        self.completions = min(n_samples, _MOST_COMPLETIONS)
        self._n_samples = n_samples
        self._taken = 0
        self._shown: list[Tensor] = []

    def add(self, images: Tensor) -> None:
        """Take the next completions, uint8 [b,3,S,S]; those of an image come one after the other."""
        for number, image in enumerate(images, self._taken):
            row, column = divmod(number, self._n_samples)
            if row < self.rows and column < self.completions:
                self._shown.append(image.clone())  # not the batch
        self._taken += len(images)

    def draw(self, originals: Tensor, hidden: Tensor) -> np.ndarray:
        """The picture, uint8 [3,H',W'], once all were taken. originals: uint8 [rows,3,S,S]; hidden: [h,w] bool."""
        given = originals.masked_fill(pixels_of(hidden, (originals.shape[2], originals.shape[3])), _GREY)
        completed = torch.stack(self._shown).unflatten(0, (self.rows, self.completions))
        rows = torch.cat([originals[:, None], given[:, None], completed], dim=1)
        return image_grid(rows.flatten(0, 1), rows.shape[1])
