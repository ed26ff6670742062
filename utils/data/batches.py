"""Batches of images in an order that is a function of the seed alone, from any step on."""

from __future__ import annotations

import errno
import math
import mmap
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from hparams import launch
from hparams.errors import RunError, UserError
from models.parts import WHOLE, BatchPart
from utils.data.bad_images import Report
from utils.data.images import BadImageError
from utils.machine.progress import tell_duration
from utils.machine.seeding import derive_seed
from utils.machine.signals import Stopped, heed_parent_alone, holding_sigterm, raise_if_stopped

T = TypeVar("T")


# How workers start; None is the platform's own way. Forked, they share the list of images and the imported torch, and
# leave signals to their parent. On Linux Python 3.14 would fork them from a server, which shares neither: a SIGUSR1 to
# all processes of a run, for example, would end them.
START_METHOD = "fork" if sys.platform == "linux" else None
# Draws of another image before a batch is given up.
ATTEMPTS = 100

# For how many seconds a failed read is retried: while the image's folder cannot be read, as when the server of its
# network disk restarts; and while the folder can be read and only the image fails.
OUT_OF_REACH_S, UNREADABLE_S = 300.0, 10.0
LONGEST_WAIT_S = 1800.0  # for a batch, after which the workers count as hung
_POLL_S = 1.0
_STUCK_S = 10.0  # a longer wait is more than one slow batch
_PREFETCHED = 2  # batches per worker that wait for the main process
# Errors that say nothing about the data: too many open files, too little memory.
_OUR_LIMITS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Images(Protocol):
    """What batches are made of: uint8 arrays [3, S, S], as `utils.data.datasets.ImageData` gives them."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> np.ndarray: ...

    def source(self, i: int, /) -> str: ...

    def in_reach(self, i: int, /) -> bool: ...


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
    With `bad`, which is told, an image that cannot be read has a stand-in, always the same one. What the file system
    fails to give is tried again for a while.

    Raises:
        UserError: an image cannot be read and there is no `bad` (from the worker too, in one line).
        RunError: the data stay out of reach, or the workers died or hang.
        Stopped: a signal asked to stop while a batch was waited for.
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


class _Unread(Exception):  # noqa: N818
    """The file system did not give an image, for now: its name, why, and whether its folder can be read."""

    def __init__(self, name: str, reason: str, in_reach: bool) -> None:
        super().__init__(name, reason, in_reach)
        self.name, self.reason, self.in_reach = name, reason, in_reach


# A worker's result: the batch's images uint8 [b,3,S,S], or their number b where the images are in shared memory; and
# the unreadable images that others stand in for, name → reason. Or the error that left the batch without images.
_Result = tuple[np.ndarray | int, dict[str, str]] | UserError | _Unread


class _Stacks(Dataset[_Result]):
    """Maps a batch's number and indices to its images.

    Errors that users or the file system cause are returned: DataLoader would turn an exception into a page of
    traceback.

    Attributes:
        slots: uint8 [slots,B,3,S,S], an anonymous shared mmap that forked workers inherit; batch k is written to slot
            k mod slots. Tensors would be passed by file descriptor instead, over a socket in the temporary folder,
            whose path may be too long for one, and would need room in /dev/shm. None: images are pickled.
        given_up: names of images that the file system did not give within `UNREADABLE_S`.
    """

    def __init__(self, data: Images) -> None:
        self.data = data
        self.slots: np.ndarray | None = None
        self.given_up: set[str] = set()

    def __getitem__(self, batch: tuple[int, np.ndarray]) -> _Result:
        number, indices = batch
        result = self.stack(indices)
        if self.slots is None or not isinstance(result, tuple):
            return result
        images, bad = result
        self.slots[number % len(self.slots), : len(images)] = images
        return len(images), bad

    def stack(self, indices: np.ndarray) -> tuple[np.ndarray, dict[str, str]] | UserError | _Unread:
        """The batch in this process's private memory."""
        bad: dict[str, str] = {}
        try:
            return np.stack([self._image(int(i), bad) for i in indices]), bad
        except UserError as error:
            return UserError(str(error))
        except _Unread as error:
            return error

    def _image(self, i: int, bad: dict[str, str]) -> np.ndarray:
        for attempt in range(ATTEMPTS):
            j = stand_in(i, attempt, len(self.data))
            try:
                return self.data[j]
            except BadImageError as error:
                bad[self.data.source(j)] = str(error)
            except OSError as error:
                if error.errno in _OUR_LIMITS:
                    raise
                name = self._name(j, error)
                if name not in self.given_up:
                    raise _Unread(name, error.strerror or str(error), self.data.in_reach(j)) from None
                bad[name] = f"cannot read {name} ({error.strerror}): replace or remove it"
        raise UserError(f"hardly any image can be read; {bad[self.data.source(i)]}")

    def _name(self, i: int, error: OSError) -> str:
        """An image's name; the file that the error is about where an LMDB's keys cannot be read either."""
        try:
            return self.data.source(i)
        except OSError:
            return str(error.filename)


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
    start_method = start_method or START_METHOD if num_workers else None
    if num_workers:
        # The first image tells the size, and workers inherit the key list that reading it made.
        first = _insist(stacks, np.zeros(1, np.int64))
        if start_method == "fork" and isinstance(first, tuple):
            # One slot for each batch that DataLoader has handed out, and one that this process copies from: batch
            # k + slots is handed out after batch k was copied.
            shape = (num_workers * _PREFETCHED + 1, batch_size, *first[0].shape[1:])
            stacks.slots = np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)
    sent = _Numbered(batches)
    with warnings.catch_warnings():
        # Workers may be more than processors: they wait for disks too.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader = DataLoader(
            stacks,
            batch_size=None,
            sampler=sent,
            num_workers=num_workers,
            prefetch_factor=_PREFETCHED if num_workers else None,
            timeout=_POLL_S if num_workers else 0,
            multiprocessing_context=start_method,
            worker_init_fn=heed_parent_alone,
            collate_fn=_unchanged,
            generator=torch.Generator(),  # the loader draws a seed at its start: not from the global stream
        )
        iterator = _begun(loader)
    if stacks.slots is not None:
        # DataLoader's SIGCHLD handler would raise in the middle of a training step when a worker dies; `_next` notices
        # it as well. Without shared memory a dying worker may leave half a batch in the pipe, which only it notices.
        _ignore_deaths(iterator)
    while True:
        try:
            result = _next(iterator)
        except StopIteration:
            return
        number, indices = sent.waiting.popleft()
        if isinstance(result, _Unread):
            result = _insist(stacks, indices, result)
        if isinstance(result, UserError):
            raise result
        stacked, unreadable = result
        if unreadable:
            if bad is None:
                raise UserError(next(iter(unreadable.values())))
            bad(unreadable, len(data))
        if isinstance(stacked, int):
            assert stacks.slots is not None
            images = torch.from_numpy(stacks.slots[number % len(stacks.slots), :stacked])
            yield images.pin_memory() if pin_memory else images.clone()
        else:
            images = torch.from_numpy(stacked)
            yield images.pin_memory() if pin_memory else images


