"""A run in services that have a package of their own, which is imported only where `--sinks` names the service."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from utils.reporting.layout import cell
from utils.runs.record import ALL
from utils.runs.run_folder import RunFolder
from utils.runs.sink import Sink

PROJECT = "unleashing-transformers"  # in Weights & Biases, unless WANDB_PROJECT names another


class TensorBoard(Sink):
    """Writes event files to `tensorboard/` in the run folder: `tensorboard --logdir logs` shows all runs.

    resume_step: of what is there already, nothing of later steps is shown any more; None: nothing at all.
    """

    def __init__(self, folder: RunFolder, resume_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        hidden_from = None if resume_step == ALL else 0 if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(folder.path / "tensorboard", purge_step=hidden_from)

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{name}/{split}", value, step)

    def picture(self, step: int | None, name: str, picture: np.ndarray) -> None:
        self._writer.add_image(name, picture, step or 0)

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Bars: value i as the height at i."""
        heights, places = np.nan_to_num(values), np.arange(len(values), dtype=np.float64)
        moments = {"num": heights.sum(), "sum": heights @ places, "sum_squares": heights @ places**2}
        bars = {"bucket_limits": (places + 1).tolist(), "bucket_counts": heights.tolist()}
        self._writer.add_histogram_raw(name, min=0.0, max=float(len(values)), **moments, **bars, global_step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        lines = [columns, ["---"] * len(columns), *([cell(value) for value in row] for row in rows)]
        self._writer.add_text(name, "\n".join("| " + " | ".join(line) + " |" for line in lines))

    def text(self, name: str, text: str) -> None:
        self._writer.add_text(name, f"```\n{text}\n```")

    def close(self) -> None:
        self._writer.close()


class WandB(Sink):
    """Logs to a run of the run folder's name, with the settings as its configuration; a resumed run is one more there.

    Every value goes beside its step as a value of its own: W&B's own count of steps would not go back on a resume.
    WANDB_MODE=offline keeps the run on this machine.
    """

    def __init__(self, folder: RunFolder, settings: Mapping[str, Any]) -> None:
        import wandb

        self._wandb, project = wandb, PROJECT if "WANDB_PROJECT" not in os.environ else None
        run = {"project": project, "name": folder.name, "group": folder.name, "dir": folder.path}
        self._run = wandb.init(**run, config=dict(settings), settings=wandb.Settings(silent=True))
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **{f"{split}/{name}": value for name, value in values.items()}})

    def picture(self, step: int | None, name: str, picture: np.ndarray) -> None:
        self._run.log({"step": step or 0, name: self._wandb.Image(picture.transpose(1, 2, 0))})

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        data = [[number, float(value)] for number, value in enumerate(values)]
        bars = self._wandb.Table(columns=["number", "value"], data=data)
        self._run.log({"step": step, name: self._wandb.plot.bar(bars, "number", "value", title=name)})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        data = [[cell(value) for value in row] for row in rows]
        self._run.log({name: self._wandb.Table(columns=list(columns), data=data)})

    def text(self, name: str, text: str) -> None:
        self._run.summary[name] = text

    def close(self) -> None:
        self._run.finish()
