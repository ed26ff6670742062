"""What torchrun tells this process through its environment. Imports no torch."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping

from hparams.errors import UserError


def check() -> None:
    """UserError if the environment says that torchrun started this process, and then does not say what it would."""
    if launched() and (wrong := _wrong(os.environ)):
        raise UserError(
            f"the environment variable {wrong}, though RANK and MASTER_ADDR are there, as set by torchrun: start all "
            "processes by torchrun, or `unset RANK` to run one"
        )


def _wrong(env: Mapping[str, str]) -> str:
    """The first variable that torchrun would set otherwise, and how it is; "" for none."""
    if not env["MASTER_ADDR"]:
        return "MASTER_ADDR is empty"
    for name, least in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}.items():
        value = env.get(name)
        if value is not None and not (re.fullmatch("[0-9]+", value) and int(value) >= least):
            return f"{name} is {value!r}, which is no number of at least {least}"
        if value is None and (name == "WORLD_SIZE" or (name == "MASTER_PORT" and env["WORLD_SIZE"] != "1")):
            return f"{name} is not set"
    if int(env.get("MASTER_PORT", "1")) > 65535:
        return f"MASTER_PORT is {env['MASTER_PORT']}, but ports end at 65535"
    return f"RANK is {rank()}, but has to be below WORLD_SIZE, {processes()}" if rank() >= processes() else ""


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
