"""What scripts print ends no work: where it cannot be written, it is passed over. Files of the run hold the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO


class _Lasting:
    """A stream whose reader may leave, whose terminal may be closed or lack characters, or whose disk may be full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: closed
            try:
                return self._stream.write(text)
            except UnicodeEncodeError:  # names of files may be any bytes, and terminals may know ASCII alone
                known = self._stream.encoding
                return self._stream.write(text.encode(known, "backslashreplace").decode(known))
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within the block, no failure to write to stdout or stderr is an error."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        streams = [stream or nowhere for stream in (sys.stdout, sys.stderr)]
        out, err = map(_Lasting, streams)
        try:
            with redirect_stdout(out), redirect_stderr(err):
                yield
        finally:
            for stream in streams:
                try:
                    stream.flush()
                except (OSError, ValueError):  # or the interpreter would fail over what is left in the buffer
                    with suppress(OSError, ValueError):
                        os.dup2(nowhere.fileno(), stream.fileno())
