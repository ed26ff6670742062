"""Files that make a folder when what is in them is run: as pickles in all the forms that a loader may meet."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Malice:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def written(write: Callable[[io.BytesIO], Any]) -> bytes:
    """What a function writes to a file."""
    write(file := io.BytesIO())
    return file.getvalue()


def as_checkpoint(victim: Path) -> bytes:
    return written(lambda file: torch.save({"weight": Malice(victim)}, file))


def as_legacy_checkpoint(victim: Path) -> bytes:
    return written(lambda file: torch.save({"weight": Malice(victim)}, file, _use_new_zipfile_serialization=False))


def as_pickle(victim: Path) -> bytes:
    return pickle.dumps(Malice(victim))


def as_array(victim: Path) -> bytes:
    return written(lambda file: np.save(file, np.array([Malice(victim)], dtype=object), allow_pickle=True))


def as_arrays(victim: Path) -> bytes:
    return written(lambda file: np.savez(file, a=np.array([Malice(victim)], dtype=object)))


def as_yaml(victim: Path) -> bytes:
    return f"dataset: !!python/object/apply:os.mkdir ['{victim}']\n".encode()


FORMS = (as_checkpoint, as_legacy_checkpoint, as_pickle, as_array, as_arrays, as_yaml)
