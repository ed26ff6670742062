"""Freed memory stays with the process."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

# Three arrays of 4 MiB at a time: page faults of the 20 rounds after the first 20.
FAULTS = """
import resource
import numpy as np
from hparams.memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
faults = []
for _ in range(40):
    arrays = [np.ones(2**19) for _ in range(3)]
    del arrays
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[19])
"""


def faults(*, keep: bool) -> int:
    return int(subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, check=True).stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="this is not glibc"
)
def test_pages_are_not_cleared_anew() -> None:
    assert faults(keep=False) > 10_000
    assert faults(keep=True) < 20
