"""Neighbours in a data set, against lpips' own distances of every pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lpips
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hparams.errors import UserError
from hparams.settings.metrics import NeighbourSettings
from utils.data.images import BadImageError
from utils.metrics.nearest import NearestNeighbours
from utils.metrics.neighbour_files import GAP, write_neighbours
from utils.metrics.neighbour_search import Embedding, build_embedding, search
from utils.runs.partial import Partial
from utils.runs.run_folder import RunFolder

CPU = torch.device("cpu")


class Images:
    """Random images in place of a data set."""

    fingerprint = "random"

    def __init__(self, n: int) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (n, 3, 32, 32), np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.pixels[i]

    def source(self, i: int) -> str:
        return f"file {i}"


class Broken(Images):
    """Images some of which cannot be read."""

    fingerprint = "broken"

    def __init__(self, images: Images, lost: set[int]) -> None:
        self.pixels = images.pixels
        self.lost = lost

    def __getitem__(self, i: int) -> np.ndarray:
        if i in self.lost:
            raise BadImageError(f"file {i} is no image")
        return self.pixels[i]


@pytest.fixture(scope="module")
def network() -> lpips.LPIPS:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="deprecated"):
        return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()


@pytest.fixture(scope="module")
def embedding(network: lpips.LPIPS, tmp_path_factory: pytest.TempPathFactory) -> Embedding:
    path = tmp_path_factory.mktemp("weights") / "lpips.pth"
    torch.save(network.state_dict(), path)
    return build_embedding(NeighbourSettings(lpips_weights=str(path)), CPU, warn=pytest.fail)


@pytest.fixture
def data() -> Any:
    return Images(21)


@pytest.fixture
def samples(data: Any) -> Tensor:
    other = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 3, 32, 32), np.uint8))
    return torch.cat([other, torch.from_numpy(data[13][None])])


def find(embedding: Embedding, samples: Tensor, data: Any, folder: Path, **options: Any) -> NearestNeighbours:
    settings = {"images": None, "batch_size": 4, "num_workers": 0, "quiet": True, **options}
    return search(embedding, samples, data, 5, partial=folder / "partial", **settings)


def test_neighbours_and_distances_are_those_of_lpips(
    network: lpips.LPIPS, embedding: Embedding, samples: Tensor, data: Any, tmp_path: Path
) -> None:
    found = find(embedding, samples, data, tmp_path)
    x, y = samples.float() / 255, torch.from_numpy(data.pixels).float() / 255
    with torch.no_grad():
        distances = torch.stack([network(image.expand(len(y), -1, -1, -1), y, normalize=True).flatten() for image in x])
    expected, order = distances.sort(1)
    assert torch.equal(found.indices, order[:, :5])
    torch.testing.assert_close(found.distances, expected[:, :5], rtol=0, atol=1e-4)
    assert found.indices[2, 0] == 13  # a copy of a training image finds it
    assert found.distances[2, 0] < 1e-4 < found.distances[2, 1]
    assert "alex" in embedding.name
    assert not (tmp_path / "partial").exists()


def test_an_interrupted_search_goes_on(
    embedding: Embedding, samples: Tensor, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = find(embedding, samples, data, tmp_path)
    batches = []

    def counting(pixels: Tensor) -> Tensor:
        batches.append(len(pixels))
        return embedding.embed(pixels)

    def stop(work: Partial, state: Any) -> None:
        work.save(state())
        if len(batches) == 3:  # the samples themselves, and two batches
            raise KeyboardInterrupt

    counted = Embedding(embedding.name, embedding.weights, counting)
    monkeypatch.setattr(Partial, "keep", stop)
    with pytest.raises(KeyboardInterrupt):
        find(counted, samples, data, tmp_path)
    monkeypatch.undo()
    batches.clear()
    rest = find(counted, samples, data, tmp_path)
    assert batches == [3, 4, 4, 4, 1]
    assert torch.equal(rest.indices, whole.indices)
    assert torch.equal(rest.distances, whole.distances)


def test_a_search_goes_on_from_no_other_one(
    embedding: Embedding, samples: Tensor, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ToldError(Exception):
        """What determines the work."""

    def tell(work: Partial, path: Path, key: dict[str, Any], ranks: Any) -> None:
        raise ToldError(json.dumps(key))

    monkeypatch.setattr(Partial, "__init__", tell)
    same = {"embedding": embedding, "samples": samples, "data": data, "k": 5, "images": None}
    others = (
        {"embedding": Embedding(embedding.name, "other", embedding.embed)},
        {"samples": samples.flip(0)},
        {"data": Broken(data, set())},
        {"k": 4},
        {"images": 9},
    )
    keys = set()
    for changed in ({}, *others):
        with pytest.raises(ToldError) as told:
            search(**same | changed, batch_size=4, num_workers=0, partial=tmp_path / "partial", quiet=True)
        keys.add(str(told.value))
    assert len(keys) == 1 + len(others)


def test_images_that_cannot_be_read_are_no_neighbours(
    embedding: Embedding, samples: Tensor, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are they reported less after an interruption."""
    whole = find(embedding, samples, data, tmp_path)
    assert whole.indices[2, 0] == 13
    lost = {13, int(whole.indices[0, 1]), 2}
    broken = Broken(data, lost)
    with pytest.raises(UserError, match="is no image"):
        find(embedding, samples, broken, tmp_path)

    told: dict[str, str] = {}
    found = find(embedding, samples, broken, tmp_path, bad=lambda unreadable, _: told.update(unreadable))
    assert told.keys() == {f"file {i}" for i in lost}
    assert not lost & set(found.indices.flatten().tolist())
    kept = [i for i in whole.indices[0].tolist() if i not in lost]
    assert found.indices[0, : len(kept)].tolist() == kept

    def stop(work: Partial, state: Any) -> None:
        work.save(state())
        if len(told) == len(lost):
            raise KeyboardInterrupt

    told.clear()
    monkeypatch.setattr(Partial, "keep", stop)
    with pytest.raises(KeyboardInterrupt):
        find(embedding, samples, broken, tmp_path, bad=lambda unreadable, _: told.update(unreadable))
    monkeypatch.undo()
    told.clear()
    again = find(embedding, samples, broken, tmp_path, bad=lambda unreadable, _: told.update(unreadable))
    assert torch.equal(again.indices, found.indices)
    assert told.keys() == {f"file {i}" for i in lost}

    few = Broken(data, set(range(17)))
    with pytest.raises(UserError, match="--top_k 5 is more than the training images that can be read"):
        find(embedding, samples, few, tmp_path, bad=lambda *_: None)


