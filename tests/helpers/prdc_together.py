"""PRDC by one of several processes, for `test_prdc.py`."""

from __future__ import annotations

from pathlib import Path

import torch

from utils.machine.distributed import joined
from utils.metrics.prdc import compute_prdc


def work(folder: Path) -> None:
    """Of each case in `cases.pt`, real and fake features, k and the side of a block: the numbers, how often it ticked.

    They are left in `<count>.<rank>.pt`.
    """
    found = []
    with joined(torch.device("cpu"), backend="auto", timeout_s=60) as ranks:
        for real, fake, k, block in torch.load(folder / "cases.pt", weights_only=True):
            ticks: list[None] = []
            values = compute_prdc(real, fake, k, block=block, tick=lambda ticks=ticks: ticks.append(None), ranks=ranks)
            found.append((vars(values), len(ticks)))
    torch.save(found, folder / f"{ranks.count}.{ranks.rank}.pt")
