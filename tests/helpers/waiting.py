"""Catching what would make the host wait for a GPU, on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose result, or its shape, the host must know before it goes on.
_WAITING = {
    "_local_scalar_dense",  # item, bool, int, float
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
    "bincount",
    "repeat_interleave",
    "equal",
}


class WaitError(AssertionError):
    """The host waited."""


class _NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in _WAITING or by_mask:
            raise WaitError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def _refuse(*arguments: Any, **options: Any) -> NoReturn:
    raise WaitError("a tensor was read on the host")


@contextmanager
def as_on_cuda(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors say that they are on CUDA: code that asks them goes the way that it goes there."""
    with patch.context() as inside:
        inside.setattr(Tensor, "is_cuda", property(lambda tensor: True), raising=False)
        yield


@contextmanager
def without_waiting(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """As `as_on_cuda`; what would wait there for the device raises `WaitError`."""
    with as_on_cuda(patch), patch.context() as inside, _NoWaiting():
        for name in ("tolist", "cpu", "numpy"):
            inside.setattr(Tensor, name, _refuse)
        yield
