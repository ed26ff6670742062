"""Runs a script where files cannot be mapped shared, as FUSE refuses it for direct I/O: without_maps.py SCRIPT WORDS"""

from __future__ import annotations

import errno
import mmap
import os
import runpy
import sys
from pathlib import Path
from typing import Any


class Map(mmap.mmap):
    """Of no file (-1), or private."""

    def __new__(cls, file: int, length: int, *, access: int = mmap.ACCESS_DEFAULT, **more: Any) -> Map:
        if file != -1 and access != mmap.ACCESS_COPY:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return super().__new__(cls, file, length, access=access, **more)


if __name__ == "__main__":
    mmap.mmap = Map  # type: ignore[misc]
    sys.argv = [str(Path(__file__).parents[2] / sys.argv[1]), *sys.argv[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
