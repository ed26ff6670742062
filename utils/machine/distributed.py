"""The processes that torchrun starts: what they sum, gather and agree on, and how they end when one of them fails."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from hparams import launch
from hparams.errors import RunError, UserError
from models.parts import BatchPart

T = TypeVar("T")

_SETTLE_S = 0.2
_POLL_S = 0.05
_ASK_S = 0.25
_GRACE_S = 2.0  # how long processes that lost the others wait for those that can still speak


@dataclass(frozen=True)
class Ranks:
    """This process among those that run the script together. What sends something is called by all of them.

    With one process nothing is sent or copied.
    """

    rank: int = 0
    count: int = 1
    control: dist.ProcessGroup | None = None  # for what lies on the CPU; None: the default group

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files, log and dashboard."""
        return self.rank == 0

    @property
    def nccl(self) -> bool:
        """Whether what lies on the device is sent by NCCL."""
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
        if self.count == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total, group=self._group(tensor))
        return total

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

    def gather_rows(self, rows: Tensor, most: int) -> Tensor:
        """The rows [b,…] of all processes, in their order: `most` of each, but of the last that have any.

        What follows these rows, up to [count·most,…], is nothing.
        """
        if self.count == 1:
            return rows
        return self.gather(torch.cat([rows, rows.new_zeros((most - len(rows), *rows.shape[1:]))]))

    def gather_objects(self, thing: T) -> list[T]:
        """A small object of every process, in their order."""
        if self.count == 1:
            return [thing]
        things: list[Any] = [None] * self.count
        dist.all_gather_object(things, thing, group=self.control)
        return things

    def agree(self, *numbers: int) -> tuple[int, ...]:
        """The largest of the processes' numbers, one by one. Devices are not waited for."""
        if self.count == 1:
            return numbers
        shared = torch.tensor(numbers)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.control)
        return tuple(shared.tolist())

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, on all of them."""
        if self.count == 1:
            return make()
        made = [make() if self.first else None]
        dist.broadcast_object_list(made, src=0, group=self.control)
        return cast(T, made[0])

    def _group(self, tensor: Tensor) -> dist.ProcessGroup | None:
        return self.control if tensor.device.type == "cpu" else None

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            self.agree(0)


ALONE = Ranks()


class Replica(Protocol):
    """A module whose gradients are averaged over processes when a backward pass through it ends."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Leave the gradients of passes in this block to the next one outside."""


class _Alone:
    """A module as a `Replica` of which there is one."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._module(*args, **kwargs)

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def replicate(
    module: nn.Module, ranks: Ranks, *, compress: bool = False, stream: torch.cuda.Stream | None = None
) -> Replica:
    """A module whose gradients are averaged over the processes while its backward pass goes on.

    Parameters without `requires_grad` are left out. Weights and buffers start as those of the first process.
    compress: send gradients as bfloat16, at half the bytes. stream: on which it will run; None: the current one.
    """
    if ranks.count == 1:
        return _Alone(module)
    # CPUs say it of 1×1 kernels, once a process: the strides differ, and what they mean does not.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    with _on(stream) if stream else contextlib.nullcontext():  # there gradients will be accumulated
        parallel = DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)
    if compress:
        parallel.register_comm_hook(None, bf16_compress_hook)
    return parallel


@contextlib.contextmanager
def _on(stream: torch.cuda.Stream) -> Iterator[None]:
    """On a stream, in order with the current one."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


