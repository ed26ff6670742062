"""The processes that torchrun starts: how they join, reduce, gather and agree, and how they end if one fails."""

from __future__ import annotations

import hashlib
import signal
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from hparams import launch
from hparams.errors import RunError, UserError
from models.parts import BatchPart
from utils.machine.cuda_graphs import on_stream

T = TypeVar("T")
_SETTLE_S, _POLL_S = 0.2, 0.05
_GRACE_S = 2.0  # until a process that lost the others speaks: all have lost them by then, or torchrun has ended it


@dataclass(frozen=True)
class Ranks:
    """This process among those that run the script together. All call what sends; alone, nothing is sent or copied."""

    rank: int = 0
    count: int = 1
    control: dist.ProcessGroup | None = None  # gloo, for tensors on the CPU, beside NCCL; None: the default group

    @property
    def first(self) -> bool:
        """Whether this is the process that writes log, dashboard, and the files that are no one's share."""
        return self.rank == 0

    @property
    def uses_nccl(self) -> bool:
        """Whether NCCL sends what lies on the device."""
        return self.control is not None

    @property
    def part(self) -> BatchPart:
        """This process's part of a batch."""
        return BatchPart(self.rank, self.count)

    def share(self, n: int) -> range:
        """This process's share of n things: every `count`-th."""
        return range(self.rank, n, self.count)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, in the tensor's own type: float64 for what is reported."""
        if self.count > 1:
            tensor = tensor.detach().clone()
            dist.all_reduce(tensor, group=self._group(tensor))
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over the processes."""
        return tensor if self.count == 1 else self.sum(tensor / self.count)

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors [b,…] of all processes, of one shape, in their order: [count·b,…]."""
        if self.count == 1:
            return tensor
        pieces = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.count)]
        dist.all_gather(pieces, tensor.detach().contiguous(), group=self._group(tensor))
        return torch.cat(pieces)

    def gather_objects(self, thing: T) -> list[T]:
        """A small object of every process, in their order."""
        if self.count == 1:
            return [thing]
        things: list[Any] = [None] * self.count
        dist.all_gather_object(things, thing, group=self.control)
        return things

    def agree(self, *numbers: int) -> tuple[int, ...]:
        """The maximum over the processes of each number, without waiting for devices."""
        if self.count == 1:
            return numbers
        shared = torch.tensor(numbers)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.control)
        return tuple(shared.tolist())

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, broadcast to all."""
        if self.count == 1:
            return make()
        made = [make() if self.first else None]
        dist.broadcast_object_list(made, src=0, group=self.control)
        return cast(T, made[0])

    def _group(self, tensor: Tensor) -> dist.ProcessGroup | None:
        return self.control if tensor.device.type == "cpu" else None

    def wait(self) -> None:
        """Wait until every process is here."""
        self.agree(0)


ALONE = Ranks()


def replicate(
    module: nn.Module, ranks: Ranks, *, compress: bool = False, stream: torch.cuda.Stream | None = None
) -> nn.Module:
    """The module under DDP, which averages gradients during a backward pass, and starts with the first one's weights.

    compress: send gradients as bfloat16, at half the bytes. stream: on which it will run; None: the current one.
    """
    if ranks.count == 1:
        return module
    # On CPUs, of 1×1 kernels, whose strides differ without a meaning.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    with on_stream(stream) if stream else nullcontext():  # there gradients will be accumulated
        parallel = DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)
    if compress:
        parallel.register_comm_hook(None, bf16_compress_hook)
    return parallel


def synced(replica: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """A block for a micro-batch of a `replicate`d module: only the `last` one's backward pass averages gradients."""
    return replica.no_sync() if isinstance(replica, DistributedDataParallel) and not last else nullcontext()


