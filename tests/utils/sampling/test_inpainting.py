"""What is given of images of which a part is painted anew, and the picture of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from utils.runs.job import Job
from utils.sampling.inpainting import completions_picture, given_codes

SIDE = 96  # not enlarged in grids


class Given(list):
    """Images in place of a data set."""

    def source(self, i: int) -> str:
        return str(i)


@pytest.mark.parametrize(
    ("images", "samples", "rows", "shown"), [(1, 1, 1, 1), (3, 2, 3, 2), (17, 2, 16, 2), (2, 9, 2, 8)]
)
def test_a_row_shows_an_image_what_is_given_of_it_and_its_first_completions(
    job: Job, images: int, samples: int, rows: int, shown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A completion's colour is its image's number, then its own."""
    ids = np.array([[10 * image, completion, 0] for image in range(images) for completion in range(samples)])
    originals = torch.arange(images, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, SIDE, SIDE)

    def decoded(_: object, __: object, codes: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(codes.astype(np.uint8))[..., None, None].expand(-1, -1, SIDE, SIDE)

    monkeypatch.setattr("utils.sampling.inpainting.decoded", decoded)
    hidden = torch.tensor([[False, True], [False, False]])
    drawn = completions_picture(job, None, Given(originals.numpy()), ids, hidden)
    step, half = SIDE + 2, SIDE // 2
    assert drawn.shape == (3, rows * step + 2, (shown + 2) * step + 2)
    for row in range(rows):
        cells = drawn[:, row * step + 2 : (row + 1) * step].transpose(1, 2, 0)
        own, given, *rest = (cells[:, 2 + column * step :][:, :SIDE] for column in range(shown + 2))
        assert (own == row).all()
        assert (given[:half, half:] == 128).all()
        assert (given[half:] == row).all()
        assert (given[:half, :half] == row).all()
        np.testing.assert_array_equal([cell[5, 5] for cell in rest], [(10 * row, number, 0) for number in range(shown)])


def test_what_is_given_is_all_that_is_not_hidden() -> None:
    codes, hidden = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.uint8), torch.tensor([[False, True], [True, False]])
    given = given_codes(codes, hidden, mask_id=256, completions=2)
    assert given.tolist() == [[1, 256, 256, 4]] * 2 + [[5, 256, 256, 8]] * 2
