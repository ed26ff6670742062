"""What is ambient to a running command: one object, entered once by the script and handed down as one argument."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hparams.errors import RunError, UserError
from hparams.fields import Setting, as_text, settings_of, values_of
from hparams.same_command import is_of_machine, is_place
from hparams.saved import describe, to_flat
from hparams.settings.stages import Stage
from utils.data.bad_images import STANDS_IN, BadImages, Report
from utils.data.datasets import ImageData
from utils.machine.devices import autocast, describe_device, pick_amp_dtype, pick_device, precision_name
from utils.machine.distributed import ALONE, Ranks, joined
from utils.machine.files import remove_remains, sole_writer
from utils.machine.progress import Progress
from utils.machine.signals import Signals, Stopped, end_politely
from utils.runs.record import ALL, NoRecord, Record
from utils.runs.results import Value, record_result
from utils.runs.run_folder import RunFolder, save_settings

_POLL_S = 0.2
# Of a record, in a run folder, of a run with settings by name, whose earlier part up to a step stays.
OpenSinks = Callable[[Record, RunFolder, Mapping[str, Any], int | None], None]


class Job:
    """A running command on its processes and device, in its run folder, for a `with` block. See `open_job`.

    Attributes:
        ranks: the processes that share the work; the first one writes files that are no one's share.
        seed, batch_size, num_workers, compile, quiet: as the flags of these names; patience_s: --dist_timeout.
        bad_images: takes images that cannot be read; see `begin`.
        record: what the job writes of itself: the first process alone, from `take_folder` on.
    """

    def __init__(
        self,
        settings: Stage,  # to save and to show; the job itself heeds those of the run
        device: torch.device,
        ranks: Ranks = ALONE,
        joined: ExitStack | None = None,  # lets the processes go when closed
        open_sinks: OpenSinks = lambda *_: None,  # opens what shows the job
    ) -> None:
        run = settings.run
        self.ranks, self.device, self.amp_dtype = ranks, device, pick_amp_dtype(device, run.amp, run.amp_dtype)
        self.folder = RunFolder(run.log_dir)
        self.seed, self.batch_size, self.num_workers = run.seed, run.batch_size, run.num_workers
        self.compile, self.quiet, self.patience_s = run.compile, run.quiet, float(run.dist_timeout)
        self.bad_images: Report = _refuse_bad_images
        self.signals = Signals()
        self.record: Record | NoRecord = NoRecord(run.quiet)
        self._settings, self._open_sinks = settings, open_sinks
        self._joined, self._opened = joined or ExitStack(), ExitStack()

    def __enter__(self) -> Job:
        self._opened.enter_context(self.signals)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
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
        self.record.say(text)

    def warn(self, text: str) -> None:
        """Lines that a quiet run shows too."""
        self.record.warn(text)

    def picture(self, name: str, picture: np.ndarray, *, write: bool = True) -> Path:
        """Show a picture uint8 [3,H,W], and write it, unless only sinks show it, to `images/<name>.png`: that path."""
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
        """To be called now and then by long work that its command continues. SystemExit: a signal asked to stop."""
        if self.signals.stop:
            end_politely(self.signals.stop)

    def wait_for(self, missing: Callable[[], int], what: str) -> None:
        """Until nothing that the processes share is missing; all call it. RunError: none came within `patience_s`."""
        seen, since = 0, 0.0
        while self.ranks.count > 1 and (left := missing()):
            if left != seen:
                seen, since = left, time.monotonic()
            elif time.monotonic() - since > self.patience_s:
                told = f"{left} are missing, and none has come within --dist_timeout {self.patience_s:.0f}"
                raise RunError(f"{what}: {told}; what was written is whole: the same command goes on from there")
            self.check()
            time.sleep(_POLL_S)
        self.ranks.wait()

    def go_on_alone(self) -> bool:
        """Let the other processes end; all call this together. Returns whether this one, the first, goes on."""
        self._joined.close()
        first, self.ranks = self.ranks.first, ALONE
        return first

    def begin(
        self,
        what: str,  # runs, in words
        facts: Mapping[str, str],  # on what, a line each
        *,
        data: Mapping[str, Sequence[ImageData]] | None = None,  # what it reads, by the flag that names it
        until_replaced: str = STANDS_IN,  # what becomes of images that cannot be read
        resume_step: int | None = ALL,  # up to which the folder's metrics stay, and the log goes on; None: anew
    ) -> None:
        """Say what runs, take the run folder for this job alone, and write its settings; until then nothing is written.

        UserError: another job writes to the folder, or the processes have different images.
        """
        for flag, splits in (data or {}).items():
            require_same_images(flag, splits, self.ranks)
        self.take_folder(resume_step=resume_step)
        self.introduce(what, facts)
        self.list_bad_images(until_replaced=until_replaced)

    def take_folder(self, *, resume_step: int | None, saves: bool = True) -> None:
        """Take the run folder for this job alone, open its record and what shows it, save its settings; see `begin`."""
        if self.ranks.first:
            self._opened.enter_context(sole_writer(self.folder.path))
            remove_remains(self.folder.path)
            record = self._opened.enter_context(closing(Record(self.folder, resume_step=resume_step, quiet=self.quiet)))
            self.record = record
            self._open_sinks(record, self.folder, values_of(self._settings), resume_step)
            if saves:
                save_settings(self._settings, self.folder.hparams)

    def list_bad_images(self, *, keep: bool = False, until_replaced: str = STANDS_IN) -> None:
        """Let the run folder list images that cannot be read, up to the share allowed; keep: go on from its list."""
        file, share, writes = self.folder.bad_images, self._settings.run.max_bad_images, self.ranks.first
        listed = BadImages(file, share, self.warn, keep=keep, writes=writes, until_replaced=until_replaced)
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
        for text in ("\n".join(f"{name:<12}{fact}" for name, fact in lines.items()), *notes, describe(self._settings)):
            self.say(text)


@contextmanager
def open_job(settings: Stage, open_sinks: OpenSinks = lambda *_: None) -> Iterator[Job]:
    """The job of a script with these settings: its processes join, and its device is picked.

    UserError: there is no such device, or the processes have different settings. SystemExit: a signal asked to stop.
    """
    run = settings.run
    device = pick_device(run.device)
    with ExitStack() as stack:
        ranks = stack.enter_context(joined(device, backend=run.dist_backend, timeout_s=run.dist_timeout))
        # The backend too: where one process takes gloo, all do, whatever the others were told.
        values = to_flat(settings) | {"dist_backend": run.dist_backend}
        require_same_settings(values, settings_of(type(settings)), ranks)
        with Job(settings, device, ranks, stack, open_sinks) as job:
            yield job


def require_same_settings(values: Mapping[str, Any], known: Mapping[str, Setting], ranks: Ranks) -> None:
    """UserError, on every process, unless all have the first one's values, but for what is a machine's own."""
    first, *others = ranks.gather_objects(values)
    shared = [name for name in first if not is_of_machine(known[name]) and not is_place(known[name])]
    for rank, theirs in enumerate(others, start=1):
        for name in shared:
            if theirs.get(name) != first[name]:
                told = f"rank {rank} has {as_text(theirs.get(name))}, and rank 0 {as_text(first[name])}"
                raise UserError(f"--{name}: {told}: start all processes by the same command")


def require_same_images(flag: str, splits: Sequence[ImageData], ranks: Ranks) -> None:
    """UserError, on every process, unless all find images of the same names and sizes in what `flag` names."""
    if ranks.count == 1:
        return
    own = (socket.gethostname(), sum(map(len, splits)), [images.listing for images in splits])
    (first_host, number, listing), *others = ranks.gather_objects(own)
    differ: dict[str, str] = {}  # a process of each host will do
    for rank, (host, count, theirs) in enumerate(others, start=1):
        if theirs != listing:
            differ.setdefault(host, f"rank {rank} on {host} ({count} images)")
    if differ:
        told = f"{', '.join(differ.values())} than on rank 0 on {first_host} ({number} images)"
        raise UserError(f"{flag}: other names or sizes of files on {told}: give all machines the same data")


def _refuse_bad_images(found: Mapping[str, str], images: int) -> None:
    raise UserError(next(iter(found.values())))


def tell_parameters(module: nn.Module) -> str:
    """The size of a network in words."""
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f} M"
