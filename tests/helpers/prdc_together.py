"""PRDC by several processes, for `test_prdc.py`: python prdc_together.py FOLDER

`cases.pt` in the folder lists real and fake features, k and the side of a block. 2, 3 and 4 processes compute each, and
leave `<count>.<rank>.json`: by case, the four numbers and how often it ticked.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch

from together import fork
from utils.machine.distributed import joined
from utils.metrics.prdc import compute_prdc


def work(folder: Path, count: int, rank: int) -> None:
    torch.set_num_threads(1)
    found = []
    with joined(torch.device("cpu"), backend="auto", timeout_s=60) as ranks:
        for real, fake, k, block in torch.load(folder / "cases.pt", weights_only=True):
            ticks: list[None] = []
            values = compute_prdc(real, fake, k, block=block, tick=lambda ticks=ticks: ticks.append(None), ranks=ranks)
            found.append((values, len(ticks)))
    (folder / f"{count}.{rank}.json").write_text(json.dumps(found))


def main() -> None:
    folder = Path(sys.argv[1])
    for count in (2, 3, 4):
        fork(count, partial(work, folder, count))


if __name__ == "__main__":
    main()
