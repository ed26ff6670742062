"""Whether two runs left the same behind."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch


def same(a: Any, b: Any) -> bool:
    """Whether two nested containers hold the same values, tensors to the bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def same_files(*files: Path) -> bool:
    """Whether two files that `torch.save` wrote hold the same, or others are equal."""
    if files[0].suffix == ".th":
        return same(*(torch.load(file, weights_only=True) for file in files))
    return files[0].read_bytes() == files[1].read_bytes()


def visible(folder: Path, ignored: Collection[str]) -> set[Path]:
    """Files below a folder that no pattern matches, without hidden ones and those in hidden folders."""
    files = {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
    return {file for file in files if not any(map(file.match, ignored)) and "/." not in f"/{file}"}


def differences_of_folders(ours: Path, theirs: Path, ignored: Collection[str] = (), *, part: bool = False) -> list[str]:
    """What `ours` does not share with `theirs`; with `part` it may have fewer files."""
    own, wanted = visible(ours, ignored), visible(theirs, ignored)
    alone = own - wanted if part else own ^ wanted
    unequal = {name for name in own & wanted if not same_files(ours / name, theirs / name)}
    return [f"{ours}: {name} differs" for name in sorted(alone | unequal)]