class _Numbered:
    """Numbers the batches' indices. `waiting` holds the batches that DataLoader took and has not returned."""

    def __init__(self, batches: Iterable[np.ndarray]) -> None:
        self._batches = batches
        self.waiting: deque[tuple[int, np.ndarray]] = deque()

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        for batch in enumerate(self._batches):
            self.waiting.append(batch)
            yield batch


def _begun(loader: DataLoader[Any]) -> Iterator[_Result]:
    """The loader's iterator, with its workers."""
    try:
        with holding_sigterm():
            return iter(loader)
    except OSError as error:  # of a limit of processes or of files
        failure = error
    with redirect_stderr(StringIO()):  # the iterator, half made, complains as it goes, with the traceback that holds it
        failure.__traceback__ = None
    raise failure


def _next(iterator: Iterator[_Result]) -> _Result:
    """Waits for the next batch.

    Raises:
        StopIteration: there is none.
        RunError: a worker died, or none has given a batch for `LONGEST_WAIT_S`.
        Stopped: a signal asked to stop during a long wait.
    """
    began = time.monotonic()
    while True:
        try:
            return next(iterator)
        except (ConnectionError, EOFError) as error:  # how a worker's sudden death may show
            advice = "lower --num_workers or --batch_size, then go on with --resume"
            raise RunError(f"{_dead(iterator)}: {advice}") from error
        except RuntimeError as error:
            if "DataLoader timed out" not in str(error):
                raise
        waited = time.monotonic() - began
        try:
            # While batches still come, all ranks agree on a signal after a step, and save together.
            if launch.processes() == 1 or waited > _STUCK_S:
                raise_if_stopped()
            if waited > LONGEST_WAIT_S:
                raise RunError(
                    f"no batch of images came within {tell_duration(LONGEST_WAIT_S)}, as the processes that read them "
                    "hang: see whether the disk of the data answers; then --resume, or an experiment's same command, "
                    "goes on"
                )
        except (RunError, Stopped):
            _kill_workers(iterator)
            raise


def _kill_workers(iterator: Any) -> None:
    """Kill workers that hang: SIGTERM does not end them, and Python joins them when this process exits."""
    _ignore_deaths(iterator)
    for worker in iterator._workers:
        worker.kill()


def _ignore_deaths(iterator: Any) -> None:
    """Keep DataLoader's SIGCHLD handler from raising an error when one of these workers dies."""
    if iterator._worker_pids_set:
        signal_handling._remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False


def _insist(
    stacks: _Stacks, indices: np.ndarray, unread: _Unread | None = None
) -> tuple[np.ndarray, dict[str, str]] | UserError:
    """Stack a batch, trying again for a while if the file system does not give an image. unread: the first failure.

    Raises:
        RunError: the data stay out of reach for `OUT_OF_REACH_S`.
        Stopped: a signal asked to stop meanwhile.
    """
    name, began = None, time.monotonic()
    while True:
        if unread and unread.name not in stacks.given_up:
            raise_if_stopped()
            reason = f"{unread.name} cannot be read ({unread.reason})"
            if name != unread.name:
                name, began = unread.name, time.monotonic()
                # On stderr: with several processes, each reports its own disk.
                print(f"WARNING: {reason}: trying again for a while", file=sys.stderr)
            waited = time.monotonic() - began
            if unread.in_reach and waited > UNREADABLE_S:
                stacks.given_up.add(unread.name)
            elif waited > OUT_OF_REACH_S:
                raise RunError(
                    f"{reason}, nor could its folder for {tell_duration(OUT_OF_REACH_S)}: bring the data back; then "
                    "--resume, or an experiment's same command, goes on"
                )
            else:
                time.sleep(_POLL_S)
        result = stacks.stack(indices)
        if not isinstance(result, _Unread):
            return result
        unread = result


def _dead(iterator: Any) -> str:
    """Which processes that read images died, in words."""
    for worker in iterator._workers:
        worker.join(0.5)  # one that is just dying still counts as alive
    dead = [f"{worker.pid} (exit code {worker.exitcode})" for worker in iterator._workers if not worker.is_alive()]
    return f"the process {' and '.join(dead) or 'of a worker'}, which read images, died; too little memory may be why"


def _unchanged(batch: T) -> T:
    return batch
