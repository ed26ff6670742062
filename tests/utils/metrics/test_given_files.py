"""Codes and features as the user's files: read as they are meant, or refused in a line that names flag and file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from hparams.errors import UserError
from utils.metrics.given_files import read_features, read_latents

IDS = np.array([[0, 1, 2, 7], [3, 3, 3, 3], [4, 5, 6, 0]])
FEATURES = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def latents(path: Path) -> np.ndarray:
    return read_latents("--latents_path", path, tokens=4, codebook_size=8)


def features(path: Path) -> np.ndarray:
    return read_features("--fake_feats", path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_latents(tmp_path: Path, dtype: type[np.generic]) -> None:
    np.save(tmp_path / "ids.npy", IDS.astype(dtype))
    torch.save(torch.from_numpy(IDS.astype(dtype)), tmp_path / "ids.pt")
    for name in ("ids.npy", "ids.pt"):
        np.testing.assert_array_equal(latents(tmp_path / name), IDS)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (IDS.astype(np.float32), "holds float32 values, but codes are whole numbers"),
        (IDS[:, :3], r"has shape \[3, 3\], codes of this autoencoder have \[n, 4\]"),
        (IDS[0], r"has shape \[4\]"),
        (IDS[:0], r"has shape \[0, 4\]"),
        (IDS + 1, r"codes from 1 to 8 are outside 0\.\.7"),
        (IDS - 1, r"codes from -1 to 6 are outside 0\.\.7"),
    ],
)
def test_other_latents_are_refused(tmp_path: Path, content: np.ndarray, says: str) -> None:
    np.save(tmp_path / "ids.npy", content)
    torch.save(torch.from_numpy(content), tmp_path / "ids.pt")
    for name in ("ids.npy", "ids.pt"):
        with pytest.raises(UserError, match=rf"--latents_path .*{name}: {says}"):
            latents(tmp_path / name)


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.zeros(3, 4, requires_grad=True), "float32 values, but codes are whole numbers"),
        (torch.zeros(3, 4, dtype=torch.bfloat16), "strided bfloat16 values, but codes are a plain tensor"),
        (torch.zeros(3, 4, dtype=torch.int64).to_sparse(), "sparse_coo int64 values, but codes are a plain tensor"),
        (torch.zeros(3, 4, dtype=torch.int64, device="meta"), "strided int64 values, but codes are a plain tensor"),
    ],
)
def test_tensors_that_numpy_does_not_take_are_refused(tmp_path: Path, tensor: torch.Tensor, says: str) -> None:
    torch.save(tensor, tmp_path / "ids.pt")
    with pytest.raises(UserError, match=rf"--latents_path .*ids\.pt: holds {says}"):
        latents(tmp_path / "ids.pt")


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_features(tmp_path: Path, dtype: type[np.generic]) -> None:
    np.save(tmp_path / "f.npy", FEATURES.astype(dtype))
    save_file({"features": FEATURES.astype(dtype)}, tmp_path / "f.safetensors")
    for file in ("f.npy", "f.safetensors"):
        got = features(tmp_path / file)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, FEATURES.astype(dtype).astype(np.float32))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (IDS, "features are floats"),
        (FEATURES[0], r"holds float32 \[3\], features are floats \[n,d\]"),
        (np.where(FEATURES > 0, np.nan, FEATURES), "not finite"),
        (np.where(FEATURES > 0, np.inf, FEATURES), "not finite"),
        (FEATURES * np.float32(1e25), r"not within ±1e\+15"),
        (np.minimum(FEATURES * np.float64(1e300), 0), r"not within ±1e\+15"),
        (np.array({"a": 1}), "is damaged, or no plain"),  # would have to be unpickled
    ],
)
def test_other_features_are_refused(tmp_path: Path, content: np.ndarray, says: str) -> None:
    np.save(tmp_path / "f.npy", content)
    with pytest.raises(UserError, match=rf"--fake_feats .*f\.npy: .*{says}"):
        features(tmp_path / "f.npy")


def test_what_is_no_such_file(tmp_path: Path) -> None:
    for name in ("f.npy", "f.safetensors"):
        with pytest.raises(UserError, match="there is no such file"):
            features(tmp_path / name)
        (tmp_path / name).write_bytes(b"\x93NUM junk")
        with pytest.raises(UserError, match="is damaged"):
            features(tmp_path / name)
    for name in ("ids.npy", "ids.pt"):
        with pytest.raises(UserError, match=rf"--latents_path .*{name}"):
            latents(tmp_path / name)
    with pytest.raises(UserError, match=r"features are \.npy or \.safetensors"):
        features(tmp_path / "f.pkl")
    save_file({"real": FEATURES, "fake": FEATURES}, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match=r"holds (real, fake|fake, real); it should hold one tensor"):
        features(tmp_path / "two.safetensors")
    header, whole = 100_000 * b"[", (tmp_path / "two.safetensors").read_bytes()
    for content in (len(header).to_bytes(8, "little") + header, whole[:-4]):
        (tmp_path / "damaged.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="is damaged"):
            features(tmp_path / "damaged.safetensors")
    torch.save({"ids": torch.zeros(2)}, tmp_path / "many.pt")
    with pytest.raises(UserError, match="holds a dict, not one tensor"):
        latents(tmp_path / "many.pt")
