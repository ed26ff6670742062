"""What is ambient to a running command: one object, entered once by the script and handed down as one argument."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn

from hparams.errors import RunError, UserError
from hparams.fields import values_of
from hparams.saved import describe
from hparams.settings.stages import RunSettings, Stage
from utils.data.bad_images import STANDS_IN, BadImages, Report
from utils.data.datasets import ImageData
from utils.machine import progress
from utils.machine.devices import autocast, describe_device, pick_amp_dtype, pick_device, precision_name
from utils.machine.distributed import ALONE, Ranks, joined
from utils.machine.files import remove_remains, sole_writer
from utils.machine.progress import Progress
from utils.machine.signals import Signals, Stopped, end_politely
from utils.runs.record import ALL, NoRecord, Record
from utils.runs.results import Value, record_result
from utils.runs.run_folder import RunFolder, save_settings
from utils.runs.same_settings import require_same_images, require_same_settings

_POLL_S = 0.2
# Of a record, in a run folder, of a run with settings by name, whose earlier part up to a step stays.
OpenSinks = Callable[[Record, RunFolder, Mapping[str, Any], int | None], None]


class Job:
    """A running command on its processes and device, in its run folder, for a `with` block. See `open_job`.

    It knows nothing of models.

    Attributes:
        ranks: the processes that share the work; the first one writes files that are no one's share.
        device: where to compute.
        amp_dtype: the type for autocast; None: float32.
        folder: the run folder.
        seed, batch_size, num_workers, compile: as the flags of these names.
        quiet: whether the terminal gets nothing but warnings and results.
        patience_s: how long a process waits for another.
        bad_images: takes images that cannot be read; see `begin`.
        signals: which signals came.
        record: what the job writes of itself: the first process alone, from `take_folder` on.
    """

    def __init__(
        self,
        run: RunSettings,
        device: torch.device,
        ranks: Ranks = ALONE,
        joined: ExitStack | None = None,
        open_sinks: OpenSinks = lambda *_: None,
        settings: Stage | None = None,
    ) -> None:
        """joined: lets the processes go when closed. open_sinks: opens what shows the job. settings: to save."""
        self.ranks = ranks
        self.device = device
        self.amp_dtype = pick_amp_dtype(device, run.amp, run.amp_dtype)
        self.folder = RunFolder(run.log_dir)
        self.seed, self.batch_size = run.seed, run.batch_size
        self.num_workers, self.compile = run.num_workers, run.compile
        self.quiet = run.quiet
        self.patience_s = float(run.dist_timeout)
        self.bad_images: Report = _refuse_bad_images
        self.signals = Signals()
        self._bad_share = run.max_bad_images
        self._settings = settings
        self.record: Record | NoRecord = NoRecord()
        self._joined = joined or ExitStack()
        self._open_sinks = open_sinks
        self._opened = ExitStack()

    def __enter__(self) -> Job:
        self._opened.enter_context(self.signals)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not error:
            self.record.draw()
        self._opened.close()
        if isinstance(error, Stopped):  # asked to while it waited for data
            end_politely(error.number)

    def autocast(self) -> torch.autocast:
        """A block in which networks compute in `amp_dtype`."""
        return autocast(self.device, self.amp_dtype)

    def say(self, text: str) -> None:
        """Lines for people, to the terminal, unless it is quiet, and to the log."""
        if isinstance(self.record, Record):
            self.record.say(text)
        elif not self.quiet:
            progress.say(text)

    def warn(self, text: str) -> None:
        """Lines that a quiet run shows too."""
        if isinstance(self.record, Record):
            self.record.warn(text)
        else:
            progress.say(text)

    def picture(self, name: str, picture: np.ndarray, *, write: bool = True) -> Path:
        """Show a picture uint8 [3,H,W], and write it to `images/<name>.png`, whose path is returned.

        write: False for one that only sinks show.
        """
        self.record.picture(None, name, picture, write=write)
        return self.folder.images / f"{name}.png"

    def result(self, conditions: Mapping[str, Value], values: Mapping[str, Value]) -> None:
        """Enter numbers in `results.json`, under all that they depend on; print and show them. The first process."""
        line = record_result(self.folder.results, conditions, values)
        self.record.results()
        print(line)

    def progress(self, what: str, total: int, unit: str, *, done: int = 0) -> Progress:
        """A progress bar, for a `with` block; see `Progress`."""
        return Progress(what, total, unit, done=done, quiet=self.quiet, say=self.say)

    def check(self) -> None:
        """To be called now and then by long work that its own command continues.

        Raises:
            SystemExit: a signal asked this process to stop.
        """
        if self.signals.stop:
            end_politely(self.signals.stop)

    def wait_for(self, missing: Callable[[], int], what: str) -> None:
        """Until nothing of what the processes share is missing; all call this together. One process never waits.

        Raises:
            RunError: nothing more has come within `patience_s`.
            SystemExit: a signal asked this process to stop.
        """
        if self.ranks.count == 1:
            return
        seen, since = missing(), time.monotonic()
        while left := missing():
            if left != seen:
                seen, since = left, time.monotonic()
            elif time.monotonic() - since > self.patience_s:
                raise RunError(
                    f"{what}: {left} are missing, and none has come within --dist_timeout {self.patience_s:.0f}; what "
                    "was written is whole: the same command goes on from there"
                )
            self.check()
            time.sleep(_POLL_S)
        self.ranks.wait()

    def go_on_alone(self) -> bool:
        """Let the other processes end; all call this together. Whether this one goes on: the first, with what is left.

        For what the first one does alone at the end, and the others need not wait for.
        """
        self._joined.close()
        first = self.ranks.first
        self.ranks = ALONE
        return first

    def begin(
        self,
        what: str,
        facts: Mapping[str, str],
        *,
        data: Mapping[str, Sequence[ImageData]] | None = None,
        until_replaced: str = STANDS_IN,
        resume_step: int | None = ALL,
    ) -> None:
        """Say what runs, take the run folder for this job alone, and write its settings.

        Until then nothing is written, so that a refusal leaves the folder as it was.

        Args:
            what: what runs, in words.
            facts: on what, a line each.
            data: the images that it reads, by the flag that names them; all processes must find the same.
            until_replaced: what becomes of images that cannot be read.
            resume_step: the step up to which the folder's metrics stay, and the log goes on; None begins them anew.

        Raises:
            UserError: another job writes to the folder, or the processes have different images.
        """
        for flag, splits in (data or {}).items():
            require_same_images(flag, splits, self.ranks)
        self.take_folder(resume_step=resume_step)
        self.introduce(what, facts)
        self.list_bad_images(until_replaced=until_replaced)

    def take_folder(self, *, resume_step: int | None, saves: bool = True) -> None:
        """Take the run folder for this job alone, save its settings, open its record and what shows it; see `begin`.

        saves: False where the folder has the settings already.
        """
        if self.ranks.first:
            self._opened.enter_context(sole_writer(self.folder.path))
            remove_remains(self.folder.path)
            record = self._opened.enter_context(closing(Record(self.folder, resume_step=resume_step, quiet=self.quiet)))
            self.record = record
            if self._settings:
                self._open_sinks(record, self.folder, values_of(self._settings), resume_step)
                if saves:
                    save_settings(self._settings, self.folder.hparams)

    def list_bad_images(self, *, keep: bool = False, until_replaced: str = STANDS_IN) -> None:
        """Let the run folder list images that cannot be read, up to the share allowed; keep: go on from its list."""
        file, writes = self.folder.bad_images, self.ranks.first
        listed = BadImages(file, self._bad_share, self.warn, keep=keep, writes=writes, until_then=until_replaced)
        self.bad_images = listed.report

    def introduce(self, what: str, facts: Mapping[str, str], notes: Sequence[str] = ()) -> None:
        """Say what runs, in which folder, on which devices, in which precision, `facts`, notes, and the settings."""
        more = f" and {self.ranks.count - 1} like it" if self.ranks.count > 1 else ""
        precision = precision_name(self.amp_dtype)
        lines = {
            "run": f"{what}, in {self.folder.path}",
            "device": describe_device(self.device) + more,
            "precision": f"mixed ({precision})" if self.amp_dtype else precision,
            **facts,
        }
        self.say("\n".join(f"{name:<12}{fact}" for name, fact in lines.items()))
        for note in notes:
            self.say(note)
        if self._settings:
            self.say(describe(self._settings))


@contextmanager
def open_job(settings: Stage, open_sinks: OpenSinks = lambda *_: None) -> Iterator[Job]:
    """The job of a script with these settings: its processes join, and its device is picked.

    open_sinks: opens what shows the job; see `utils.reporting.sinks.open_sinks`.

    Raises:
        UserError: there is no such device, or the processes have different settings.
        SystemExit: a signal asked to stop while data were waited for.
    """
    run = settings.run
    device = pick_device(run.device)
    with ExitStack() as stack:
        ranks = stack.enter_context(joined(device, backend=run.dist_backend, timeout_s=run.dist_timeout))
        require_same_settings(settings, ranks)
        with Job(run, device, ranks, stack, open_sinks, settings) as job:
            yield job


def _refuse_bad_images(found: Mapping[str, str], images: int) -> None:
    raise UserError(next(iter(found.values())))


def tell_parameters(module: nn.Module) -> str:
    """The size of a network in words."""
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f} M"
