"""Neighbours in a data set, against lpips' own distances of every pair."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lpips
import numpy as np
import pytest
import torch
from torch import Tensor

from hparams.errors import UserError
from jobs import a_job
from utils.data.images import BadImageError
from utils.metrics.neighbours import (
    GAP,
    Embedding,
    NearestNeighbours,
    build_embedding,
    images_to_compare,
    nearest_images,
    write_neighbours,
)
from utils.pretrained.perceptual import untrained_lpips
from utils.runs.job import Job


class Images:
    """21 random images in place of a data set, some of which may be unreadable."""

    def __init__(self, lost: set[int] | None = None) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (21, 3, 32, 32), np.uint8)
        self.lost = lost or set()
        self.fingerprint = f"without {lost}"

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> np.ndarray:
        if i in self.lost:
            raise BadImageError(f"file {i} is no image")
        return self.pixels[i]

    def source(self, i: int) -> str:
        return f"file {i}"


DATA: Any = Images()


@pytest.fixture(scope="module")
def network() -> lpips.LPIPS:
    torch.manual_seed(0)
    return untrained_lpips("alex").eval()


@pytest.fixture(scope="module")
def embedding(network: lpips.LPIPS, tmp_path_factory: pytest.TempPathFactory) -> Embedding:
    path = tmp_path_factory.mktemp("weights") / "lpips.pth"
    torch.save(network.state_dict(), path)
    with a_job() as job:
        return build_embedding(job, "lpips", "alex", str(path))


@pytest.fixture
def samples() -> Tensor:
    other = np.random.default_rng(1).integers(0, 256, (2, 3, 32, 32), np.uint8)
    return torch.from_numpy(np.concatenate([other, DATA[13][None]]))


def find(job: Job, embedding: Embedding, samples: Tensor, data: Any = DATA, k: int = 5) -> NearestNeighbours:
    return nearest_images(job, embedding, samples, data, len(data), k)


def counted(embedding: Embedding, stop_after: int | None = None) -> tuple[Embedding, list[int]]:
    """An embedding, and the sizes of the batches that it embeds."""
    batches: list[int] = []

    def embed(pixels: Tensor) -> Tensor:
        if len(batches) == stop_after:
            raise KeyboardInterrupt
        batches.append(len(pixels))
        return embedding.embed(pixels)

    return Embedding(embedding.name, embedding.weights, embed), batches


def test_neighbours_and_distances_are_those_of_lpips(
    job: Job, network: lpips.LPIPS, embedding: Embedding, samples: Tensor
) -> None:
    found = find(job, embedding, samples)
    x, y = samples.float() / 255, torch.from_numpy(DATA.pixels).float() / 255
    with torch.no_grad():
        distances = torch.stack([network(image.expand(len(y), -1, -1, -1), y, normalize=True).flatten() for image in x])
    expected, order = distances.sort(1)
    assert torch.equal(found.indices, order[:, :5])
    torch.testing.assert_close(found.distances, expected[:, :5], rtol=0, atol=1e-4)
    assert found.indices[2, 0] == 13  # a copy of a training image finds it
    assert found.distances[2, 0] < 1e-4 < found.distances[2, 1]
    assert "alex" in embedding.name


def test_an_interrupted_search_goes_on_and_from_no_other_one(
    job: Job, embedding: Embedding, samples: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.metrics.neighbours._BATCHES", 2)
    with pytest.raises(KeyboardInterrupt):
        find(job, counted(embedding, 4)[0], samples)  # the samples themselves, and three batches
    rest, batches = counted(embedding)
    whole = find(job, rest, samples)
    assert batches == [3, 4, 4, 4, 1]
    batches.clear()
    assert torch.equal(find(job, rest, samples).indices, whole.indices)
    assert batches == [3]
    other = Embedding(embedding.name, "other", rest.embed)
    for changed in ({"embedding": other}, {"samples": samples.flip(0)}, {"data": Images(set())}, {"k": 4}):
        batches.clear()
        find(job, **{"embedding": rest, "samples": samples, **changed})
        assert sum(batches) == 3 + 21, changed


def test_images_that_cannot_be_read_are_no_neighbours(
    job: Job, embedding: Embedding, samples: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are they reported less after an interruption."""
    whole = find(job, embedding, samples)
    lost = {13, int(whole.indices[0, 1]), 2}
    broken, told = Images(lost), {}

    def report(found: Mapping[str, str], images: int) -> None:
        assert images == 21
        told.update(found)

    job.bad_images = report
    monkeypatch.setattr("utils.metrics.neighbours._BATCHES", 1)
    with pytest.raises(KeyboardInterrupt):
        find(job, counted(embedding, 5)[0], samples, broken)
    told.clear()
    found = find(job, embedding, samples, broken)
    assert told.keys() == {f"file {i}" for i in lost}
    assert not lost & set(found.indices.flatten().tolist())
    kept = [i for i in whole.indices[0].tolist() if i not in lost]
    assert found.indices[0, : len(kept)].tolist() == kept

    with pytest.raises(UserError, match="--top_k 5 is more than the training images that can be read"):
        find(job, embedding, samples, Images(set(range(17))))


