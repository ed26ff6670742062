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
from collections.abc import Iterator
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


CAUSES = {
    "meets_bad_data": {2: UserError("photos/7.jpg cannot be read")},
    "breaks": {1: KeyError("a bug")},
    "two_fail": {1: UserError("photos/7.jpg cannot be read"), 3: RunError("its GPU is lost")},
    "all_fail_alike": dict.fromkeys(range(COUNT), RunError("100 updates in a row had gradients that are not finite")),
}
OTHER_WAYS = {way.__name__: way for way in (dies, hangs, shares, shares_part_files)}


def work(way: str) -> None:
    sys.argv = ["train_vqgan.py"]

    def main() -> None:
        with joined(torch.device("cpu"), backend="auto", timeout_s=5) as ranks:
            ranks.wait()
            if ranks.rank in CAUSES.get(way, {}):
                raise CAUSES[way][ranks.rank]
            if way in OTHER_WAYS:
                OTHER_WAYS[way](ranks)
            ranks.mean(torch.zeros(3))

    run_script(main)


def main() -> None:
    out, agents = Path(sys.argv[1]), []
    for way in (*CAUSES, *OTHER_WAYS):
        if (agent := os.fork()) == 0:
            failures = launch(partial(work, way), out / way, nproc_per_node=COUNT)
            told = {rank: (failure.exitcode, failure.message) for rank, failure in failures.items()}
            (out / f"{way}.json").write_text(json.dumps(told))
            os._exit(0)
        agents.append(agent)
    sys.exit(any(os.waitpid(agent, 0)[1] for agent in agents))


if __name__ == "__main__":
    main()