def test_damaged_weights_are_named(embedding: Embedding, samples: Tensor, data: Any, tmp_path: Path) -> None:
    damaged = Embedding(embedding.name, "damaged", lambda images: embedding.embed(images) * torch.nan)
    with pytest.raises(UserError, match=r"LPIPS \(alex\) gives values that are not finite"):
        find(damaged, samples, data, tmp_path)


def test_a_part_of_the_images(embedding: Embedding, samples: Tensor, data: Any, tmp_path: Path) -> None:
    found = find(embedding, samples, data, tmp_path, images=6)
    assert found.seen == 6
    assert found.indices.max() < 6
    with pytest.raises(UserError, match="--top_k 5 is more than the 4 training images: use 4 or fewer"):
        find(embedding, samples, data, tmp_path, images=4)


def test_without_weights_r64_stands_in_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    said: list[str] = []
    embedding = build_embedding(NeighbourSettings(lpips_net="alex"), CPU, warn=said.append)
    assert "R64" in embedding.name
    assert len(said) == 1
    for part in ("WARNING", "--lpips_net alex", "alexnet-owt-7be5be79.pth", str(tmp_path), "--lpips_weights", "R64"):
        assert part in said[0]
    assert embedding.embed(torch.zeros((2, 3, 32, 32), dtype=torch.uint8)).shape == (2, 64)
    with pytest.raises(UserError, match=r"other\.pth"):
        build_embedding(NeighbourSettings(lpips_weights=str(tmp_path / "other.pth")), CPU, warn=pytest.fail)


def test_what_is_written(samples: Tensor, data: Any, tmp_path: Path) -> None:
    found = NearestNeighbours(torch.zeros((3, 1)), 2)
    found.indices, found.distances = torch.tensor([[4, 1], [0, 2], [13, 3]]), torch.tensor([[0.1, 0.2]] * 3)
    folder = RunFolder("run", tmp_path)
    write_neighbours(folder, samples, found, data, {"distance": "LPIPS"})
    content = json.loads((folder.path / "neighbours.json").read_text())
    assert content["conditions"] == {"distance": "LPIPS"}
    assert content["samples"][2][0] == {"index": 13, "source": "file 13", "distance": pytest.approx(0.1)}
    picture = np.asarray(Image.open(folder.images / "neighbours.png"))  # enlarged three times, 2 pixels between
    cell, right = 3 * 32 + 2, 3 * 32 + 4 + GAP  # where neighbours begin
    assert picture.shape == (3 * cell + 2, right + 2 * cell + 2, 3)
    shown = picture[2 * cell + 2 :: 3, right + 2 :: 3][:32, :32].transpose(2, 0, 1)
    assert np.array_equal(shown, data[13])