@contextmanager
def joined(device: torch.device, *, backend: str, timeout_s: int) -> Iterator[Ranks]:
    """Join the processes that torchrun started, or be alone without it; `device` becomes the current one.

    backend: `nccl` or `gloo` for tensors on `device`; `auto` for nccl where every process has a GPU of its own.
    timeout_s: how long one process waits for another. When one fails, the others lose contact and end. UserError:
    there is no GPU for the backend. RunError: others ended or do not answer; the line names those that hang.
    SystemExit: status 1, where another process says what happened.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # on which CUDA graphs are captured
    if launch.processes() == 1:
        yield ALONE
        return
    if backend == "nccl" and device.type != "cuda":
        raise UserError("--dist_backend nccl needs a GPU for each process: use gloo")
    try:
        store, ranks = _join(device, backend, timedelta(seconds=timeout_s))
    except (dist.DistError, RuntimeError) as error:
        raise RunError(f"could not join the other processes: {' '.join(str(error).split())[:160]}") from None
    try:
        yield ranks
        ranks.wait()
    except Exception as error:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower()):
            raise _loss(error, store, ranks, timeout_s) from None
        with suppress(ValueError):  # not in the main thread, which alone gets signals
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, if another one ended first: speak all the same
        with suppress(dist.DistError, RuntimeError):  # of processes that fail alike one speaks
            line = hashlib.sha256(f"{type(error).__name__}: {error}".encode(errors="replace")).hexdigest()
            if store.add(f"line/{line}", 1) > 1:
                raise SystemExit(1) from None
        raise
    # destroy_process_group() joins gloo's thread while it holds the GIL, which that thread may need for a last message.
    time.sleep(_SETTLE_S)
    dist.destroy_process_group()


def _join(device: torch.device, backend: str, wait: timedelta) -> tuple[dist.Store, Ranks]:
    rank, count = launch.rank(), launch.processes()
    if backend == "auto":  # nccl needs a GPU for each process
        own_gpu = device.type == "cuda" and launch.local_processes() <= torch.cuda.device_count()
        backend = "nccl" if own_gpu else "gloo"
    store, _, _ = next(iter(dist.rendezvous("env://", timeout=wait)))
    store, backend = _meet(store, rank, count, backend, wait)
    if backend == "gloo":
        dist.init_process_group("gloo", timeout=wait, store=store, rank=rank, world_size=count)
        return store, Ranks(rank, count)
    # NCCL ends the process without a word after its timeout; gloo, which meets every few steps, gives up before it.
    dist.init_process_group(backend, timeout=2 * wait, store=store, rank=rank, world_size=count, device_id=device)
    return store, Ranks(rank, count, dist.new_group(backend="gloo", timeout=wait))


def _meet(store: dist.Store, rank: int, count: int, backend: str, wait: timedelta) -> tuple[dist.Store, str]:
    """Wait for all processes of this start. Returns a part of the store for it alone, and their common backend.

    init_process_group() would read addresses of processes that are gone, as torchrun's store outlives its restarts. So
    rank 0 names the start, and the others answer with their host and backend. A name that had all answers before this
    process gave its own belongs to an earlier start. DistError, RuntimeError: some have not come in time.
    """
    late, answer = f"within --dist_timeout {wait.total_seconds():.0f}", f"{backend} {socket.gethostname()}"
    if rank == 0:
        name = uuid.uuid4().hex
        start, everyone = dist.PrefixStore(name, store), list(map(str, range(count)))
        start.set("0", answer)
        store.set("start", name)
        try:
            start.wait(everyone, wait)
        except dist.DistStoreError:
            missing = ", ".join(other for other in everyone if not start.check([other]))
            raise RuntimeError(f"rank {missing} did not start {late}") from None
        backends = {start.get(other).split()[0] for other in everyone}
        start.set("complete", "nccl" if backends == {b"nccl"} else "gloo")
        return start, start.get("complete").decode()
    answered, end = "", time.monotonic() + wait.total_seconds()
    while time.monotonic() < end:
        if store.check(["start"]):
            name = store.get("start").decode()
            start = dist.PrefixStore(name, store)
            complete = start.check(["complete"])
            if complete and name == answered:
                return start, start.get("complete").decode()
            if not complete and name != answered:
                start.set(str(rank), answer)
                answered = name
        time.sleep(_POLL_S)
    raise RuntimeError(f"rank 0 did not start, or misses others, {late}")


def _loss(error: Exception, store: dist.Store, ranks: Ranks, timeout_s: int) -> BaseException:
    """How a process ends that lost the others: one of each machine names those that do not say so in the store too."""
    what = "lost the other processes, of which one has ended"
    with suppress(dist.DistError, RuntimeError):
        store.set(f"lost/{ranks.rank}", "")
        time.sleep(_GRACE_S)
        missing = [rank for rank in range(ranks.count) if not store.check([f"lost/{rank}"])]
        if missing and "timed out" in str(error).lower():
            who = ", ".join(f"rank {rank} on {store.get(str(rank)).decode().split()[1]}" for rank in missing)
            what = f"{who} gave no answer within --dist_timeout {timeout_s}"
        if store.add(f"lost/{socket.gethostname()}", 1) > 1:
            return SystemExit(1)
    return RunError(f"{what}; what was saved is whole: the same command goes on from there")
