"""Batches of images for training and evaluation, read in this process or by DataLoader's workers."""

from __future__ import annotations

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
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from hparams import launch
from hparams.errors import RunError, UserError
from utils.data.bad_images import Report
from utils.data.batch_order import BatchOrder
from utils.data.batch_reader import Batch, BatchReader, ReadError, WorkerResult
from utils.data.datasets import ImageData
from utils.machine.progress import tell_duration
from utils.machine.signals import Stopped, heed_parent_alone, holding_sigterm, raise_if_stopped

# How workers start; None is the platform's own way. Forked, they share the list of images, the imported torch, and the
# parent's handlers of signals.
START_METHOD = "fork" if sys.platform == "linux" else None
LONGEST_WAIT_S = 1800.0  # for a batch, after which the workers count as hung
_POLL_S = 1.0
_STUCK_S = 10.0  # a longer wait is more than one slow batch
_PREFETCHED = 2  # batches per worker that wait for the main process


def train_batches(
    data: ImageData,
    order: BatchOrder,
    start_step: int,
    num_workers: int,
    pin_memory: bool = False,
    start_method: str | None = None,
    bad: Report | None = None,
) -> Iterator[torch.Tensor]:
    """Endless batches for the steps start_step, start_step + 1, …: uint8 [B, 3, S, S], values 0..255.

    The number of workers changes the speed, never the batches, and no global random stream is touched.
    start_method: fork, spawn or forkserver; None: `START_METHOD`. bad: told of images that cannot be read, each of
    which has a stand-in, always the same one. What the file system fails to give is tried again for a while.

    Raises:
        UserError: an image cannot be read and there is no `bad` (from the worker too, in one line).
        RunError: the data stay out of reach, or the workers died or hang.
        Stopped: a signal asked to stop while a batch was waited for.
        ValueError: `order` is not for a data set of this size.
    """
    if order.n != len(data):
        raise ValueError(f"the order is for {order.n} images, the data set has {len(data)}")
    batches, batch_size = map(order.indices, count(start_step)), order.batch_size // order.part.count
    return _load(data, batches, batch_size, num_workers, bad, pin_memory, start_method)


def eval_batches(
    data: ImageData,
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


def _load(
    data: ImageData,
    batches: Iterable[np.ndarray],
    batch_size: int,
    num_workers: int,
    bad: Report | None,
    pin_memory: bool = False,
    start_method: str | None = None,
) -> Iterator[torch.Tensor]:
    reader = BatchReader(data)
    if num_workers:
        read = _read_by_workers(reader, batches, batch_size, num_workers, start_method or START_METHOD)
    else:
        read = map(reader.read_patiently, batches)
    for stacked, unreadable in read:
        if unreadable:
            if bad is None:
                raise UserError(next(iter(unreadable.values())))
            bad(unreadable, len(data))
        images = torch.from_numpy(stacked)
        # A copy: the workers write a later batch to the same memory.
        yield images.pin_memory() if pin_memory else images.clone() if num_workers else images


def _read_by_workers(
    reader: BatchReader, batches: Iterable[np.ndarray], batch_size: int, num_workers: int, start_method: str | None
) -> Iterator[Batch]:
    """The batches in their order; the images of each are there until the next is asked for."""
    # The first image tells the size, and workers inherit the key list that reading it made.
    first, _ = reader.read_patiently(np.zeros(1, np.int64))
    if start_method == "fork":
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
        # Workers may be more than processors: they wait for disks too.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader = DataLoader(
            reader,
            batch_size=None,
            sampler=numbered(),
            num_workers=num_workers,
            prefetch_factor=_PREFETCHED,
            timeout=_POLL_S,
            multiprocessing_context=start_method,
            worker_init_fn=heed_parent_alone,
            collate_fn=_as_read,
            generator=torch.Generator(),  # the loader draws a seed at its start: not from the global stream
        )
        iterator = _start(loader)
    if reader.slots is not None:
        # DataLoader's SIGCHLD handler would raise in the middle of a training step when a worker dies; `_results`
        # notices it as well. Without shared memory a dying worker may leave half a batch in the pipe, which only the
        # handler notices.
        _ignore_deaths(iterator)
    for result in _results(iterator):
        number, indices = handed_out.popleft()
        if isinstance(result, UserError):
            raise result
        if isinstance(result, ReadError):
            result = reader.read_patiently(indices, result)
        images, unreadable = result
        if isinstance(images, int):
            assert reader.slots is not None
            images = reader.slots[number % len(reader.slots), :images]
        yield images, unreadable


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
    """What the workers read, waited for.

    Raises:
        RunError: a worker died, or none has given a batch for `LONGEST_WAIT_S`.
        Stopped: a signal asked to stop during a long wait.
    """
    began = time.monotonic()
    while True:
        try:
            yield next(iterator)
            began = time.monotonic()
            continue
        except StopIteration:
            return
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
            _ignore_deaths(iterator)
            for worker in iterator._workers:  # SIGTERM does not end them, and Python joins them when this process exits
                worker.kill()
            raise


def _ignore_deaths(iterator: Any) -> None:
    """Keep DataLoader's SIGCHLD handler from raising an error when one of these workers dies."""
    if iterator._worker_pids_set:
        signal_handling._remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False


def _dead(iterator: Any) -> str:
    """Which processes that read images died, in words."""
    for worker in iterator._workers:
        worker.join(0.5)  # one that is just dying still counts as alive
    dead = [f"{worker.pid} (exit code {worker.exitcode})" for worker in iterator._workers if not worker.is_alive()]
    return f"the process {' and '.join(dead) or 'of a worker'}, which read images, died; too little memory may be why"


def _as_read(result: Any) -> Any:
    return result
