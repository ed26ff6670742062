"""Samples and their nearest training images, to look at and to read on."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from utils.data.datasets import ImageData
from utils.data.pictures import image_grid, save_png
from utils.machine.files import whole_file
from utils.metrics.nearest import NearestNeighbours
from utils.runs.results import Value
from utils.runs.run_folder import RunFolder

GAP = 12  # pixels between samples and neighbours


def write_neighbours(
    folder: RunFolder, samples: Tensor, found: NearestNeighbours, data: ImageData, conditions: Mapping[str, Value]
) -> np.ndarray:
    """Write `images/neighbours.png` and `neighbours.json`; returns the picture, uint8 [3,H',W'].

    samples: uint8 [S,3,H,W] on the CPU, found: their neighbours in `data`. A row of the picture is a sample and, behind
    a gap, its neighbours, nearest first; the list gives number, file (or LMDB and key) and distance of each.
    """
    indices, distances = found.indices.tolist(), found.distances.tolist()
    neighbours = torch.stack([torch.from_numpy(data[i]) for row in indices for i in row])
    left, right = image_grid(samples, columns=1), image_grid(neighbours, columns=found.indices.shape[1])
    gap = np.full((*left.shape[:2], GAP), 255, np.uint8)
    picture = np.concatenate([left, gap, right], axis=2)
    save_png(folder.images / "neighbours.png", picture)
    content = {
        "conditions": dict(conditions),
        "samples": [
            [
                {"index": i, "source": data.source(i), "distance": distance}
                for i, distance in zip(row, row_distances, strict=True)
            ]
            for row, row_distances in zip(indices, distances, strict=True)
        ],
    }
    with whole_file(folder.path / "neighbours.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    return picture
