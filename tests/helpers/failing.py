"""Processes that fail in several ways, for `test_distributed.py`: python failing.py OUT_FOLDER

Each way has an agent of torchrun. It leaves `<way>.json`: of each rank that failed, its exit status and what torchrun's
report quotes of it; and `<way>/*/attempt_0/<rank>/stderr.log`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from hparams.errors import RunError, UserError
from hparams.script import run_script
from jobs import a_job
from machine import launch
from utils.machine.distributed import Ranks, joined
from utils.runs.shards import Shards

COUNT = 4  # or each would talk to each


def dies(ranks: Ranks) -> None:
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def hangs(ranks: Ranks) -> None:
    if ranks.rank == 2:
        time.sleep(60)


def meets_bad_data(ranks: Ranks) -> None:
    if ranks.rank == 2:
        raise UserError("photos/7.jpg cannot be read")


def breaks(ranks: Ranks) -> None:
    if ranks.rank == 1:
        raise KeyError("a bug")


def two_fail(ranks: Ranks) -> None:
    if ranks.rank == 1:
        raise UserError("photos/7.jpg cannot be read")
    if ranks.rank == 3:
        raise RunError("its GPU is lost")


def all_fail_alike(ranks: Ranks) -> None:
    raise RunError("100 updates in a row had gradients that are not finite")


def shares(ranks: Ranks) -> None:
    """Not a failure: what processes tell each other."""
    assert ranks.gather(torch.full((2,), ranks.rank)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert ranks.sum(torch.tensor(0.1, dtype=torch.float64)).item() == 0.4
    assert ranks.agree(ranks.rank, -ranks.rank) == (3, 0)
    assert ranks.from_first(lambda: f"made by {ranks.rank}") == "made by 0"
    assert ranks.gather_objects({ranks.rank}) == [{0}, {1}, {2}, {3}]


def shares_part_files(ranks: Ranks) -> None:
    """Not a failure: each makes its share, on machines that name it otherwise, as times of files are in names."""
    folder = Path(ranks.from_first(tempfile.mkdtemp))
    own: list[int] = []

    def make(numbers: np.ndarray, _: object) -> Iterator[torch.Tensor]:
        own.extend(numbers.tolist())
        return (torch.tensor([number]) for number in numbers)

    with a_job(ranks) as job:
        rows = Shards(folder / f"named by {ranks.rank}").fill(job, 11, np.empty((), np.int64), make, what="it", size=2)
    assert rows[:].tolist() == list(range(11))
    assert ranks.gather_objects(own) == [[0, 1, 8, 9], [2, 3, 10], [4, 5], [6, 7]]
    assert [file.name for file in folder.iterdir()] == ["named by 0"]


WAYS = (dies, hangs, meets_bad_data, breaks, two_fail, all_fail_alike, shares, shares_part_files)


def work(way: Callable[[Ranks], None]) -> None:
    sys.argv = ["train_vqgan.py"]

    def main() -> None:
        with joined(torch.device("cpu"), backend="auto", timeout_s=5) as ranks:
            ranks.wait()
            way(ranks)
            ranks.mean(torch.zeros(3))

    run_script(main)


def main() -> None:
    out, agents = Path(sys.argv[1]), []
    for way in WAYS:
        if (agent := os.fork()) == 0:
            failures = launch(partial(work, way), processes=COUNT, logs=out / way.__name__)
            told = {rank: (failure.exitcode, failure.message) for rank, failure in failures.items()}
            (out / f"{way.__name__}.json").write_text(json.dumps(told))
            os._exit(0)
        agents.append(agent)
    sys.exit(any(os.waitpid(agent, 0)[1] for agent in agents))


if __name__ == "__main__":
    main()
