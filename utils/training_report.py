"""What a training run shows: its log, its progress, its dashboard and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hparams.settings import PriorStage, VQGANStage
from utils.dashboard import Dashboard
from utils.pictures import image_grid, save_png
from utils.progress import Progress, tell
from utils.run_folder import VQGAN, RunFolder
from utils.run_log import RunLog

# The two figures of a run that matter most, by the name under which they stand beside its progress.
HEADLINES = {"loss": "loss", "l1": "L1", "elbo_bits_per_token": "ELBO"}

# Metrics about the machine, which no seed determines.
TIMINGS = ("steps_per_second", "images_per_second", "data_ms", "step_ms", "other_ms")


class TrainingReport:
    """Log, progress, dashboard and pictures of a run of the given kind.

    start, end: updates done before and after the run. resume_step: step up to which the files' content is kept and
    goes on; None begins them anew.
    """

    def __init__(
        self,
        settings: VQGANStage | PriorStage,
        kind: str,
        folder: RunFolder,
        *,
        start: int,
        resume_step: int | None,
        device: torch.device,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._start, self._end = start, settings.training.train_steps
        self._device = device
        self._headlines = ("loss", "l1") if kind == VQGAN else ("loss", "elbo_bits_per_token")
        self._quiet = settings.run.quiet
        self._log = RunLog(folder.log, folder.metrics, resume_step=resume_step, quiet=self._quiet)
        self.say, self.warn = self._log.say, self._log.warn
        self._progress: Progress | None = None
        self._dashboard = Dashboard(
            settings.run.log_dir,
            folder.dashboard,
            settings.run.visdom_server,
            settings.run.visdom_port,
            warn=self.warn,
            resume_step=resume_step,
        )

    def begin(self) -> None:
        """Show the progress of the training from here on."""
        self._progress = Progress(
            "training", self._end, "step", done=self._start, quiet=self._quiet, say=self._log.show
        )

    def stepped(self) -> None:
        """One more update is done."""
        if self._progress:
            self._progress.update()

    def logged(
        self, done: int, means: Mapping[str, float], *, steps: int, seconds: Mapping[str, float], skipped: int
    ) -> None:
        """Write the means of some steps, and how long they took by phase; `skipped` updates were left out so far."""
        timings = self._timings(steps, seconds)
        shown = dict(means) | ({"skipped_updates": skipped} if skipped else {})
        self._log.note(f"{self.at(done)}  {tell(shown)}  {tell(timings)}")
        self._log.record(done, "train", {**means, "skipped_updates": skipped, **timings})
        self._plot(done, "train", means)
        if self._progress:
            self._progress.update(0, **{HEADLINES[name]: means[name] for name in self._headlines})

    def validated(self, done: int, metrics: Mapping[str, float]) -> None:
        """Write the result of a validation."""
        self.say(f"{self.at(done)}  validation: {tell(metrics)}")
        self._log.record(done, "val", metrics)
        self._plot(done, "val", metrics)

    def baselines(self, values: Mapping[str, float]) -> None:
        """Write what the run's figures are to be compared with."""
        self.say(tell(values))
        if not (self._settings.training.resume and self._start):
            self._log.record(self._start, "codes", values)

    def picture(self, done: int, name: str, images: Tensor, columns: int, *, display: bool, save: bool) -> None:
        """Show and write images [n,C,H,W], uint8 or in [0,1]."""
        grid = image_grid(images, columns)
        if display:
            self._dashboard.images(name, grid, title=f"{name}, step {done}")
        if save:
            try:
                self._save_picture(done, name, images, grid)
            except OSError as error:
                self.warn(f"{self.at(done)}  WARNING: picture not written ({error.strerror}); the run goes on")

    def sync(self) -> None:
        """Make the metrics durable."""
        self._log.sync()

    def at(self, done: int) -> str:
        """A step in words, as wide as every other."""
        return f"step {done:>{len(str(self._end))}}/{self._end}"

    def close(self) -> None:
        """Close everything; waits a few seconds at most for the dashboard."""
        if self._progress:
            self._progress.close()
        self._dashboard.close()
        self._log.close()

    def _timings(self, steps: int, seconds: Mapping[str, float]) -> dict[str, float]:
        total = sum(seconds.values())
        rate = steps / max(total, 1e-9)
        timings = {"steps_per_second": rate, "images_per_second": rate * self._settings.training.global_batch}
        timings |= {f"{phase}_ms": 1000 * seconds.get(phase, 0.0) / steps for phase in ("data", "step", "other")}
        if self._device.type == "cuda":
            timings["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self._device) / 2**30
            timings["gpu_reserved_gib"] = torch.cuda.max_memory_reserved(self._device) / 2**30
            torch.cuda.reset_peak_memory_stats(self._device)
        return timings

    def _plot(self, done: int, split: str, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._dashboard.line(
                name, done, {split: value}, title=name.replace("_", " "), ylabel=name.replace("_", " ")
            )

    def _save_picture(self, done: int, name: str, images: Tensor, grid: np.ndarray) -> None:
        if self._settings.training.save_individually:
            for number, image in enumerate(images):
                save_png(self._folder.images / f"{name}_{done}_{number}.png", image_grid(image[None], 1))
        else:
            save_png(self._folder.images / f"{name}_{done}.png", grid)


class SilentReport:
    """Stands for the report where another process writes it."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return self._ignore

    def _ignore(self, *_: Any, **__: Any) -> None: ...