@contextlib.contextmanager
def joined(device: torch.device, *, backend: str, timeout_s: int) -> Iterator[Ranks]:
    """Join the processes that torchrun started, or be alone without it; `device` becomes the current one.

    backend: `nccl` or `gloo` for tensors on `device`; `auto` for nccl where every process has a GPU of its own.
    timeout_s: how long one process waits for another. When one fails, the others end as soon as they miss it. Each that
    fails by an error of its own says so; of those that fail alike, one speaks.

    Raises:
        UserError: there is no GPU for the backend.
        RunError: others failed without a word or do not answer; the line names them.
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
        board, ranks = _join(device, backend, timedelta(seconds=timeout_s))
    except (dist.DistError, RuntimeError) as error:
        raise RunError(f"could not join the other processes: {_short(error)}") from None
    try:
        yield ranks
        ranks.wait()
    except Exception as error:
        board.close()
        # torchrun asks processes to end as soon as it misses one: first they say what happened
        with contextlib.suppress(ValueError):  # other threads than the first get no signals
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if _lost_contact(error):
            raise _told_by_others(board, timeout_s) from None
        alone = board.claim_line(f"{type(error).__name__}: {error}")
        board.leave()
        if not alone:
            raise SystemExit(1) from None
        raise
    board.close()
    # gloo's thread needs the interpreter to let go of the last message, and is joined without giving it up
    time.sleep(_SETTLE_S)
    dist.destroy_process_group()


def pick_backend(device: torch.device, name: str) -> str:
    """`auto` resolved for this machine: nccl needs a GPU for each process."""
    if name != "auto":
        return name
    return "nccl" if device.type == "cuda" and launch.local_processes() <= torch.cuda.device_count() else "gloo"


def _join(device: torch.device, backend: str, wait: timedelta) -> tuple[_Board, Ranks]:
    rank, count = launch.rank(), launch.processes()
    store, _, _ = next(iter(dist.rendezvous("env://", timeout=wait)))
    store = dist.PrefixStore(_meet(store, rank, count, wait), store)
    backend = _common_backend(store, rank, count, pick_backend(device, backend))
    control = None
    if backend == "gloo":
        dist.init_process_group("gloo", timeout=wait, store=store, rank=rank, world_size=count)
    else:
        # NCCL cannot say who is missing, and ends the process: gloo, which meets every few steps, gives up before it.
        dist.init_process_group(backend, timeout=2 * wait, store=store, rank=rank, world_size=count, device_id=device)
        control = dist.new_group(backend="gloo", timeout=wait)
    return _Board(store, rank, count), Ranks(rank, count, control)


def _meet(store: dist.Store, rank: int, count: int, wait: timedelta) -> str:
    """Wait until all processes are here; a name of this start, the same on all of them and no other's.

    torchrun's store outlives its restarts, which each machine counts for itself: no number tells them apart. The first
    process names the start, and the others answer. A name that had all its answers before this process gave one belongs
    to processes that are gone, as do the addresses that they left.

    Raises:
        DistError, RuntimeError: some have not come in time.
    """
    late = f"within --dist_timeout {wait.total_seconds():.0f}"
    if rank == 0:
        name = uuid.uuid4().hex
        store.set("start", name)
        others = {other: f"{name}/{other}" for other in range(1, count)}
        try:
            store.wait(list(others.values()), wait)
        except dist.DistStoreError:
            missing = ", ".join(str(other) for other, key in others.items() if not store.check([key]))
            raise RuntimeError(f"rank {missing} did not start {late}") from None
        store.set(f"{name}/complete", "")
        return name
    answered, end = "", time.monotonic() + wait.total_seconds()
    while time.monotonic() < end:
        if store.check(["start"]):
            name = store.get("start").decode()
            complete = store.check([f"{name}/complete"])
            if complete and name == answered:
                return name
            if not complete and name != answered:
                store.set(f"{name}/{rank}", "")
                answered = name
        time.sleep(_POLL_S)
    raise RuntimeError(f"rank 0 did not start, or misses others, {late}")


def _common_backend(store: dist.Store, rank: int, count: int, own: str) -> str:
    """nccl where all processes of one start would take it, else gloo: `auto` asks each machine for itself."""
    store.set(f"backend/{rank}", own)
    return "nccl" if {store.get(f"backend/{other}") for other in range(count)} == {b"nccl"} else "gloo"


class _Board:
    """Where processes of one start leave word for each other after they lost contact: torchrun's own store.

    A process that is gone is missed at once by those that talk to it, and by others only when those end in turn. So a
    thread of each, which its first one does not hold up, answers who is there.
    """

    def __init__(self, store: dist.Store, rank: int, count: int) -> None:
        self._store = dist.PrefixStore("end", store)
        self.rank = rank
        self.count = count
        self._store.set(f"host/{rank}", socket.gethostname())
        self._closed = threading.Event()
        threading.Thread(target=self._answer, name="presence", daemon=True).start()

    def close(self) -> None:
        """Answer no more: the store may end, and this process speaks for itself."""
        self._closed.set()

    def _answer(self) -> None:
        with contextlib.suppress(dist.DistError, RuntimeError):
            while not self._closed.wait(_ASK_S):
                if self._store.check(["asked"]):
                    self._store.set(f"there/{self.rank}", "")
                    return

    def claim(self) -> bool:
        """Whether this process is the first to say what happened."""
        with contextlib.suppress(dist.DistError, RuntimeError):
            return self._store.add("claims", 1) == 1
        return True

    def claim_line(self, line: str) -> bool:
        """Whether this process is the first to say this line about an error of its own."""
        self.claim()  # those that only lost the others are silent then
        with contextlib.suppress(dist.DistError, RuntimeError):
            return self._store.add(f"line/{hashlib.sha256(line.encode(errors='replace')).hexdigest()}", 1) == 1
        return True

    def leave(self) -> None:
        """Say that this process needs the store no more. Rank 0 waits for the others if it hosts the store itself.

        torchrun's agent would host it; without one the store ends with rank 0.
        """
        with contextlib.suppress(dist.DistError, RuntimeError):
            self._store.set(f"left/{self.rank}", "")
            if self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                self._store.wait([f"left/{rank}" for rank in range(self.count)], timedelta(seconds=_GRACE_S))

    def silent(self) -> list[str] | None:
        """The processes that give no sign of life within `_GRACE_S`; None where one has said what happened.

        Where all are there, those that have not lost the others: they hang.
        """
        with contextlib.suppress(dist.DistError, RuntimeError):
            for sign in ("asked", f"there/{self.rank}", f"lost/{self.rank}"):
                self._store.set(sign, "")
            end = time.monotonic() + _GRACE_S
            while time.monotonic() < end:
                if self._store.check(["claims"]):
                    return None
                time.sleep(_POLL_S)
            if not self.claim():
                return None
            gone, hanging = (
                [rank for rank in range(self.count) if not self._store.check([f"{sign}/{rank}"])]
                for sign in ("there", "lost")
            )
            return [f"rank {rank} on {self._store.get(f'host/{rank}').decode()}" for rank in gone or hanging]
        return None


def _told_by_others(board: _Board, timeout_s: int) -> BaseException:
    silent = board.silent()
    if silent is None:
        return SystemExit(1)
    who = ", ".join(silent) or "another process"
    return RunError(
        f"{who} ended without a word or gave no answer within --dist_timeout {timeout_s}; "
        "what was saved is whole: --resume, or an experiment's same command, goes on from there"
    )


def _lost_contact(error: Exception) -> bool:
    """Whether an error only says that other processes are gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
