"""Codes and features that the user gives as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load
from torch import Tensor

from hparams.errors import UserError
from utils.runs.checkpoints import load_file
from utils.runs.shards import Shards

_LARGEST = 1e15  # a feature; sums of squares must be float32 numbers


def read_latents(flag: str, path: Path, *, tokens: int, codebook_size: int) -> np.ndarray:
    """Codes [n,N] from an `.npy`, a tensor that `torch.save` wrote, or a folder of drawn samples: integers in 0..K-1.

    Raises:
        UserError: missing, not readable, or codes of another autoencoder; `flag` is what to correct.
    """
    read = _read_parts if path.is_dir() else _read_array if path.suffix == ".npy" else _read_tensor
    ids = read(flag, path)
    if ids.dtype.kind not in "iu":
        raise UserError(f"{flag} {path}: holds {ids.dtype} values, but codes are whole numbers")
    if ids.ndim != 2 or ids.shape[1] != tokens or not len(ids):
        raise UserError(f"{flag} {path}: has shape {list(ids.shape)}, codes of this autoencoder have [n, {tokens}]")
    if ids.min() < 0 or ids.max() >= codebook_size:
        raise UserError(
            f"{flag} {path}: codes from {ids.min()} to {ids.max()} are outside 0..{codebook_size - 1}: "
            "they are of another autoencoder"
        )
    return ids


def read_features(flag: str, path: Path) -> np.ndarray:
    """Features [n,d] float32 from an `.npy`, or from an `.safetensors` that holds one tensor.

    Raises:
        UserError: missing, not readable, of another shape, not finite or too large; `flag` is what to correct.
    """
    if path.suffix not in (".npy", ".safetensors"):
        raise UserError(f"{flag} {path}: features are .npy or .safetensors files")
    features = _read_array(flag, path)
    if features.dtype.kind != "f" or features.ndim != 2 or not features.size:
        raise UserError(f"{flag} {path}: holds {features.dtype} {list(features.shape)}, features are floats [n,d]")
    with np.errstate(over="ignore"):
        features = np.ascontiguousarray(features, np.float32)
    if not -_LARGEST < features.min() <= features.max() < _LARGEST:  # nor with NaN
        raise UserError(
            f"{flag} {path}: holds values that are not finite, or not within ±{_LARGEST:g}: compute the features again"
        )
    return features


def _read_array(flag: str, path: Path) -> np.ndarray:
    """From an `.npy`, or an `.safetensors` that holds one tensor."""
    npy = path.suffix == ".npy"
    content: Any
    try:  # read whole, not mapped: some file systems refuse that
        content = np.load(path, allow_pickle=False) if npy else load(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{flag} {path}: there is no such file") from None
    except Exception:  # the bytes of a damaged header lead anywhere
        content = None
    if not isinstance(content, np.ndarray if npy else dict):
        what = "plain .npy array" if npy else ".safetensors file of floats that numpy has"
        raise UserError(f"{flag} {path}: is damaged, or no {what}")
    if isinstance(content, np.ndarray):
        return content
    if len(content) != 1:
        raise UserError(f"{flag} {path}: holds {', '.join(content) or 'nothing'}; it should hold one tensor")
    return next(iter(content.values()))


def _read_parts(flag: str, path: Path) -> np.ndarray:
    rows = Shards(path).read()
    if rows is None:
        raise UserError(f"{flag} {path}: is damaged, or no folder of samples such as logs/<log_dir>/samples/<key>")
    return rows[:]


def _read_tensor(flag: str, path: Path) -> np.ndarray:
    try:
        content = load_file(path)
    except UserError as error:
        raise UserError(f"{flag} {error}") from None
    if not isinstance(content, Tensor):
        raise UserError(f"{flag} {path}: holds a {type(content).__name__}, not one tensor")
    try:
        return content.numpy(force=True)
    except (RuntimeError, TypeError):  # sparse, without data, or of a type that numpy lacks
        kind = f"{str(content.layout)[6:]} {str(content.dtype)[6:]}"
        raise UserError(f"{flag} {path}: holds {kind} values, but codes are a plain tensor of whole numbers") from None
