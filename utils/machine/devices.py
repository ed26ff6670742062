"""Where and in which precision to compute: decided once, by the script."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from hparams import launch
from hparams.errors import UserError


def pick_device(name: str) -> torch.device:
    """`auto`: CUDA if there is one, else the CPU; under torchrun a GPU for each process. UserError: it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and launch.launched() and torch.cuda.device_count():
        name = f"cuda:{launch.local_rank() % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return device


def pick_amp_dtype(device: torch.device, amp: bool, name: str) -> torch.dtype | None:
    """Type to autocast to; None: float32. `auto`: bfloat16 if the hardware has it, else float16 (CUDA) or float32."""
    if not amp:
        return None
    if name == "auto":
        if device.type == "cpu":  # which may have it while ATEN_CPU_CAPABILITY=avx2 forbids PyTorch to use it
            wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
            names = [name for name, has in torch.cpu.get_capabilities().items() if has and name.endswith("bf16")]
            return torch.bfloat16 if any(wide or not name.startswith(("avx", "amx")) for name in names) else None
        with torch.cuda.device(device):  # is_bf16_supported() is about the current device
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}[name]


@contextmanager
def without_tf32() -> Iterator[None]:
    """Keep CUDA from rounding float32 convolutions and products to TF32, about 3 digits: a block, or a decorator."""
    kinds = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


def describe_device(device: torch.device) -> str:
    """The device in words, for the log."""
    is_cuda = device.type == "cuda"
    return f"{device} ({torch.cuda.get_device_name(device) if is_cuda else f'threads: {torch.get_num_threads()}'})"


def autocast(device: torch.device, amp_dtype: torch.dtype | None) -> torch.autocast:
    """Autocast on a device to what `pick_amp_dtype` returned."""
    return torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None)


def precision_name(amp_dtype: torch.dtype | None) -> str:
    """The type that networks compute in, for what `pick_amp_dtype` returned."""
    return str(amp_dtype or torch.float32).removeprefix("torch.")


def rows(values: Tensor, indices: np.ndarray) -> Tensor:
    """values [n,…] at indices int64 [b] on the host: [b,…]. Does not wait for the device."""
    index = torch.from_numpy(indices)
    return values[index.pin_memory().to(values.device, non_blocking=True) if values.is_cuda else index]
