"""What a training run shows: its log, its progress, its dashboard and its pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hparams.settings.stages import PriorStage, VQGANStage
from models.vqgan.quantizers import perplexity
from utils.data.pictures import image_grid, save_png
from utils.machine.progress import Progress, tell, tell_duration
from utils.reporting import panes
from utils.reporting.dashboard import run_dashboard
from utils.reporting.summary import SummaryDrawer
from utils.reporting.training_panes import TRAIN, VAL, Bars, Curves, Pictures, Status, panes_of
from utils.runs.run_folder import VQGAN, RunFolder
from utils.runs.run_log import RunLog

# The two figures of a run that matter most, by the name under which they stand beside its progress.
HEADLINES = {"loss": "loss", "l1": "L1", "elbo_bits_per_token": "ELBO"}

# Metrics about the machine, which no seed determines.
TIMINGS = ("steps_per_second", "images_per_second", "data_ms", "step_ms", "other_ms")

SECONDS_BETWEEN_SNAPSHOTS = 15.0  # of the panes that are drawn anew each time: bars and text


class TrainingReport:
    """Log, progress, dashboard and pictures of a run of the given kind.

    start: updates done before the run. resume_step: step up to which the files' content is kept and
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
        self._kept = resume_step is not None
        self._device = device
        self._headlines = ("loss", "l1") if kind == VQGAN else ("loss", "elbo_bits_per_token")
        self._quiet = settings.run.quiet
        self._log = RunLog(folder.log, folder.metrics, resume_step=resume_step, quiet=self._quiet)
        self.say, self.warn = self._log.say, self._log.warn
        self._progress: Progress | None = None
        self._dashboard = run_dashboard(settings.run, folder.dashboard, warn=self.warn, resume_step=resume_step)
        self._summary: SummaryDrawer | None = None
        if settings.run.summary:
            self._summary = SummaryDrawer(folder.dashboard, folder.summary, title=folder.name, warn=self.warn)
        self._panes = panes_of(settings, cuda=device.type == "cuda")
        self._lines = {"what": f"{kind} on {settings.run.dataset}", "folder": str(folder.path)}  # of the status pane
        self._next_snapshot = 0.0
        self._reserve()

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
        self,
        done: int,
        means: Mapping[str, float],
        vectors: Mapping[str, Tensor],
        *,
        steps: int,
        seconds: Mapping[str, float],
        skipped: int,
    ) -> None:
        """Write the means of some steps, and how long they took by phase; `skipped` updates were left out so far."""
        timings = self._timings(steps, seconds)
        if "code_counts" in vectors:
            counts = vectors["code_counts"]
            used = (counts > 0).double().mean().item()
            means = {**means, "codebook_perplexity": perplexity(counts).item(), "codebook_used": used}
        shown = {**means, **({"skipped_updates": skipped} if skipped else {})}
        self._log.note(f"{self.at(done)}  {tell(shown)}  {tell(timings)}")
        self._log.record(done, "train", {**means, "skipped_updates": skipped, **timings})
        self._plot(done, TRAIN, {**means, **timings})
        if self._progress:
            self._progress.update(0, **{HEADLINES[name]: means[name] for name in self._headlines})
        left = tell_duration((self._end - done) / timings["steps_per_second"])
        self._lines |= {
            "step": f"{done} of {self._end}",
            "time left": left,
            "steps / s": f"{timings['steps_per_second']:.3g}",
            "updates not finite": f"{skipped}, left out",
        }
        last = done + self._settings.training.steps_per_log > self._end
        if last or time.monotonic() >= self._next_snapshot:
            self._next_snapshot = time.monotonic() + SECONDS_BETWEEN_SNAPSHOTS
            self._show_snapshot(vectors)

    def validated(self, done: int, metrics: Mapping[str, float]) -> None:
        """Write the result of a validation."""
        self.say(f"{self.at(done)}  validation: {tell(metrics)}")
        self._log.record(done, VAL, metrics)
        self._plot(done, VAL, metrics)
        self._lines["validated"] = f"at step {done}"
        self._lines |= {f"  {_short(name)}": f"{value:.4g}" for name, value in metrics.items()}
        self._show_status()

    def baselines(self, values: Mapping[str, float]) -> None:
        """Write what the run's figures are to be compared with."""
        self.say(tell(values))
        for name, value in values.items():
            self._lines[_short(name)] = f"{value:.4g}"
        if not self._kept:
            self._log.record(self._start, "codes", values)

    def picture(self, done: int, name: str, images: Tensor, columns: int, *, display: bool, save: bool) -> None:
        """Show and write images [n,C,H,W], uint8 or in [0,1]."""
        grid = image_grid(images, columns)
        if display:
            self._dashboard.images(name, grid, title=self._title(name), step=done)
        if save:
            try:
                self._save_picture(done, name, images, grid)
            except OSError as error:
                self.warn(f"{self.at(done)}  WARNING: picture not written ({error.strerror}); the run goes on")

    def sync(self) -> None:
        """Make the metrics durable."""
        self._log.sync()

    def saved(self, done: int, file: Path) -> None:
        """A step was saved."""
        self.say(f"{self.at(done)}  saved {file}")
        self._lines |= {"step": f"{done} of {self._end}", "saved": f"at step {done}"}
        if done == self._end:
            self._lines["time left"] = tell_duration(0)
        self._show_status()
        if self._summary:
            self._summary.draw()

    def at(self, done: int) -> str:
        """A step in words, as wide as every other."""
        return f"step {done:>{len(str(self._end))}}/{self._end}"

    def close(self) -> None:
        """Close everything; waits 5 s at most for the dashboard's server, and then 30 s for the last summary."""
        if self._progress:
            self._progress.close()
        self._dashboard.close()
        if self._summary:
            self._summary.close()
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

    def _reserve(self) -> None:
        """Places for all panes, in their order."""
        first = self._settings.training.steps_per_display_output
        validates = self._settings.training.steps_per_eval > 0
        for pane in self._panes:
            if isinstance(pane, Curves):
                names = pane.names(validates)
                looks = {"stacked": pane.stacked, "from_zero": pane.from_zero}
                content = panes.curves(names, pane.title, "step", pane.ylabel, **looks)
            elif isinstance(pane, Bars):
                content = panes.bars([0.0], pane.title, pane.xlabel, pane.ylabel, pane.first)
            elif isinstance(pane, Pictures):
                content = panes.text(f"every {first} steps" if first else "none", pane.title, 2, pane.rows)
            else:
                content = panes.text(self._status(), pane.title)
            self._dashboard.reserve(pane.window, content)

    def _plot(self, done: int, split: str, metrics: Mapping[str, float]) -> None:
        for pane in self._panes:
            if isinstance(pane, Curves) and (values := pane.values(split, metrics)):
                self._dashboard.line(pane.window, done, values, title=pane.title, ylabel=pane.ylabel)

    def _show_status(self) -> None:
        for pane in self._panes:
            if isinstance(pane, Status):
                self._dashboard.text(pane.window, self._status(), title=pane.title)

    def _show_snapshot(self, vectors: Mapping[str, Tensor]) -> None:
        self._show_status()
        for pane in self._panes:
            if isinstance(pane, Bars) and pane.window in vectors:
                values = vectors[pane.window]
                if pane.descending:
                    values = values.sort(descending=True).values
                self._dashboard.bars(
                    pane.window,
                    values.numpy(),
                    title=pane.title,
                    xlabel=pane.xlabel,
                    ylabel=pane.ylabel,
                    first=pane.first,
                )

    def _status(self) -> str:
        width = max(map(len, self._lines)) + 2
        return "\n".join(f"{name:<{width}}{value}" for name, value in self._lines.items())

    def _title(self, window: str) -> str:
        return next((pane.title for pane in self._panes if pane.window == window), window.replace("_", " "))

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


def _short(name: str) -> str:
    """A metric's name for the status pane."""
    return name.replace("_bits_per_token", ", bits").replace("_", " ")
