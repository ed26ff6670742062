"""PRDC by several processes, for `test_prdc.py`: python prdc_together.py FOLDER

`cases.pt` in the folder lists real and fake features, k and the side of a block. 2 and 3 processes compute each; they
leave `<count>.<rank>.json`: by case, the four numbers and how often it ticked.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import torch

from utils.distributed import joined
from utils.prdc import compute_prdc


def work(rank: int, count: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    found = []
    with joined(torch.device("cpu"), backend="auto", timeout_s=60) as ranks:
        for real, fake, k, block in torch.load(folder / "cases.pt", weights_only=True):
            ticks: list[None] = []
            values = compute_prdc(real, fake, k, block=block, tick=lambda ticks=ticks: ticks.append(None), ranks=ranks)
            found.append((vars(values), len(ticks)))
    (folder / f"{count}.{rank}.json").write_text(json.dumps(found))


def main() -> None:
    folder = Path(sys.argv[1])
    for count in (2, 3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        children = []
        for rank in range(count):
            if (child := os.fork()) == 0:
                work(rank, count, port, folder)
                os._exit(0)
            children.append(child)
        failed = [child for child in children if os.waitpid(child, 0)[1]]
        if failed:
            sys.exit(f"{count} processes failed")


if __name__ == "__main__":
    main()
