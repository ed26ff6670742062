"""What a training run says of itself: its log, its progress, its metrics and pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.vqgan.quantizers import perplexity
from utils.data.pictures import image_grid, save_png
from utils.machine.progress import Progress, tell, tell_duration
from utils.reporting.layout import BASELINES, STATUS, TRAIN, VAL
from utils.reporting.sinks import open_sinks
from utils.runs.record import Record
from utils.runs.run_folder import VQGAN, RunFolder

# The two figures of a run that matter most, by the name under which they stand beside its progress.
HEADLINES = {"loss": "loss", "l1": "L1", "elbo_bits_per_token": "ELBO"}

# Metrics about the machine, which no seed determines.
TIMINGS = ("steps_per_second", "images_per_second", "data_ms", "step_ms", "other_ms")

SECONDS_BETWEEN_SNAPSHOTS = 15.0  # of what is shown anew each time: histograms and the status


class TrainingReport:
    """Log, progress, metrics and pictures of a run of the given kind.

    settings: those of the run, by name. start: updates done before the run. resume_step: step up to which the files'
    content is kept and goes on; None begins them anew.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        kind: str,
        folder: RunFolder,
        *,
        start: int,
        resume_step: int | None,
        device: torch.device,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._start, self._end = start, settings["train_steps"]
        self._kept = resume_step is not None
        self._device = device
        self._headlines = ("loss", "l1") if kind == VQGAN else ("loss", "elbo_bits_per_token")
        self._record = Record(folder, resume_step=resume_step, quiet=settings["quiet"])
        self.say, self.warn, self.sync = self._record.say, self._record.warn, self._record.sync
        self._progress: Progress | None = None
        self._lines = {"what": f"{kind} on {settings['dataset']}", "folder": str(folder.path)}  # of the status
        self._next_snapshot = 0.0
        open_sinks(self._record, folder, settings, resume_step=resume_step)
        self._show_status()

    def begin(self) -> None:
        """Show the progress of the training from here on."""
        self._progress = Progress(
            "training",
            self._end,
            "step",
            done=self._start,
            quiet=self._settings["quiet"],
            say=self._record.show,
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
        self._record.note(f"{self.at(done)}  {tell(shown)}  {tell(timings)}")
        self._record.scalars(done, TRAIN, {**means, "skipped_updates": skipped, **timings})
        if self._progress:
            self._progress.update(0, **{HEADLINES[name]: means[name] for name in self._headlines})
        left = tell_duration((self._end - done) / timings["steps_per_second"])
        self._lines |= {
            "step": f"{done} of {self._end}",
            "time left": left,
            "steps / s": f"{timings['steps_per_second']:.3g}",
            "updates not finite": f"{skipped}, left out",
        }
        last = done + self._settings["steps_per_log"] > self._end
        if last or time.monotonic() >= self._next_snapshot:
            self._next_snapshot = time.monotonic() + SECONDS_BETWEEN_SNAPSHOTS
            self._show_status()
            for name, values in vectors.items():
                self._record.histogram(done, name, values.tolist())

    def validated(self, done: int, metrics: Mapping[str, float]) -> None:
        """Write the result of a validation."""
        self.say(f"{self.at(done)}  validation: {tell(metrics)}")
        self._record.scalars(done, VAL, metrics)
        self._lines["validated"] = f"at step {done}"
        self._lines |= {f"  {_short(name)}": f"{value:.4g}" for name, value in metrics.items()}
        self._show_status()

    def baselines(self, values: Mapping[str, float]) -> None:
        """Write what the run's figures are to be compared with."""
        self.say(tell(values))
        for name, value in values.items():
            self._lines[_short(name)] = f"{value:.4g}"
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
        self._lines |= {"step": f"{done} of {self._end}", "saved": f"at step {done}"}
        if done == self._end:
            self._lines["time left"] = tell_duration(0)
        self._show_status()
        self._record.draw()

    def at(self, done: int) -> str:
        """A step in words, as wide as every other."""
        return f"step {done:>{len(str(self._end))}}/{self._end}"

    def close(self) -> None:
        """Close everything; waits for each sink as long as its module says."""
        if self._progress:
            self._progress.close()
        self._record.close()

    def _timings(self, steps: int, seconds: Mapping[str, float]) -> dict[str, float]:
        total = sum(seconds.values())
        rate = steps / max(total, 1e-9)
        timings = {"steps_per_second": rate, "images_per_second": rate * self._settings["global_batch"]}
        timings |= {f"{phase}_ms": 1000 * seconds.get(phase, 0.0) / steps for phase in ("data", "step", "other")}
        if self._device.type == "cuda":
            timings["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self._device) / 2**30
            timings["gpu_reserved_gib"] = torch.cuda.max_memory_reserved(self._device) / 2**30
            torch.cuda.reset_peak_memory_stats(self._device)
        return timings

    def _show_status(self) -> None:
        width = max(map(len, self._lines)) + 2
        self._record.text(STATUS, "\n".join(f"{name:<{width}}{value}" for name, value in self._lines.items()))


class SilentReport:
    """Stands for the report where another process writes it."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return self._ignore

    def _ignore(self, *_: Any, **__: Any) -> None: ...


def _short(name: str) -> str:
    """A metric's name for the status."""
    return name.replace("_bits_per_token", ", bits").replace("_", " ")
