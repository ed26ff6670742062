"""Long work in batches, of which each process does a share.

A batch holds the same things whatever the number of processes, so that what a network makes of it is the same too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from torch import Tensor

from utils.data.bad_images import Report, SharedReport
from utils.machine.distributed import Ranks
from utils.machine.progress import Progress
from utils.machine.signals import ending_politely
from utils.runs.growing_array import growing_array


def own_indices(things: range, batch_size: int, ranks: Ranks) -> np.ndarray:
    """The numbers of those things that are in this process's batches, int64: every `count`-th batch is its own."""
    batches = np.arange(len(things)) // batch_size
    return np.arange(things.start, things.stop)[batches % ranks.count == ranks.rank]


def in_order(
    own: Iterable[Sequence[Tensor]], n: int, batch_size: int, none: Sequence[Tensor], ranks: Ranks
) -> Iterator[list[Tensor]]:
    """What comes of n things, in their order, on every process: some tensors [b,…] at a time.

    own: the same tensors for each batch of this process's `own_indices`. none: of no things, [0,…], for a process that
    has no batch left.
    """
    own, size = iter(own), batch_size * ranks.count
    for start in range(0, n, size):
        yield [ranks.gather_rows(part, batch_size)[: n - start] for part in next(own, none)]


def fill_array(
    path: Path,
    n: int,
    like: np.ndarray,
    own: Callable[[np.ndarray, Report], Iterable[Tensor]],
    *,
    batch_size: int,
    none: Tensor,
    what: str,
    quiet: bool,
    bad: Report | None = None,
    ranks: Ranks,
) -> None:
    """Fill a `growing_array` [n,…] with rows as `like`, from where an interrupted call stopped.

    own: takes `own_indices` and gives their rows [b,…], batch by batch; its other argument is to be told of images that
    cannot be read. They are noted with the array, and `bad` is told on every process. `what` names the work for the
    progress bar, and `quiet` shows none. The first process writes. A signal to stop ends the work after a batch.
    """
    with (
        ending_politely(ranks) as check,
        growing_array(path, (n, *like.shape), like.dtype) if ranks.first else nullcontext() as rows,
    ):
        start, report = ranks.from_first(lambda: rows.done if rows else 0), SharedReport(bad, ranks)
        results = ((part,) for part in own(own_indices(range(start, n), batch_size, ranks), report))
        with Progress(what, n, "image", done=start, quiet=quiet) as progress:
            for (part,) in in_order(results, n - start, batch_size, [none], ranks):
                report.exchange()
                if rows:
                    rows.write(rows.done, part.cpu().numpy())
                    rows.bad.update(report.found)
                    rows.advance(len(part))
                progress.update(len(part))
                check()
