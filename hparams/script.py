"""How a script starts and fails: `run_script` runs its main, and says in one line what went wrong. Imports no torch."""

from __future__ import annotations

import ctypes
import errno
import getpass
import json
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, TextIO

from hparams import launch
from hparams.errors import RunError, UserError
from hparams.folders import LOGS

# PyTorch's own words, so that torch need not be imported.
_NO_MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED", "can't allocate memory")
# Words of Python and of the system, which a worker's error passes on.
_NO_THREAD, _NO_FILE = "can't start new thread", os.strerror(errno.EMFILE)
_LET_OTHERS_SPEAK_S = 3.0
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}
# Errors about paths that the user can mend, and how.
_PATH_FIXES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give this user access to it, or name another folder"),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
        "use another --log_dir, or move what is in the way",
    ),
    errno.ENOENT: "it was moved or deleted while this ran, or was never there",
}
_FILES_OF_SCRIPT = 64  # of a process without workers: its own, and those that libraries open
_FILES_PER_WORKER = 16  # pipes to each, and batches on their way to this process


def run_script(main: Callable[[], None]) -> NoReturn:
    """Run a script's main and exit: 0, or with one line on stderr.

    Status 2 for a UserError or a path that the user named and that cannot be used; 1 for a RunError, a disk that takes
    or gives no data, too little memory, or a bug, whose traceback is shown; 130 when interrupted. With `--traceback`
    the traceback of the others is shown above their line.

    Under torchrun the line names rank and host, and stands in torchrun's error record. Mistakes in flags fail all
    processes of a machine alike: torchrun ends the others while they wait for the first to say so.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # asks a training run to save; others must not die of it
    keep_freed_memory()
    name_nameless_user()
    with lasting_output():
        sys.exit(_status_of(main))


def _status_of(main: Callable[[], None]) -> int:
    prefix, together = f"{Path(sys.argv[0]).name}: error: ", False
    try:
        launch.check()
        together = launch.processes() > 1
        main()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        line = _as_line(error)
        status = 2 if isinstance(error, UserError) or getattr(error, "errno", None) in _PATH_FIXES else 1
        if together:
            prefix += f"{launch.described()}: "
            if launch.local_rank() and (line is None or status == 2):
                time.sleep(_LET_OTHERS_SPEAK_S)
            _record_for_torchrun(line or f"{type(error).__name__}: {error}")
            if line is None:
                print(f"{prefix}{type(error).__name__}", file=sys.stderr)
        if line is None:
            raise
        typed = [word for word in sys.argv[1:] if word in ("--traceback", "--no_traceback")]  # parsing may have failed
        if typed[-1:] == ["--traceback"]:
            _print_traceback(error)
        print(f"{prefix}{' '.join(line.split())}", file=sys.stderr)
        return status
    return 0


def _record_for_torchrun(line: str) -> None:
    """Write the error record (`torch.distributed.elastic.multiprocessing.errors`) that torchrun's report quotes."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        record = {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": record}), encoding="utf-8")


def _print_traceback(error: Exception) -> None:
    """With the errors that it stands for, which `raise … from None` hides."""
    link: BaseException | None = error
    while link:
        link.__suppress_context__ = False
        link = link.__cause__ or link.__context__
    traceback.print_exception(error)


def _as_line(error: Exception) -> str | None:
    """What to say in place of a traceback; None for what only a programmer can mend."""
    if isinstance(error, (UserError, RunError)):
        return str(error)
    if line := _about_machine(error):
        return line
    if isinstance(error, OSError):
        path = error.filename or "a file" if error.errno in _DISK_ERRORS else _path_of_the_user(error, sys.argv[1:])
        fix = _PATH_FIXES.get(error.errno or 0)
        return f"{path}: {error.strerror}{f': {fix}' if fix else '; what was saved before is whole'}" if path else None
    return None


def _path_of_the_user(error: OSError, words: list[str]) -> str | None:
    """The path that an error is about, if the user named it: run folders, and what was typed, with all below it."""
    named = [str(LOGS), *(word.partition("=")[2] if word.startswith("-") else word for word in words)]
    for path in (error.filename2, error.filename):  # of a rename, first the new name
        if isinstance(path, str | bytes | os.PathLike):
            text = os.fsdecode(path)
            for way in (os.path.abspath, os.path.realpath):  # by its name, or once links are followed
                if any(Path(way(text)).is_relative_to(way(place)) for place in named if place):
                    return text
    return None


def _about_machine(error: Exception) -> str | None:
    """What the machine lacks; None for anything else."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:  # as when a worker cannot start
        return "out of memory: lower --num_workers or --batch_size"
    text = " ".join(str(error).split())
    if (isinstance(error, OSError) and error.errno == errno.EAGAIN) or _NO_THREAD in text:
        return "no more processes or threads may be started here: lower --num_workers, or raise the limit (ulimit -u)"
    if _NO_FILE in text:
        return "no more files may be opened here: lower --num_workers, or raise the limit (ulimit -n)"
    if isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY):
        return "out of memory: lower --batch_size, or use --amp"
    death = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", text)
    if isinstance(error, RuntimeError) and death:
        return (
            f"process {death[1]}, which read images, {death[2].partition('. ')[0].rstrip('.')}; too little memory may "
            "be why: lower --num_workers or --batch_size; the same command goes on from what was saved"
        )
    return None


class _Lasting:
    """A stream whose reader may leave, whose terminal may be closed, or whose disk may be full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within the block, writing to a closed or full stdout or stderr never raises, whatever the characters."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        streams = [stream or nowhere for stream in (sys.stdout, sys.stderr)]
        for stream in streams:  # file names may be any bytes, and a terminal may know ASCII alone
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        out, err = map(_Lasting, streams)
        try:
            with redirect_stdout(out), redirect_stderr(err):
                yield
        finally:
            for stream in streams:
                try:
                    stream.flush()
                except (OSError, ValueError):  # or the interpreter would fail when it flushes at exit
                    with suppress(OSError, ValueError):
                        os.dup2(nowhere.fileno(), stream.fileno())


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next allocation (mallopt); on other systems, do nothing.

    By default glibc returns large tensors to the kernel, which clears every page anew for the next one: up to a fifth
    of the time of an evaluation in bfloat16 on a CPU. The process's peak memory stays the same.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD of glibc's malloc.h, at its most
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD


def name_nameless_user() -> None:
    """Name a user whom the system does not know (`docker run --user`) by number: PyTorch names folders after users."""
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError: from Python 3.13 on
        os.environ["LOGNAME"] = str(os.getuid())


def require_open_files(num_workers: int) -> None:
    """Raise this process's limit of open files, if need be, to what so many workers take; UserError if it cannot be.

    With too few, threads of libraries and workers would print tracebacks and hang.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _FILES_OF_SCRIPT + _FILES_PER_WORKER * num_workers
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard == resource.RLIM_INFINITY or hard >= needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return
    fewer = max(0, (hard - _FILES_OF_SCRIPT) // _FILES_PER_WORKER)
    fix = f"use --num_workers {fewer}, or raise" if hard >= _FILES_OF_SCRIPT else "raise"
    raise UserError(
        f"--num_workers {num_workers}: {needed} files must be open at once, the limit is {hard}: {fix} it (ulimit -n)"
    )
