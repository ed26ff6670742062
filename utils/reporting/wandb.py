"""A run in Weights & Biases. Needs the extra `wandb`; WANDB_MODE=offline keeps it on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import wandb

from utils.reporting.layout import cell
from utils.runs.run_folder import RunFolder
from utils.runs.sink import Sink

PROJECT = "unleashing-transformers"  # unless WANDB_PROJECT names another


class WandB(Sink):
    """Logs to a run of the run folder's name, with the settings as its configuration; a resumed run is one more there.

    Every value goes beside its step as a value of its own: W&B's own count of steps would not go back on a resume.
    """

    def __init__(self, folder: RunFolder, settings: Mapping[str, Any]) -> None:
        self._run = wandb.init(
            project=PROJECT if "WANDB_PROJECT" not in os.environ else None,
            name=folder.name,
            group=folder.name,
            dir=folder.path,
            config=dict(settings),
            settings=wandb.Settings(silent=True),
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """A curve for each split and name."""
        self._run.log({"step": step, **{f"{split}/{name}": value for name, value in values.items()}})

    def picture(self, step: int | None, name: str, picture: np.ndarray) -> None:
        """A picture of a step, or without one of step 0."""
        self._run.log({"step": step or 0, name: wandb.Image(picture.transpose(1, 2, 0))})

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """A bar per value."""
        bars = wandb.Table(columns=["number", "value"], data=[[i, float(value)] for i, value in enumerate(values)])
        self._run.log({"step": step, name: wandb.plot.bar(bars, "number", "value", title=name)})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table of texts."""
        self._run.log({name: wandb.Table(columns=list(columns), data=[[cell(value) for value in row] for row in rows])})

    def text(self, name: str, text: str) -> None:
        """The newest text, in the run's summary."""
        self._run.summary[name] = text

    def close(self) -> None:
        """Send what waits."""
        self._run.finish()
