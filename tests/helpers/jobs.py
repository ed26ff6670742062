"""A job without a script."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from hparams.settings.stages import RunSettings, Stage
from utils.machine.distributed import ALONE, Ranks
from utils.runs.job import Job


@contextmanager
def a_job(ranks: Ranks = ALONE, device: torch.device | str = "cpu", **run: Any) -> Iterator[Job]:
    """In `logs/run` below the working folder, quiet, with settings of `RunSettings`; it accepts unreadable images."""
    values = {"dataset": "toy_churches", "log_dir": "run", "quiet": True, "batch_size": 4, "num_workers": 0, **run}
    with Job(Stage(replace(RunSettings(), **values)), torch.device(device), ranks) as job:
        job.bad_images = lambda found, images: None
        yield job
