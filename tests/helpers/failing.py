"""Processes that fail in several ways, for `test_distributed.py`: python failing.py OUT_FOLDER

Each way has an agent of torchrun. It leaves `<way>.json`: of each rank that failed, its exit status and what torchrun's
report quotes of it; and `<way>/*/attempt_0/<rank>/stderr.log`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from hparams.errors import RunError, UserError
from hparams.script import run_script
from machine import launch
from utils.machine.distributed import Ranks, joined
from utils.runs.growing_array import growing_array, made_array
from utils.runs.shared_batches import in_order, own_indices

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
    for n, size in ((11, 2), (6, 2), (2, 2), (1, 3)):
        mine = torch.from_numpy(own_indices(range(n), size, ranks))
        own = ([part, part * 1.5] for part in mine.split(size) if len(part))
        none = [mine[:0], mine[:0] * 1.5]
        parts = list(in_order(own, n, size, none, ranks))
        assert torch.cat([part for part, _ in parts]).tolist() == list(range(n))
        assert torch.cat([part for _, part in parts]).tolist() == [1.5 * i for i in range(n)]
    assert ranks.gather(torch.full((2,), ranks.rank)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert ranks.sum(torch.tensor(0.1, dtype=torch.float64)).item() == 0.4
    assert ranks.agree(ranks.rank, -ranks.rank) == (3, 0)
    assert ranks.from_first(lambda: f"made by {ranks.rank}") == "made by 0"
    assert ranks.gather_objects({ranks.rank}) == [{0}, {1}, {2}, {3}]


def waits(ranks: Ranks) -> None:
    """Not a failure: another program makes what they need, for longer than the processes wait for each other."""
    folder = Path(ranks.from_first(tempfile.mkdtemp))
    if ranks.first:
        subprocess.Popen(["flock", folder, "sh", "-c", "touch busy; sleep 7; mv busy done"], cwd=folder)
        while not (folder / "busy").exists():
            time.sleep(0.01)
    ranks.wait()

    def make(file: Path) -> None:
        assert (folder / "done").exists()
        if ranks.first:
            with growing_array(file, (3,), np.uint8) as growing:
                growing.write(0, np.full(3, 7))

    assert made_array(folder / "made.npy", make, ranks)[0].tolist() == [7, 7, 7]
    # Machines with copies of the data of their own, whose files have other times, name what they make otherwise.
    assert made_array(folder / ("made.npy" if ranks.first else "other.npy"), make, ranks)[0].tolist() == [7, 7, 7]


WAYS = (dies, hangs, meets_bad_data, breaks, two_fail, all_fail_alike, shares, waits)


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
