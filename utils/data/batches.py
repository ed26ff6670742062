"""Batches of images for training and evaluation, read in this process or by DataLoader's workers.

Other images stand in for unreadable ones, and what the file system fails to give is tried again for a while.
"""

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
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from hparams import launch
from hparams.errors import RunError, UserError
from utils.data.bad_images import Report
from utils.data.batch_order import BatchOrder
from utils.data.datasets import ImageData
from utils.data.images import BadImageError
from utils.machine.progress import tell_duration
from utils.machine.seeding import derive_seed
from utils.machine.signals import Stopped, heed_parent_alone, holding_sigterm, raise_if_stopped

# How workers start; None is the platform's own way. Forked, they share the list of images, torch, and signal handlers.
START_METHOD = "fork" if sys.platform == "linux" else None
LONGEST_WAIT_S = 1800.0  # for a batch, after which the workers count as hung
# For how many seconds a failed read is retried: while the image's folder cannot be read, as when the server of its
# network disk restarts; and while the folder can be read and only the image fails.
OUT_OF_REACH_S, UNREADABLE_S, BETWEEN_ATTEMPTS_S = 300.0, 10.0, 1.0
_POLL_S, _STUCK_S = 1.0, 10.0  # a longer wait than `_STUCK_S` is more than one slow batch
_PREFETCHED = 2  # batches per worker that wait for the main process
_STAND_INS = 100  # draws of another image before a batch is given up
_OUR_LIMITS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # errors that say nothing about the data


