"""Reads one batch of images: stand-ins for unreadable ones, and new attempts where the file system fails."""

from __future__ import annotations

import errno
import sys
import time

import numpy as np
from torch.utils.data import Dataset

from hparams.errors import RunError, UserError
from utils.data.datasets import ImageData
from utils.data.images import BadImageError
from utils.machine.progress import tell_duration
from utils.machine.seeding import derive_seed
from utils.machine.signals import raise_if_stopped

# For how many seconds a failed read is retried: while the image's folder cannot be read, as when the server of its
# network disk restarts; and while the folder can be read and only the image fails.
OUT_OF_REACH_S, UNREADABLE_S = 300.0, 10.0
BETWEEN_ATTEMPTS_S = 1.0
_STAND_INS = 100  # draws of another image before a batch is given up
# Errors that say nothing about the data: too many open files, too little memory.
_OUR_LIMITS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class ReadError(Exception):
    """The file system did not give an image, for now. args: its name, why, and whether its folder can be read."""


Batch = tuple[np.ndarray, dict[str, str]]  # uint8 [b,3,S,S]; and the images that others stand in for, name → reason
# Of a worker. int: number of images b, which are in shared memory. An error left the batch without images.
WorkerResult = Batch | tuple[int, dict[str, str]] | UserError | ReadError


def stand_in(i: int, attempt: int, n: int) -> int:
    """Which of n images is taken for image i when `attempt` others have been tried: i itself first."""
    return derive_seed("stand-in", i, attempt) % n if attempt else i


class BatchReader(Dataset[WorkerResult]):
    """Reads batches by the numbers of their images; as a `Dataset`, in DataLoader's workers.

    Attributes:
        slots: uint8 [slots,B,3,S,S], an anonymous shared mmap that forked workers inherit; batch k goes to slot
            k mod slots. Tensors would need room in /dev/shm, and sockets with short paths. None: images are pickled.
        given_up: names of images that the file system did not give within `UNREADABLE_S`.
    """

    def __init__(self, data: ImageData) -> None:
        self.data = data
        self.slots: np.ndarray | None = None
        self.given_up: set[str] = set()

    def __getitem__(self, batch: tuple[int, np.ndarray]) -> WorkerResult:
        """In a worker. Returns errors that users or the file system cause: DataLoader would add pages of traceback."""
        number, indices = batch
        try:
            images, bad = self.read(indices)
        except (UserError, ReadError) as error:
            return error
        if self.slots is None:
            return images, bad
        self.slots[number % len(self.slots), : len(images)] = images
        return len(images), bad

    def read(self, indices: np.ndarray) -> Batch:
        """One attempt. UserError: hardly any image can be read, or an LMDB is damaged."""
        bad: dict[str, str] = {}
        return np.stack([self._image(int(i), bad) for i in indices]), bad

    def read_patiently(self, indices: np.ndarray, error: ReadError | None = None) -> Batch:
        """Reads a batch; tries again for a while if the file system fails. error: of an attempt that was made.

        Raises:
            UserError: as of `read`.
            RunError: the data stay out of reach for `OUT_OF_REACH_S`.
            Stopped: a signal asked to stop meanwhile.
        """
        waiting_for, began = None, time.monotonic()
        while True:
            if error and error.args[0] not in self.given_up:
                raise_if_stopped()
                name, why, in_reach = error.args
                if name != waiting_for:
                    waiting_for, began = name, time.monotonic()
                    # On stderr: with several processes, each reports its own disk.
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
