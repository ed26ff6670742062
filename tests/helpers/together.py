"""Processes that meet by gloo on this machine, for scripts that tests start; forked, as to spawn takes seconds."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fork(count: int, work: Callable[[int], None]) -> None:
    """Do `work(rank)` in `count` processes with torchrun's environment; exits with status 1 where one fails."""
    os.environ |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    children = []
    for rank in range(count):
        if (child := os.fork()) == 0:
            os.environ["RANK"] = str(rank)
            work(rank)
            os._exit(0)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    if any(statuses):
        sys.exit(f"one of {count} processes failed")
