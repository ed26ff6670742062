"""What torchrun tells this process through its environment. Imports no torch."""

from __future__ import annotations

import os
import socket
from pathlib import Path

_MARK = ".torchrun"  # in a run folder: which torchrun began or resumed the run


def processes() -> int:
    """How many processes run this script together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if launched() else 1


def rank() -> int:
    """This process's number among all of them, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def local_rank() -> int:
    """This process's number among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() else 0


def local_processes() -> int:
    """How many processes of the script this machine runs."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() else 1


def launched() -> bool:
    """Whether torchrun started this process."""
    return "RANK" in os.environ and "MASTER_ADDR" in os.environ


def restarts() -> int:
    """How often torchrun has started the processes anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) if launched() else 0


def launcher() -> str:
    """A name of the torchrun that started this process, the same after each of its restarts."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return f"{socket.gethostname()}/{os.getppid()}" if name == "none" else name


def mark(folder: Path) -> None:
    """Note in a run folder that this torchrun has begun the run, so that its restarts go on with it."""
    if launched():
        (folder / _MARK).write_text(launcher(), encoding="utf-8")


def began(folder: Path) -> bool:
    """Whether this torchrun has begun the run in a folder."""
    try:
        return launched() and (folder / _MARK).read_text(encoding="utf-8") == launcher()
    except OSError:
        return False


def described() -> str:
    """Which process this is, for messages; empty where it is the only one."""
    return f"rank {rank()} on {socket.gethostname()}" if processes() > 1 else ""
