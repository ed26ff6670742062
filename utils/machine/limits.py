"""Free space, and sizes in words."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def free_space(folder: Path) -> int:
    """Bytes that can be written below a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(os.path.realpath(folder)).free


def tell_bytes(count: int) -> str:
    """A size in words: `512 B`, `3.2 MB`, `41 GB`."""
    power = min((len(str(count)) - 1) // 3, 4)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
