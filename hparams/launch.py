"""What torchrun tells this process through its environment. Imports no torch."""

from __future__ import annotations

import os
import re
import socket

from hparams.errors import UserError


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


def described() -> str:
    """Which process this is, for messages; empty where it is the only one."""
    return f"rank {rank()} on {socket.gethostname()}" if processes() > 1 else ""
