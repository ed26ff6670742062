"""How far a long piece of work has come, on disk, so that the same command goes on after an interruption."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from signal import Signals as Signal
from types import TracebackType
from typing import Any

from hparams.errors import UserError
from utils.machine.distributed import ALONE, Ranks
from utils.machine.progress import say
from utils.machine.signals import Signals, end_politely
from utils.runs.checkpoints import load_file, save_file

SECONDS = 30.0  # between two savings


class Partial:
    """State of unfinished work in a file, under the name of everything that determines the work.

    State that was saved under another key is as good as none: the work then begins anew. So is damaged state, of which
    `warn` takes a line. In a `with` block, a signal to stop ends the process at the next `keep`.

    Several `ranks` have the same state, and call every method together; the first one reads and writes.
    """

    def __init__(
        self, path: Path, key: Mapping[str, Any], ranks: Ranks = ALONE, warn: Callable[[str], None] = say
    ) -> None:
        self._path = path
        self._warn = warn
        self._ranks = ranks
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
        return self._ranks.from_first(self._load)

    def _load(self) -> dict[str, Any] | None:
        if not self._path.exists():
            return None
        try:
            content = load_file(self._path)
        except UserError:
            content = None
        if not isinstance(content, dict) or content.keys() != {"key", "state"}:
            self._warn(f"WARNING: {self._path} is damaged: what it held is computed anew")
            return None
        return content["state"] if content["key"] == self._key else None

    def save(self, state: Mapping[str, Any]) -> None:
        """Save `state`, whole or not at all."""
        if self._ranks.first:
            save_file(self._path, {"key": self._key, "state": dict(state)})
        self._saved = time.monotonic()

    def keep(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Save what `state` gives if the last saving is `SECONDS` ago, or if the process is to end.

        Raises:
            SystemExit: a signal asked for it, and the state is saved.
        """
        due = time.monotonic() - self._saved >= SECONDS
        number, due_somewhere = self._ranks.agree(self._signals.stop or 0, due)
        if number or due_somewhere:
            self.save(state())
        if number:
            end_politely(Signal(number))

    def remove(self) -> None:
        """The work is done."""
        if self._ranks.first:
            self._path.unlink(missing_ok=True)