def test_damaged_weights_are_named(job: Job, embedding: Embedding, samples: Tensor) -> None:
    damaged = Embedding(embedding.name, "damaged", lambda images: embedding.embed(images) * torch.nan)
    with pytest.raises(UserError, match=r"LPIPS \(alex\) gives values that are not finite"):
        find(job, damaged, samples)


def test_a_part_of_the_images(job: Job, embedding: Embedding, samples: Tensor) -> None:
    assert nearest_images(job, embedding, samples, DATA, images_to_compare(DATA, 6, 5), 5).indices.max() < 6
    assert images_to_compare(DATA, None, 5) == images_to_compare(DATA, 99, 5) == 21
    with pytest.raises(UserError, match="--top_k 5 is more than the 4 training images: use 4 or fewer"):
        images_to_compare(DATA, 4, 5)


def test_without_weights_r64_stands_in_and_says_so(
    job: Job, offline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embedding = build_embedding(job, "lpips", "alex", None)
    assert "R64" in embedding.name
    (said,) = capsys.readouterr().out.splitlines()
    for part in ("WARNING", "--lpips_net alex", "alexnet-owt-7be5be79.pth", str(offline), "--lpips_weights", "R64"):
        assert part in said
    assert embedding(torch.zeros((2, 3, 32, 32), dtype=torch.uint8)).shape == (2, 64)
    with pytest.raises(UserError, match=r"other\.pth"):
        build_embedding(job, "lpips", "alex", str(offline / "other.pth"))


def test_what_is_written(job: Job, samples: Tensor) -> None:
    found = NearestNeighbours(torch.zeros(3, 1), 2)
    found.merge(torch.tensor([[0.1, 0.2]] * 3), torch.tensor([[4, 1], [0, 2], [13, 3]]))
    picture = write_neighbours(job, samples, found, DATA, {"distance": "LPIPS"}).transpose(1, 2, 0)
    content = json.loads((job.folder.path / "neighbours.json").read_text())
    assert content["conditions"] == {"distance": "LPIPS"}
    assert content["samples"][2][0] == {"index": 13, "source": "file 13", "distance": pytest.approx(0.1)}
    cell, right = 3 * 32 + 2, 3 * 32 + 4 + GAP  # enlarged three times, 2 pixels between; where neighbours begin
    assert picture.shape == (3 * cell + 2, right + 2 * cell + 2, 3)
    shown = picture[2 * cell + 2 :: 3, right + 2 :: 3][:32, :32].transpose(2, 0, 1)
    assert np.array_equal(shown, DATA[13])


def points(n: int) -> Tensor:
    return torch.randn((n, 20), generator=torch.Generator().manual_seed(1))


def test_a_copy_is_at_no_distance_and_the_earlier_of_equals_counts() -> None:
    data = points(200)
    found = NearestNeighbours(data, 2)
    for first in (0, 200):
        found.merge(*found.nearest(data, first))
    assert found.indices.tolist() == [[i, 200 + i] for i in range(200)]
    # Squared, of points whose squared lengths are some 20 and are rounded, some to less than nothing.
    assert 0 <= found.distances.min() <= found.distances.max() < 1e-4


def test_what_is_not_present_counts_and_is_no_neighbour() -> None:
    data = points(9)
    found = NearestNeighbours(data[3:4], 9)
    found.merge(*found.nearest(data[:5], 0, torch.tensor([True, True, True, False, True])))
    assert (found.indices[:, 5:] == -1).all()  # there are fewer
    found.merge(*found.nearest(data[5:], 5))
    assert sorted(found.indices[0, :8].tolist()) == [0, 1, 2, 4, 5, 6, 7, 8]
    assert found.distances[0, :8].isfinite().all()
    assert found.distances[0, 8].isinf()
