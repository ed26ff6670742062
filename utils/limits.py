"""What a run needs of the machine, compared with what there is, before it is missed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hparams import launch
from hparams.errors import UserError

SHARED_MEMORY = Path("/dev/shm")
PREFETCHED = 2  # batches per worker that wait for the main process


def check_shared_memory(num_workers: int, batch_bytes: int) -> None:
    """UserError if the batches that workers have ready would not fit into shared memory.

    A worker that finds it full is killed by a bus error. Where there is no `/dev/shm`, nothing can be said. Several
    processes of a machine have a part of it each, as the others may not have begun to fill theirs.
    """
    if not SHARED_MEMORY.is_dir():
        return
    usage, processes = shutil.disk_usage(SHARED_MEMORY), launch.local_processes()
    free, each = min(usage.free, usage.total // processes), PREFETCHED * batch_bytes
    needed = num_workers * each + batch_bytes  # and the one in use
    if needed > free:
        fitting = max(0, (free - batch_bytes) // each)
        raise UserError(
            f"--num_workers {num_workers}: their batches take {tell_bytes(needed)} of shared memory, and "
            f"{SHARED_MEMORY} has {tell_bytes(free)}{f' for each of {processes} processes' if processes > 1 else ''}: "
            f"use --num_workers {fitting}, or enlarge it (docker: --shm-size)"
        )


def free_space(folder: Path) -> int:
    """Bytes that can be written below a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(os.path.realpath(folder)).free


def tell_bytes(count: int) -> str:
    """A size in words: `512 B`, `3.2 MB`, `41 GB`."""
    power = min((len(str(count)) - 1) // 3, 4)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
