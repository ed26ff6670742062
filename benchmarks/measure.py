"""Timing side by side, the machine's ceiling, memory peaks, and what one row of the results holds."""

from __future__ import annotations

import ctypes
import functools
import gc
import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from utils.machine.cuda_graphs import EAGER_CALLS

Run = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Seconds of one unit of work."""

    median: float
    low: float  # fastest
    high: float  # slowest
    repeats: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        return cls(statistics.median(seconds), min(seconds), max(seconds), len(seconds))

    def scaled(self, factor: float) -> Timing:
        """Of `factor` units."""
        return Timing(factor * self.median, factor * self.low, factor * self.high, self.repeats)


@dataclass
class Row:
    """One comparison. `speedup` maps a variant to how many times faster its median is than the baseline's."""

    name: str
    unit: str  # what the seconds are for
    reduced: str  # what is smaller than in the published setting
    target: str  # what is to be reached
    timings: dict[str, Timing] = field(default_factory=dict)
    checks: dict[str, float | bool | str] = field(default_factory=dict)  # of correctness, in the same run
    figures: dict[str, float | str] = field(default_factory=dict)
    baseline: str = "baseline"

    @property
    def speedup(self) -> dict[str, float]:
        if self.baseline not in self.timings:
            return {}
        reference = self.timings[self.baseline].median
        return {name: reference / t.median for name, t in self.timings.items() if name != self.baseline}


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Run, device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def interleave(
    runs: Mapping[str, Run], repeats: int, device: torch.device, warmup: int | None = None, burst: int = 1
) -> dict[str, Timing]:
    """Time each of `runs` in turn, round by round, so that a slow minute of the machine meets all of them.

    Each is done `burst` times without waiting for the device in between, as a training loop does.
    """
    if warmup is None:
        warmup = EAGER_CALLS + 2 if device.type == "cuda" else 1
    for _ in range(warmup):
        for run in runs.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(seconds_of(partial(_repeat, run, burst), device) / burst)
    return {name: Timing.of(values) for name, values in seconds.items()}


def _repeat(run: Run, times: int) -> None:
    for _ in range(times):
        run()


class _FlopCounter(TorchDispatchMode):
    """PyTorch's own counts; its `FlopCounterMode` does not bear `torch.autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            self.total += sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
        elif count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def flops(run: Run) -> int:
    """Floating-point operations of the matrix products and convolutions in `run`, multiplications and additions."""
    with _FlopCounter() as counter:
        run()
    return counter.total


@functools.cache
def gemm_rate(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Best rate of a square product, FLOP/s: the ceiling that utilisation is measured against."""
    size = 8192 if device.type == "cuda" else 2048  # a GPU ends a smaller one before its launch is paid for
    x, y = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    x @ y
    return 2 * size**3 / min(seconds_of(lambda: x @ y, device) for _ in range(repeats))


def peak_memory(run: Run, device: torch.device) -> float:
    """GiB by which `run` raises the memory in use, at its highest."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**30
    if not Path("/proc/self/clear_refs").exists():
        return math.nan
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 2**20


def _status(name: str) -> int:
    """KiB, from the kernel's account of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise KeyError(name)


def growth(sizes: list[float], values: list[float]) -> float:
    """Exponent p of values ∝ sizes^p, by least squares on the logarithms."""
    x, y = ([math.log(value) for value in column] for column in (sizes, values))
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def environment(device: torch.device) -> dict[str, Any]:
    """Hardware and versions."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "command": " ".join(["python -m benchmarks.run", *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "capabilities": sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_average": _lines("/proc/loadavg")[0].split()[:3] if Path("/proc/loadavg").exists() else None,
        "peak_rss_gib": peak_rss_gib(),
    }


def peak_rss_gib() -> float:
    """The most memory that this process has had so far; macOS counts bytes, Linux KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
