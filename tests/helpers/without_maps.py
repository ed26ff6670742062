"""Runs a script where the kernel refuses to map files shared, as FUSE does for direct I/O: without_maps.py SCRIPT WORDS

A seccomp filter answers such calls of mmap with ENODEV. Exit status 77: there are no such filters here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import platform
import runpy
import struct
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]
MMAP = {"x86_64": 9, "aarch64": 222}  # numbers of the system call
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, AND, JUMP_IF_EQUAL, RETURN = 0x20, 0x54, 0x15, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.ENODEV
NUMBER, FLAGS = 0, 16 + 3 * 8  # places in seccomp_data


def refuse_shared_maps() -> bool:
    """From here on, for this process; whether it could be arranged."""
    if platform.machine() not in MMAP:
        return False
    program = [
        (LOAD, 0, 0, NUMBER),
        (JUMP_IF_EQUAL, 0, 4, MMAP[platform.machine()]),
        (LOAD, 0, 0, FLAGS),
        (AND, 0, 0, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS),
        (JUMP_IF_EQUAL, 0, 1, mmap.MAP_SHARED),
        (RETURN, 0, 0, REFUSE),
        (RETURN, 0, 0, ALLOW),
    ]
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    filters = struct.pack("HP", len(program), ctypes.addressof(instructions))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return not (
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        or prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(filters), 0, 0)
    )


if __name__ == "__main__":
    if not refuse_shared_maps():
        sys.exit(77)
    with Path(__file__).open("rb") as file, contextlib.suppress(OSError):
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        sys.exit(77)
    sys.argv = [str(REPO / sys.argv[1]), *sys.argv[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