def train_batches(
    data: ImageData, order: BatchOrder, start_step: int, num_workers: int, pin_memory: bool = False,
    bad: Report | None = None,
) -> Iterator[torch.Tensor]:
    """Endless batches for the steps start_step, start_step + 1, …: uint8 [B, 3, S, S], values 0..255.

    The number of workers changes the speed, never the batches, and no global random stream is touched. `bad` is told of
    images that cannot be read, each of which has a stand-in, always the same one.

    UserError: an image cannot be read and there is no `bad`. RunError: the data stay out of reach, or the workers hang;
    RuntimeError: one died. Stopped: a signal asked to stop meanwhile. ValueError: `order` has not the size of the data.
    """
    if order.n != len(data):
        raise ValueError(f"the order is for {order.n} images, the data set has {len(data)}")
    batches = map(order.indices, count(start_step))
    return _load(data, batches, order.batch_size // order.part.count, num_workers, bad, pin_memory)


def eval_batches(
    data: ImageData, batch_size: int, num_workers: int, indices: Sequence[int] | np.ndarray | None = None,
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


class ReadError(Exception):
    """The file system did not give an image, for now. args: its name, why, and whether its folder can be read."""


Batch = tuple[np.ndarray, dict[str, str]]  # uint8 [b,3,S,S]; and the images that others stand in for, name → reason
# Of a worker. None: the images are in shared memory, or there are none because of an error.
WorkerResult = tuple[np.ndarray | None, dict[str, str] | UserError | ReadError]


def stand_in(i: int, attempt: int, n: int) -> int:
    """Which of n images is taken for image i when `attempt` others have been tried: i itself first."""
    return derive_seed("stand-in", i, attempt) % n if attempt else i


class BatchReader(Dataset[WorkerResult]):
    """Reads batches by the numbers of their images; as a `Dataset`, in DataLoader's workers.

    `slots`: uint8 [slots,B,3,S,S], an anonymous shared mmap that forked workers inherit; batch k goes to slot k mod
    slots. Tensors would need room in /dev/shm, and sockets with short paths. None: images are pickled.
    """

    def __init__(self, data: ImageData) -> None:
        self.data = data
        self.slots: np.ndarray | None = None
        self.given_up: set[str] = set()  # names of images that the file system did not give within `UNREADABLE_S`

    def __getitem__(self, batch: tuple[int, np.ndarray]) -> WorkerResult:
        """In a worker. Returns errors that users or the file system cause: DataLoader would add pages of traceback."""
        number, indices = batch
        try:
            images, bad = self.read(indices)
        except (UserError, ReadError) as error:
            return None, error
        if self.slots is None:
            return images, bad
        self.slots[number % len(self.slots), : len(images)] = images
        return None, bad

    def read(self, indices: np.ndarray) -> Batch:
        """One attempt. ReadError; UserError: hardly any image can be read, or an LMDB is damaged."""
        bad: dict[str, str] = {}
        return np.stack([self._image(int(i), bad) for i in indices]), bad

    def read_patiently(self, indices: np.ndarray, error: ReadError | None = None) -> Batch:
        """Reads a batch; tries again for a while if the file system fails. error: of an attempt that was made.

        UserError as of `read`; RunError: the data stay out of reach; Stopped: a signal asked to stop meanwhile.
        """
        waiting_for, began = None, time.monotonic()
        while True:
            if error and error.args[0] not in self.given_up:
                raise_if_stopped()
                name, why, in_reach = error.args
                if name != waiting_for:  # on stderr: with several processes, each reports its own disk
                    waiting_for, began = name, time.monotonic()
                    print(f"WARNING: {name} cannot be read ({why}): trying again for a while", file=sys.stderr)
                waited = time.monotonic() - began
                if in_reach and waited > UNREADABLE_S:
                    self.given_up.add(name)
                elif waited > OUT_OF_REACH_S:
                    raise RunError(
                        f"{name} cannot be read ({why}), nor could its folder for {tell_duration(OUT_OF_REACH_S)}: "
                        "bring the data back; then --resume, or an experiment's same command, goes on"
                    )
                else:
                    time.sleep(BETWEEN_ATTEMPTS_S)
            try:
                return self.read(indices)
            except ReadError as failed:
                error = failed

    def _image(self, i: int, bad: dict[str, str]) -> np.ndarray:
        for attempt in range(_STAND_INS):
            j = stand_in(i, attempt, len(self.data))
            try:
                return self.data[j]
            except BadImageError as error:
                bad[self.data.source(j)] = str(error)
            except OSError as error:
                if error.errno in _OUR_LIMITS:
                    raise
                name = str(error.filename or self.data.source(j))
                if name not in self.given_up:
                    raise ReadError(name, error.strerror or str(error), self.data.in_reach(j)) from None
                bad[name] = f"cannot read {name} ({error.strerror}): replace or remove it"
        raise UserError(f"hardly any image can be read; {next(reversed(bad.values()))}")


def _load(
    data: ImageData, batches: Iterable[np.ndarray], batch_size: int, workers: int, bad: Report | None, pin: bool = False
) -> Iterator[torch.Tensor]:
    reader = BatchReader(data)
    read = _read_by_workers(reader, batches, batch_size, workers) if workers else map(reader.read_patiently, batches)
    for stacked, unreadable in read:
        if unreadable:
            if bad is None:
                raise UserError(next(iter(unreadable.values())))
            bad(unreadable, len(data))
        images = torch.from_numpy(stacked)
        if pin:
            images = images.pin_memory()
        elif workers:  # a copy, as they write a later batch to the same memory
            images = images.clone()
        yield images


def _read_by_workers(
    reader: BatchReader, batches: Iterable[np.ndarray], batch_size: int, num_workers: int
) -> Iterator[Batch]:
    """The batches in their order; the images of each are there until the next is asked for."""
    # The first image tells the size, and workers inherit the list of keys that reading it made.
    first, _ = reader.read_patiently(np.zeros(1, np.int64))
    if START_METHOD == "fork":
        # One slot for each batch that DataLoader has handed out, and one that this process copies from: batch
        # k + slots is handed out after batch k was copied.
        shape = (num_workers * _PREFETCHED + 1, batch_size, *first.shape[1:])
        reader.slots = np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)
    handed_out: deque[tuple[int, np.ndarray]] = deque()  # that DataLoader took and has not returned

    def numbered() -> Iterator[tuple[int, np.ndarray]]:
        for batch in enumerate(batches):
            handed_out.append(batch)
            yield batch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than processors, which may be
        loader = DataLoader(
            reader, batch_size=None, sampler=numbered(), num_workers=num_workers, prefetch_factor=_PREFETCHED,
            timeout=_POLL_S, multiprocessing_context=START_METHOD, worker_init_fn=heed_parent_alone,
            collate_fn=tuple,  # which leaves a worker's result as it is
            generator=torch.Generator(),  # the loader draws a seed at its start: not from the global stream
        )
        iterator = _start(loader)
    if reader.slots is not None:
        # DataLoader's SIGCHLD handler would raise in the middle of a training step when a worker dies; `_results` does
        # too. Without shared memory a dying worker may leave half a batch in the pipe, which only the handler notices.
        _ignore_deaths(iterator)
    for images, met in _results(iterator):
        number, indices = handed_out.popleft()
        if isinstance(met, UserError):
            raise met
        if isinstance(met, ReadError):
            images, met = reader.read_patiently(indices, met)
        elif images is None:
            assert reader.slots is not None
            images = reader.slots[number % len(reader.slots), : len(indices)]
        yield images, met


def _start(loader: DataLoader[Any]) -> Any:
    """The loader's iterator, with its workers."""
    try:
        with holding_sigterm():
            return iter(loader)
    except OSError as error:  # of a limit of processes or of files
        failure = error
    with redirect_stderr(StringIO()):  # the iterator, half made, complains as it goes, with the traceback that holds it
        failure.__traceback__ = None
    raise failure


def _results(iterator: Any) -> Iterator[WorkerResult]:
    """What the workers read, waited for. RunError, RuntimeError and Stopped as of `train_batches`."""
    began = time.monotonic()
    while True:
        try:
            yield next(iterator)
            began = time.monotonic()
            continue
        except StopIteration:
            return
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
            _ignore_deaths(iterator)
            for worker in iterator._workers:  # SIGTERM does not end them, and Python joins them when this process exits
                worker.kill()
            raise


def _ignore_deaths(iterator: Any) -> None:
    """Keep DataLoader's SIGCHLD handler from raising an error when one of these workers dies."""
    if iterator._worker_pids_set:
        signal_handling._remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False
