"""How far a long piece of work has come, on disk, so that the same command goes on after an interruption."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from hparams.errors import UserError
from utils.checkpoints import load_file, save_file
from utils.signals import Signals, end_politely

SECONDS = 30.0  # between two savings


class Partial:
    """State of unfinished work in a file, under the name of everything that determines the work.

    State that was saved under another key, or is damaged, is as good as none: the work then begins anew. In a `with`
    block, a signal to stop ends the process at the next `keep`.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self._path = path
        self._key = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
        self._saved = time.monotonic()
        self._signals = Signals()

    def __enter__(self) -> Partial:
        self._signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signals.__exit__(kind, error, trace)

    def load(self) -> dict[str, Any] | None:
        """What was last saved: tensors and plain values."""
        if self._path.exists():
            with suppress(UserError):
                content = load_file(self._path)
                if isinstance(content, dict) and content.get("key") == self._key:
                    return content["state"]
        return None

    def save(self, state: Mapping[str, Any]) -> None:
        """Save `state`, whole or not at all."""
        save_file(self._path, {"key": self._key, "state": dict(state)})
        self._saved = time.monotonic()

    def keep(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Save what `state` gives if the last saving is `SECONDS` ago, or if the process is to end.

        Raises:
            SystemExit: a signal asked for it, and the state is saved.
        """
        stop = self._signals.stop
        if stop or time.monotonic() - self._saved >= SECONDS:
            self.save(state())
        if stop:
            end_politely(stop)

    def remove(self) -> None:
        """The work is done."""
        self._path.unlink(missing_ok=True)
