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
    """`auto`: CUDA when there is one, else the CPU. UserError for a device that this machine lacks.

    Under torchrun each process takes the next GPU of its machine, in turn where there are fewer.
    """
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
    """Type to autocast to, None for float32. `auto`: bfloat16 where the hardware has it, else float16.

    A CPU without bfloat16 has no fast float16 either: there `auto` is float32.
    """
    if not amp:
        return None
    if name == "auto":
        if device.type == "cpu":
            return torch.bfloat16 if _cpu_has_bfloat16() else None
        with torch.cuda.device(device):  # is_bf16_supported() is about the current device
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _cpu_has_bfloat16() -> bool:
    """Whether the processor has bfloat16 and PyTorch uses it, which ATEN_CPU_CAPABILITY=avx2 forbids."""
    names = [name for name, has in torch.cpu.get_capabilities().items() if has and name.endswith("bf16")]
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return any(wide or not name.startswith(("avx", "amx")) for name in names)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Keep CUDA from rounding float32 convolutions and matrix products to TF32, in a block or a decorated function.

    By default cuDNN rounds inputs of convolutions to TF32, about 3 digits. torch's settings are restored afterwards.
    """
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
