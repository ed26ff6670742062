"""How many files this process may have open. Imports no torch."""

from __future__ import annotations

import resource

from hparams.errors import UserError

ALONE = 64  # of a process without workers: its own, and those that libraries open on their way
OF_A_WORKER = 16  # pipes to each, and batches on their way to this process


def require_open_files(num_workers: int) -> None:
    """UserError if a process with so many workers may not open enough files, its limit raised as far as it goes.

    Too few are missed anywhere, in threads and workers of libraries too, which then print tracebacks and hang.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = ALONE + OF_A_WORKER * num_workers
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard == resource.RLIM_INFINITY or hard >= needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return
    fewer = max(0, (hard - ALONE) // OF_A_WORKER)
    fix = f"use --num_workers {fewer}, or raise" if hard >= ALONE else "raise"
    raise UserError(
        f"--num_workers {num_workers}: {needed} files must be open at once, the limit is {hard}: {fix} it (ulimit -n)"
    )
