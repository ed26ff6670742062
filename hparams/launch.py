"""What torchrun tells this process through its environment. Imports no torch."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path

from hparams.errors import UserError

_MARK = ".torchrun"  # in a run folder: the torchruns, one per machine, that began or resumed the run


def check() -> None:
    """UserError if the environment says that torchrun started this process, and then does not say what it would."""
    if not launched():
        return
    least = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    wrong = {
        name: f"is {value!r}, which is no number of at least {least[name]}"
        for name in least
        if (value := os.environ.get(name)) is not None
        and not (re.fullmatch("[0-9]+", value) and int(value) >= least[name])
    }
    if not os.environ["MASTER_ADDR"]:
        wrong["MASTER_ADDR"] = "is empty"
    needed = ("WORLD_SIZE",) if os.environ.get("WORLD_SIZE") == "1" else ("WORLD_SIZE", "MASTER_PORT")
    wrong |= {name: "is not set" for name in needed if name not in os.environ}
    if not wrong and int(os.environ.get("MASTER_PORT", "1")) > 65535:
        wrong["MASTER_PORT"] = f"is {os.environ['MASTER_PORT']}, but ports end at 65535"
    if not wrong and rank() >= processes():
        wrong["RANK"] = f"is {rank()}, but has to be below WORLD_SIZE, {processes()}"
    for name, what in wrong.items():
        raise UserError(
            f"the environment variable {name} {what}, though RANK and MASTER_ADDR are there, as set by torchrun: start "
            "all processes by torchrun, or `unset RANK` to run one"
        )


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


def launcher() -> str:
    """A name of this machine's torchrun, the same after each of its restarts and no other's; empty without torchrun.

    Machine, process id and start. Ids of jobs are given again, and restarts are counted by each machine for itself.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    pid = os.getppid()
    try:
        start = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19]
    except OSError:  # not on Linux
        start = ""
    return f"{socket.gethostname()}/{pid}/{start}"


def mark(folder: Path, launchers: Iterable[str]) -> None:
    """Note in a run folder which `launchers` have begun the run, so that their restarts go on with it."""
    if names := {name for name in launchers if name}:
        (folder / _MARK).write_text("\n".join(sorted(names)), encoding="utf-8")


def began(folder: Path) -> bool:
    """Whether this machine's torchrun has begun the run in a folder: then this process is a restart."""
    name = launcher()
    try:
        return bool(name) and name in (folder / _MARK).read_text(encoding="utf-8").splitlines()
    except OSError:
        return False


def described() -> str:
    """Which process this is, for messages; empty where it is the only one."""
    return f"rank {rank()} on {socket.gethostname()}" if processes() > 1 else ""
