"""torch.compile for the layers that repeat, in place, so that names in checkpoints stay as they are."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hparams.errors import UserError
from models.prior.transformer import Block
from models.vqgan.layers import AttnBlock, ResBlock
from utils.machine.cuda_graphs import EAGER_CALLS, EAGER_CALLS_OF_REPLICAS, Captured
from utils.machine.distributed import Ranks

SHAPES = 64  # that one layer may be compiled for; PyTorch's limit of 8 is below the number of a VQGAN's levels


def compile_blocks(network: nn.Module, choice: str, device: torch.device) -> None:
    """Compile the blocks of a Transformer or an autoencoder, as --compile says. UserError: `on` without a compiler."""
    for module in network.modules() if _wanted(choice, device) else ():
        if isinstance(module, Block):
            module.compile()
        elif isinstance(module, ResBlock | AttnBlock):
            torch._dynamo.config.recompile_limit = SHAPES
            module.compile(dynamic=False)


def captures_graphs(choice: str, device: torch.device) -> bool:
    """Whether to replay kernels as CUDA graphs; `choice` is that of --compile."""
    return device.type == "cuda" and _wanted(choice, device)


def capture_stream(
    choice: str, device: torch.device, amp_dtype: torch.dtype | None, ranks: Ranks
) -> torch.cuda.Stream | None:
    """A stream for a training step that can be captured as a CUDA graph, else None; `choice` is that of --compile.

    Not with float16, whose loss scaler keeps state on the host. Several processes need NCCL, as no graph holds gloo's
    messages, and `on`, as that has not been tried on a GPU.
    """
    together = ranks.count == 1 or (ranks.uses_nccl and choice == "on")
    captured = together and amp_dtype is not torch.float16 and captures_graphs(choice, device)
    return torch.cuda.Stream(device) if captured else None


def captured_step(
    step: Callable[..., Any], generator: torch.Generator, stream: torch.cuda.Stream | None, ranks: Ranks
) -> Callable[..., Any]:
    """A training step, captured and replayed as a CUDA graph if there is a `capture_stream`."""
    eager_calls = EAGER_CALLS_OF_REPLICAS if ranks.count > 1 else EAGER_CALLS
    return Captured(step, [generator], eager_calls, stream) if stream else step


def _wanted(choice: str, device: torch.device) -> bool:
    if choice == "off" or (choice == "auto" and device.type != "cuda"):
        return False
    missing = _missing(device)
    if missing and choice == "on":
        raise UserError(f"--compile on: {missing}: install it, or use --compile off")
    return not missing


def _missing(device: torch.device) -> str | None:
    """What PyTorch's compiler needs for this device and does not find, in words."""
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        return "there is no C++ compiler"
    if not Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").is_file():
        return "there is no Python.h, of Python's development files (Debian: python3-dev)"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton is missing"
    return None
