"""Processes that fail in several ways, for `test_distributed.py`: python failing.py OUT_FOLDER

Imports torch once and forks. Each way leaves, per rank, `<way>.<rank>`: what it printed, its status and its seconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import utils.machine.distributed
from hparams.errors import RunError, UserError
from hparams.script import run_script
from utils.machine.distributed import Ranks, joined
from utils.runs.growing_array import growing_array, made_array
from utils.runs.shared_batches import in_order, own_indices

COUNT = 4  # or each would talk to each


def dies(ranks: Ranks) -> None:
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def hangs(ranks: Ranks) -> None:
    if ranks.rank == 2:
        time.sleep(14)
        os._exit(71)  # what torchrun would do to it


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


class AskedToEnd(utils.machine.distributed._Board):
    """torchrun asks the others to end as soon as it misses one: here, at the worst moment."""

    def claim(self) -> bool:
        claimed = super().claim()
        os.kill(os.getpid(), signal.SIGTERM)
        return claimed


def work(way: int, rank: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(COUNT), "LOCAL_WORLD_SIZE": str(COUNT)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    sys.argv = ["train_vqgan.py"]
    utils.machine.distributed._Board = AskedToEnd  # type: ignore[misc]

    def main() -> None:
        with joined(torch.device("cpu"), backend="auto", timeout_s=5) as ranks:
            ranks.wait()
            WAYS[way](ranks)
            ranks.mean(torch.zeros(3))

    run_script(main)


def start(way: int, port: int, out: Path) -> dict[int, Path]:
    """Fork the processes of a way; process id → its file."""
    children = {}
    for rank in range(COUNT):
        file = out / f"{WAYS[way].__name__}.{rank}"
        if (child := os.fork()) == 0:
            with file.with_suffix(f".{rank}.err").open("w") as err:
                os.dup2(err.fileno(), 2)
                try:
                    work(way, rank, port)
                except SystemExit as end:
                    sys.stderr.flush()
                    os._exit(int(end.code or 0))
                except BaseException as error:
                    print(repr(error), file=sys.stderr, flush=True)
                    os._exit(70)
        children[child] = file
    return children


def host_stores() -> tuple[int, list[int]]:
    """A process that holds a store for each way, as torchrun does, and their ports."""
    reader, writer = os.pipe()
    if (host := os.fork()) == 0:
        stores = [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in WAYS]
        os.write(writer, json.dumps([store.port for store in stores]).encode())
        time.sleep(600)
        os._exit(0)
    return host, json.loads(os.read(reader, 4096))


def main() -> None:
    out, began = Path(sys.argv[1]), time.monotonic()
    host, ports = host_stores()
    children = {pid: file for way, port in enumerate(ports) for pid, file in start(way, port, out).items()}
    for _ in range(len(children)):
        pid, status = os.wait()
        file = children[pid]
        said = file.with_suffix(f"{file.suffix}.err").read_text()
        seconds = time.monotonic() - began
        outcome = {"status": os.waitstatus_to_exitcode(status), "said": said, "seconds": seconds}
        file.write_text(json.dumps(outcome))
    os.kill(host, signal.SIGKILL)


if __name__ == "__main__":
    main()
