"""What a training run says of itself: its log, its progress, its metrics and pictures."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.vqgan.quantizers import perplexity
from utils.data.pictures import image_grid, save_png
from utils.machine.progress import Progress, tell, tell_duration
from utils.reporting.layout import BASELINES, STATUS, TRAIN, VAL
from utils.runs.job import Job

Numbers = Mapping[str, float]

# The two figures of a kind of run that matter most, by the name under which they stand beside its progress.
HEADLINES = {"loss": "loss", "l1": "L1", "elbo_bits_per_token": "ELBO"}

# Metrics about the machine, which no seed determines.
TIMINGS = (
    "steps_per_second", "images_per_second", "data_ms", "step_ms", "other_ms", "gpu_memory_gib", "gpu_reserved_gib",
)  # fmt: skip

SECONDS_BETWEEN_SNAPSHOTS = 15.0  # of what is shown anew each time: histograms and the status


class TrainingReport:
    """Log, progress, metrics and pictures of a run of the given kind; it fills the record of `job`.

    settings: those of the run, by name. start: updates done before it. kept: whether its files hold earlier ones.
    """

    def __init__(self, job: Job, settings: Mapping[str, Any], kind: str, *, start: int, kept: bool) -> None:
        self._job, self._record, self._folder = job, job.record, job.folder
        self._settings, self._start, self._end = settings, start, settings["train_steps"]
        self._kept = kept
        self.say, self.warn = job.say, job.warn
        self._progress: Progress | None = None
        self._lines = {"what": f"{kind} on {settings['dataset']}", "folder": str(job.folder.path)}  # of the status
        self._next_snapshot = 0.0
        self._show_status()

    def begin(self) -> None:
        """Show the progress of the training from here on."""
        quiet, show = self._job.quiet, self._record.show
        self._progress = Progress("training", self._end, "step", done=self._start, quiet=quiet, say=show)

    def stepped(self) -> None:
        """One more update is done."""
        if self._progress:
            self._progress.update()

    def logged(
        self, done: int, means: Numbers, vectors: Mapping[str, Tensor], *, steps: int, seconds: Numbers, skipped: int
    ) -> None:
        """Write the means of some steps, and how long they took by phase; `skipped` updates were left out so far."""
        timings = self._timings(steps, seconds)
        if (counts := vectors.get("code_counts")) is not None:
            used = (counts > 0).double().mean().item()
            means = {**means, "codebook_perplexity": perplexity(counts).item(), "codebook_used": used}
        left_out = {"skipped_updates": skipped} if skipped else {}
        self._record.note(f"{self.at(done)}  {tell({**means, **left_out})}  {tell(timings)}")
        self._record.scalars(done, TRAIN, {**means, "skipped_updates": skipped, **timings})
        if self._progress:
            self._progress.update(0, **{label: means[name] for name, label in HEADLINES.items() if name in means})
        rate = timings["steps_per_second"]
        self._lines |= {"step": f"{done} of {self._end}", "time left": tell_duration((self._end - done) / rate)}
        self._lines |= {"steps / s": f"{rate:.3g}", "updates not finite": f"{skipped}, left out"}
        if done + self._settings["steps_per_log"] > self._end or time.monotonic() >= self._next_snapshot:
            self._next_snapshot = time.monotonic() + SECONDS_BETWEEN_SNAPSHOTS
            self._show_status()
            for name, values in vectors.items():
                self._record.histogram(done, name, values.tolist())

    def validated(self, done: int, metrics: Numbers) -> None:
        """Write the result of a validation."""
        self.say(f"{self.at(done)}  validation: {tell(metrics)}")
        self._record.scalars(done, VAL, metrics)
        told = {f"  {_short(name)}": f"{value:.4g}" for name, value in metrics.items()}
        self._lines |= {"validated": f"at step {done}", **told}
        self._show_status()

    def baselines(self, values: Numbers) -> None:
        """Write what the run's figures are to be compared with."""
        self.say(tell(values))
        self._lines |= {_short(name): f"{value:.4g}" for name, value in values.items()}
        if not self._kept:
            self._record.scalars(self._start, BASELINES, values)

    def picture(self, done: int, name: str, images: Tensor, columns: int, *, display: bool, save: bool) -> None:
        """Show or write images [n,C,H,W], uint8 or in [0,1]. A grid that is shown is written, too."""
        grid = image_grid(images, columns)
        individually = save and self._settings["save_individually"]
        path = self._folder.images / f"{name}_{done}"
        try:
            if display:
                self._record.picture(done, name, grid)
            elif not individually:
                save_png(path.with_suffix(".png"), grid)
            for number, image in enumerate(images if individually else ()):
                save_png(path.with_name(f"{path.name}_{number}.png"), image_grid(image[None], 1))
        except OSError as error:
            self.warn(f"{self.at(done)}  WARNING: picture not written ({error.strerror}); the run goes on")

    def saved(self, done: int, file: Path) -> None:
        """A step was saved."""
        self.say(f"{self.at(done)}  saved {file}")
        over = {"time left": tell_duration(0)} if done == self._end else {}
        self._lines |= {"step": f"{done} of {self._end}", "saved": f"at step {done}", **over}
        self._show_status()
        self._record.draw()

    def at(self, done: int) -> str:
        """A step in words, as wide as every other."""
        return f"step {done:>{len(str(self._end))}}/{self._end}"

    def close(self) -> None:
        """End the progress bar."""
        if self._progress:
            self._progress.close()

    def _timings(self, steps: int, seconds: Numbers) -> dict[str, float]:
        rate = steps / max(sum(seconds.values()), 1e-9)
        timings = {"steps_per_second": rate, "images_per_second": rate * self._settings["global_batch"]}
        timings |= {f"{phase}_ms": 1000 * seconds.get(phase, 0.0) / steps for phase in ("data", "step", "other")}
        if self._job.device.type == "cuda":
            timings["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self._job.device) / 2**30
            timings["gpu_reserved_gib"] = torch.cuda.max_memory_reserved(self._job.device) / 2**30
            torch.cuda.reset_peak_memory_stats(self._job.device)
        return timings

    def _show_status(self) -> None:
        width = max(map(len, self._lines)) + 2
        self._record.text(STATUS, "\n".join(f"{name:<{width}}{value}" for name, value in self._lines.items()))


def _short(name: str) -> str:
    """A metric's name for the status."""
    return name.replace("_bits_per_token", ", bits").replace("_", " ")
