"""Batches of images in an order that is a function of the seed alone, from any step on."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hparams.errors import RunError, UserError
from models.parts import WHOLE, BatchPart
from utils.bad_images import Report
from utils.images import BadImageError
from utils.limits import check_shared_memory
from utils.seeding import derive_seed
from utils.signals import heed_parent_alone, holding_sigterm

T = TypeVar("T")


# How workers start; None is the platform's own way. Forked, they share the list of images and the imported torch, and
# leave signals to their parent. On Linux Python 3.14 would fork them from a server, which shares neither: a SIGUSR1 to
# all processes of a run, for example, would end them.
START_METHOD = "fork" if sys.platform == "linux" else None
# Draws of another image before a batch is given up.
ATTEMPTS = 100


class Images(Protocol):
    """What batches are made of: uint8 arrays [3, S, S], as `utils.datasets.ImageData` gives them."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> np.ndarray: ...

    def source(self, i: int, /) -> str: ...


class BatchOrder:
    """Which images make up the batch of a step: a pure function of (n, batch size, seed, step).

    Every epoch is a permutation of its own, drawn from (seed, epoch); what is left at its end and fills no batch is
    dropped. With fewer images than a batch holds, an epoch is one batch, which repeats its permutation to fill up.

    Args:
        n: number of images, at least 1.
        batch_size: images in a batch, at least 1.
        seed: not negative.
        part: which part of every batch `indices` gives, its images in the batch's order.
    """

    def __init__(self, n: int, batch_size: int, seed: int, part: BatchPart = WHOLE) -> None:
        if n < 1 or batch_size < 1 or seed < 0:
            raise ValueError(f"need n ≥ 1, batch_size ≥ 1, seed ≥ 0; got {n}, {batch_size}, {seed}")
        self.n = n
        self.batch_size = batch_size
        self.seed = seed
        self.part = part
        self._epoch = -1
        self._permutation: np.ndarray = np.empty(0, np.int64)

    @property
    def batches_per_epoch(self) -> int:
        return max(1, self.n // self.batch_size)

    def indices(self, step: int) -> np.ndarray:
        """Images of this part of the batch that update number `step` (from 0) sees: int64, values 0..n-1."""
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        epoch, batch = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(self.n)
            self._epoch = epoch
        if self.n < self.batch_size:
            whole = np.resize(self._permutation, self.batch_size)
        else:
            whole = self._permutation[batch * self.batch_size : (batch + 1) * self.batch_size]
        return np.split(whole, self.part.count)[self.part.index].copy()


def train_batches(
    data: Images,
    order: BatchOrder,
    start_step: int,
    num_workers: int,
    pin_memory: bool = False,
    start_method: str | None = None,
    bad: Report | None = None,
) -> Iterator[torch.Tensor]:
    """Endless batches for the steps start_step, start_step + 1, …: uint8 [B, 3, S, S], values 0..255.

    The number of workers changes the speed, never the batches, and no global random stream is touched.
    `start_method` is how workers start: fork, spawn or forkserver (None: see `START_METHOD`).
    With `bad`, which is told, an image that cannot be read has a stand-in, always the same one.

    Raises:
        UserError: an image cannot be read and there is no `bad` (from the worker too, in one line), or the workers
            need more shared memory than there is.
        ValueError: `order` is not for a data set of this size.
    """
    if order.n != len(data):
        raise ValueError(f"the order is for {order.n} images, the data set has {len(data)}")
    return _load(
        data,
        _Steps(order, start_step),
        order.batch_size // order.part.count,
        num_workers,
        bad,
        pin_memory,
        start_method,
    )


def eval_batches(
    data: Images,
    batch_size: int,
    num_workers: int,
    indices: Sequence[int] | np.ndarray | None = None,
    bad: Report | None = None,
) -> Iterator[torch.Tensor]:
    """The images with these `indices` (None: all), once, in order: uint8 [B, 3, S, S].

    The last batch may be smaller. Workers, bad images and errors are as for `train_batches`.
    """
    if batch_size < 1:
        raise ValueError(f"need batch_size ≥ 1, got {batch_size}")
    wanted = np.arange(len(data)) if indices is None else np.asarray(indices, np.int64)
    batches = [wanted[first : first + batch_size] for first in range(0, len(wanted), batch_size)]
    return _load(data, batches, batch_size, num_workers, bad)


class _Steps:
    def __init__(self, order: BatchOrder, start_step: int) -> None:
        self._order = order
        self._start_step = start_step

    def __iter__(self) -> Iterator[np.ndarray]:
        step = self._start_step
        while True:
            yield self._order.indices(step)
            step += 1


def stand_in(i: int, attempt: int, n: int) -> int:
    """Which of n images is taken for image i when `attempt` others have been tried: i itself first."""
    return derive_seed("stand-in", i, attempt) % n if attempt else i


class _Stacks(Dataset[tuple[torch.Tensor, dict[str, str]] | UserError]):
    """Maps a batch's indices to its images, and to what is wrong with those that others stand in for, by name.

    A worker's exception would reach the main process as a page of traceback, so the user's errors come as values.
    """

    def __init__(self, data: Images) -> None:
        self._data = data

    def __getitem__(self, indices: np.ndarray) -> tuple[torch.Tensor, dict[str, str]] | UserError:
        bad: dict[str, str] = {}
        try:
            return torch.from_numpy(np.stack([self._image(int(i), bad) for i in indices])), bad
        except UserError as error:
            return UserError(str(error))

    def _image(self, i: int, bad: dict[str, str]) -> np.ndarray:
        for attempt in range(ATTEMPTS):
            j = stand_in(i, attempt, len(self._data))
            try:
                return self._data[j]
            except BadImageError as error:
                bad[self._data.source(j)] = str(error)
        raise UserError(f"hardly any image can be read; {bad[self._data.source(i)]}")


def _load(
    data: Images,
    batches: Iterable[np.ndarray],
    batch_size: int,
    num_workers: int,
    bad: Report | None,
    pin_memory: bool = False,
    start_method: str | None = None,
) -> Iterator[torch.Tensor]:
    stacks = _Stacks(data)
    if num_workers:
        first = stacks[np.zeros(1, np.int64)]  # so that workers inherit a key list instead of each reading it
        if isinstance(first, tuple):
            check_shared_memory(num_workers, batch_size * first[0].nbytes)
    with warnings.catch_warnings():
        # Workers may be more than processors: they wait for disks too.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader = DataLoader(
            stacks,
            batch_size=None,
            sampler=batches,
            num_workers=num_workers,
            pin_memory=pin_memory,
            multiprocessing_context=start_method or START_METHOD if num_workers else None,
            worker_init_fn=heed_parent_alone,
            collate_fn=_unchanged,
            generator=torch.Generator(),  # the loader draws a seed at its start: not from the global stream
        )
        iterator = _begun(loader)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except (ConnectionError, EOFError) as error:  # how a worker's sudden death may show
            advice = "lower --num_workers or --batch_size, then go on with --resume"
            raise RunError(f"{_dead(iterator)}: {advice}") from error
        if isinstance(batch, UserError):
            raise batch
        images, unreadable = batch
        if unreadable:
            if bad is None:
                raise UserError(next(iter(unreadable.values())))
            bad(unreadable, len(data))
        yield images


def _begun(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's iterator, with its workers."""
    try:
        with holding_sigterm():
            return iter(loader)
    except OSError as error:  # of a limit of processes or of files
        failure = error
    with redirect_stderr(StringIO()):  # the iterator, half made, complains as it goes, with the traceback that holds it
        failure.__traceback__ = None
    raise failure


def _dead(iterator: Any) -> str:
    """Which processes that read images died, in words."""
    for worker in iterator._workers:
        worker.join(0.5)  # one that is just dying still counts as alive
    dead = [f"{worker.pid} (exit code {worker.exitcode})" for worker in iterator._workers if not worker.is_alive()]
    return f"the process {' and '.join(dead) or 'of a worker'}, which read images, died; too little memory may be why"


def _unchanged(batch: T) -> T:
    return batch
