"""A training run on disk: where it starts, what it logs, when it saves, and how it is resumed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from signal import Signals as Signal
from types import TracebackType
from typing import Any, NoReturn, Protocol, TypedDict

import torch
from torch import Tensor, nn

from hparams.errors import RunError, UserError
from hparams.fields import values_of
from hparams.notes import notes_on_length
from hparams.settings.stages import PriorStage, VQGANStage
from utils.data.bad_images import SharedReport
from utils.data.datasets import ImageData
from utils.machine.files import make_folder, sha256_of
from utils.machine.signals import Stopped, exit_code
from utils.machine.stopwatch import Stopwatch
from utils.reporting.training_report import TrainingReport
from utils.runs.checkpoints import (
    LOGSIGMA,
    load_file,
    load_into,
    load_state,
    load_state_dict,
    require_finite,
    save_step,
)
from utils.runs.job import Job, tell_parameters
from utils.runs.retention import clean_up, drop_weights, space_note
from utils.runs.run_folder import RunFolder
from utils.training.bookkeeping import Averages, Rhythm, SkippedUpdates
from utils.training.optimiser import Optimiser, load_moments
from utils.training.training_start import first_step, own_steps


class DataNote(TypedDict):
    """Which images a run is trained on."""

    images: int
    fingerprint: str


class Trainer(Protocol):
    """What a run needs of the stage that it runs. Optimisers go by the names of the published files."""

    device: torch.device
    optimisers: dict[str, Optimiser]

    def models(self) -> Mapping[bool, nn.Module]: ...

    def release(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class TrainingRun:
    """Steps, checkpoints and report of one run. Use it in a `with` block."""

    def __init__(self, settings: VQGANStage | PriorStage, kind: str, trainer: Trainer, job: Job) -> None:
        """Bring the trainer to where the run starts, then open the run's files: a refusal leaves them as they were.

        Of several processes, which share the folder, each restores its trainer, and the first alone writes.
        """
        self._job = job
        self.ranks = ranks = job.ranks
        self.settings = settings
        self.kind = kind
        self.folder = RunFolder(settings.run.log_dir)
        self.start = first_step(settings, kind)
        self.end = settings.training.train_steps
        self._own_steps = own_steps(settings, kind)
        self._trainer = trainer
        self._averages = Averages()
        self._skipped = SkippedUpdates(trainer.device, settings.training.max_skipped)
        self._notes = [f"note: {line}" for line in notes_on_length(settings)]
        self._data: DataNote | None = None
        self._autoencoder: str | None = None
        self._restore(trainer)
        if ranks.first:
            to_do = self.end - self.start
            self._notes.append(space_note(self.folder.path, trainer.models(), settings.training, to_do))
        self._open = ExitStack()
        # Release captured CUDA graphs before destroy_process_group(): NCCL hangs while one references its collectives.
        self._open.callback(trainer.release)
        self._signals = job.signals
        self._stopping: Signal | None = None
        self._rhythm = Rhythm(self.start)
        self._unfinished = self.folder.unfinished_steps(kind)
        source = RunFolder(settings.training.load_dir or settings.run.log_dir)
        goes_on = self._own_steps or (self.start > 0 and source.path == self.folder.path)
        kept = self.start if goes_on and self.folder.metrics.exists() else None
        saves = settings.training.resume or not self._own_steps  # else they are saved, for any number of processes
        job.take_folder(resume_step=kept, saves=saves)
        self._report = TrainingReport(job, values_of(settings), kind, start=self.start, kept=kept is not None)
        self.say, self.warn = self._report.say, self._report.warn
        self.validated, self.baselines = self._report.validated, self._report.baselines
        if ranks.first and self._own_steps:  # an earlier process may have ended before it came to that
            clean_up(self.folder, kind, self.start, settings.training)
        job.list_bad_images(keep=self._data is not None)
        self.bad_images_met = SharedReport(lambda *told: job.bad_images(*told), ranks)
        self._watch = Stopwatch(trainer.device)
        self._logged = self._saved = self.start
        self._whole: int | None = self.start  # the updates done; None while one is being made

    def __enter__(self) -> TrainingRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, Exception):
                self._save_before_the_end()
            if isinstance(error, Stopped):
                self._stop(error.number, self._saved)
        finally:
            self._report.close()
            self._open.close()

    def introduce(self, trainer: Trainer, data: str) -> None:
        """First lines of the log: what runs where, on what, from where; then the settings."""
        begin = f"continuing after step {self.start}" if self.start else "starting"
        to_do = max(0, self.end - self.start)
        more = {
            "parameters": tell_parameters(trainer.models()[False]),
            "data": data,
            "steps": f"{begin}, {to_do} steps to do{'' if to_do else '; a larger --train_steps goes on'}",
        }
        what = f"{self.kind} on {self.settings.run.dataset}"
        notes = list(self._notes)
        if self._unfinished:
            notes.append(f"not finished, and left aside: step {', '.join(map(str, self._unfinished))}")
        self._job.introduce(what, more, notes)

    def compare_data(self, images: ImageData) -> None:
        """Say if a resumed run's images are not those that it was trained on; every saved step notes which they are."""
        now: DataNote = {"images": len(images), "fingerprint": images.fingerprint}
        if self._data and self._data != now:
            self.warn(
                f"WARNING: the data set changed since step {self.start}: {self._data['images']} images then, "
                f"{len(images)} now, or other files, sizes or times; the run goes on, but not as it would have"
            )
            self._job.list_bad_images()
        self._data = now

    def compare_autoencoder(self, file: Path) -> None:
        """Say if a resumed run's autoencoder is not the one whose codes it was trained on; saved steps note which."""
        now = sha256_of(file)
        if self._autoencoder not in (None, now):
            self.warn(
                f"WARNING: {file} is not the autoencoder that the run had until step {self.start}: its codes mean "
                "something else; the run goes on, but not as it would have"
            )
        self._autoencoder = now

    def _restore(self, trainer: Trainer) -> None:
        """Load everything where the run goes on, weights only with --load_step."""
        training = self.settings.training
        if training.resume and not self._own_steps:
            self._notes.append("this run was interrupted before it saved a step: it starts again")
        if self._own_steps:
            state, file = self._newest_whole_state(), self.folder.state_file(self.kind, self.start)
            for ema, model in trainer.models().items():
                sibling = self.folder.model_file(self.kind, self.start, ema=ema)
                if sibling.name not in state["siblings"]:
                    raise UserError(f"--ema: step {self.start} was saved without {sibling.name}: resume with --no_ema")
                load_into(model, load_state_dict(sibling), sibling)
            try:
                trainer.load_state_dict(state["trainer"])
                self._averages.load_state_dict(state["averages"], trainer.device)
                self._skipped.load_state_dict(state["skipped"])
                self._data = state.get("data")
                self._autoencoder = state.get("autoencoder")
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                reason = " ".join(str(error).split())[:120]
                raise UserError(f"{file} does not fit these settings ({reason}): check the flags") from None
            require_finite({name: each.adam.state_dict() for name, each in trainer.optimisers.items()}, file)
        elif training.load_step:
            source = RunFolder(training.load_dir or self.settings.run.log_dir)
            for ema, model in trainer.models().items():
                file = source.starting_file(self.kind, training.load_step, ema=ema)
                load_into(model, load_state_dict(file), file, may_lack=LOGSIGMA)
                self._notes.append(f"{'average' if ema else 'weights'} from {file}")
            if training.load_optim:
                self._load_optimisers(source, trainer, training.load_step)

    def _newest_whole_state(self) -> dict[str, Any]:
        """The newest training state whose step is unharmed, by the first process's judgement; sets `start` to it.

        Raises:
            UserError: none is; the line is about the newest.
        """
        whole: dict[str, Any] = {}
        self.start = self.ranks.from_first(lambda: self._newest_whole_step(whole))
        return whole or load_file(self.folder.state_file(self.kind, self.start))

    def _newest_whole_step(self, state: dict[str, Any]) -> int:
        """Its number; its content goes into `state`."""
        problems = []
        for step in reversed(self._own_steps):
            try:
                state |= load_state(self.folder, self.kind, step)
            except UserError as error:
                problems.append(error)
                self._notes.append(f"{error}; trying an older step")
                continue
            return step
        raise problems[0]

    def steps(self, batches: Iterable[Tensor]) -> Iterator[tuple[int, Tensor]]:
        """The steps to do, each with its batch; a step is the number of updates before it.

        Raises:
            SystemExit: a signal asked the run to stop, and its last step is saved.
        """
        self._report.begin()
        self._watch.start()
        source = iter(batches)
        for step in range(self.start, self.end):
            batch = next(source)
            self._watch.mark("data")
            self._whole = None
            yield step, batch
            self._watch.mark("other")
            done, stop = step + 1, self._stopping
            if stop and done < self.end:
                self._stop(stop, done)

    def _stop(self, number: Signal, done: int) -> NoReturn:
        self.warn(f"stopped by {number.name} after step {done}; the same command goes on")
        raise SystemExit(exit_code(number))

    def due(self, every: int, done: int) -> bool:
        """Whether something that happens every so many steps (0: never) happens after `done` updates."""
        return bool(every) and done % every == 0

    def log(self, done: int, metrics: Mapping[str, Tensor]) -> None:
        """Enter the metrics of the step that was just made; means are written every `steps_per_log` steps."""
        self._watch.mark("step")
        self._report.stepped()
        metrics = dict(metrics)
        skipped = metrics.pop("skipped")
        self._skipped.add(done, skipped)
        self._averages.add(metrics)
        due = self.due(self.settings.training.steps_per_log, done)
        total = self._skipped.check() if due or skipped.device.type == "cpu" else 0
        self._whole = done
        if not due:
            return
        means, vectors = self._averages.pop()
        self._report.logged(done, means, vectors, steps=done - self._logged, seconds=self._watch.pop(), skipped=total)
        self._logged = done

    def picture_due(self, done: int) -> bool:
        """Whether a picture is to be shown or written after `done` updates."""
        training = self.settings.training
        return self.due(training.steps_per_display_output, done) or self.due(training.steps_per_save_output, done)

    def picture(self, done: int, name: str, images: Tensor, columns: int = 8) -> None:
        """Show and write images [n,C,H,W], uint8 or in [0,1], as far as each is due."""
        training = self.settings.training
        if not self.ranks.first:
            return
        self._report.picture(
            done,
            name,
            images,
            columns,
            display=self.due(training.steps_per_display_output, done),
            save=self.due(training.steps_per_save_output, done),
        )

    def save_if_due(self, done: int) -> None:
        """Save the step every `steps_per_checkpoint` steps, when a signal asks for it, and always the last one.

        Raises:
            RunError: the run's last step cannot be saved. Earlier ones may fail: the run goes on.
        """
        save_asked = self._heed_signals(done)
        last = done == self.end or self._stopping is not None
        if not (last or save_asked or self.due(self.settings.training.steps_per_checkpoint, done)):
            return
        if not self.ranks.first:
            self._saved = done
            return
        try:
            self._save(done)
        except OSError as error:
            problem = f"step {done} could not be saved in {self.folder.saved_models} ({error.strerror})"
            if last:
                self._saved = done  # no other attempt as this error ends the run
                raise RunError(
                    f"{problem}: make room there, then the same command goes on from the newest saved step"
                ) from None
            self.warn(f"WARNING: {problem}; the run goes on and tries again at its next checkpoint")
            if not self.folder.state_file(self.kind, done).exists():
                drop_weights(self.folder, self.kind, done)  # or they would take the room of the next one
            return
        self._saved = done
        clean_up(self.folder, self.kind, done, self.settings.training)

    def _save(self, done: int) -> None:
        """Save a step, which is the same on every process; OSError where the disk does not take it."""
        self._job.record.sync()  # a whole step has its metrics
        state = {
            "trainer": self._trainer.state_dict(),
            "averages": self._averages.state_dict(),
            "skipped": self._skipped.state_dict(),
            "data": self._data,
            "autoencoder": self._autoencoder,
        }
        save_step(self.folder, self.kind, done, self._trainer.models(), state)
        self._report.saved(done, self.folder.model_file(self.kind, done))

    def _save_before_the_end(self) -> None:
        """Save what the run has done, if an error ends it between two steps: half a step is none.

        Of several processes, the one that meets the error saves, as the first may be in the middle of the next step.
        """
        done = self._whole
        if done is None or done == self._saved:
            return
        self._saved = done
        try:
            if not self.ranks.first:  # unless another one is saving it
                make_folder(self.folder.saved_models)
                self.folder.saving_mark(self.kind, done).touch(exist_ok=False)
            self._save(done)
        except FileExistsError:
            pass
        except Exception as error:  # the first error is the one to tell
            self.warn(f"WARNING: step {done} could not be saved ({' '.join(str(error).split())[:120]})")

    def _heed_signals(self, done: int) -> bool:
        """Take notice of signals, and of images that others could not read; whether a signal asks to save.

        Processes do so after the same step, every few steps.
        """
        if self.ranks.count > 1 and not self._rhythm.due(done) and done < self.end:
            return False
        self.bad_images_met.exchange()
        save, self._signals.save = self._signals.save, False
        stop, save_asked, elapsed = self.ranks.agree(self._signals.stop or 0, save, self._rhythm.elapsed_ms())
        self._rhythm.agreed(done, elapsed)
        self._stopping = Signal(stop) if stop else None
        return bool(save_asked)

    def _load_optimisers(self, source: RunFolder, trainer: Trainer, step: int) -> None:
        names = {parameter: name for name, parameter in trainer.models()[False].named_parameters()}
        if source.state_file(self.kind, step).exists():
            saved = load_state(source, self.kind, step)["trainer"]["optimisers"]
            states = {name: (source.state_file(self.kind, step), saved[name]) for name in trainer.optimisers}
        else:
            files = source.optimiser_files(self.kind, step)
            states = {name: (files[name], load_file(files[name])) for name in trainer.optimisers}
        for name, optimiser in trainer.optimisers.items():
            file, state = states[name]
            own = [names[parameter] for parameter in optimiser.adam.param_groups[0]["params"]]
            load_moments(optimiser.adam, own, state, f"--load_optim: {file}", may_lack=LOGSIGMA)
            require_finite(optimiser.adam.state_dict(), f"--load_optim: {file}")
            self._notes.append(f"{name} optimiser from {file}")
