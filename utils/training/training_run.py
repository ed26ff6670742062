"""A training run on disk: its steps, what it logs, when it saves, and how it ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from signal import Signals as Signal
from typing import Any, NoReturn

from torch import Tensor

from hparams.errors import RunError
from hparams.fields import values_of
from hparams.notes import notes_on_length
from hparams.settings.stages import PriorStage, VQGANStage
from utils.data.bad_images import SharedReport
from utils.data.datasets import ImageData
from utils.machine.files import make_folder, sha256_of
from utils.machine.signals import Stopped, exit_code
from utils.machine.stopwatch import Stopwatch
from utils.reporting.training_report import TrainingReport
from utils.runs.job import Job, tell_parameters
from utils.runs.retention import clean_up, drop_weights, space_note
from utils.training.bookkeeping import Rhythm
from utils.training.run_state import RunState
from utils.training.trainer import StageTrainer
from utils.training.training_start import TrainingStart


class TrainingRun:
    """Steps, checkpoints and report of one run. Use it in a `with` block. `done` is a number of updates."""

    def __init__(self, settings: VQGANStage | PriorStage, kind: str, trainer: StageTrainer[Any], job: Job) -> None:
        """Bring the trainer to where the run starts, then open the run's files: a refusal leaves them as they were.

        Of several processes, which share the folder, each restores its trainer, and the first alone writes.
        """
        origin = TrainingStart(settings, kind)
        self.settings, self.kind, self.folder = settings, kind, origin.folder
        self._job, self._ranks, self._trainer, self._training = job, job.ranks, trainer, settings.training
        self._state = RunState(trainer, origin)
        self.start, self.end = self._state.restore(job.ranks), settings.training.train_steps
        self._notes = [f"note: {line}" for line in notes_on_length(settings)] + self._state.notes
        if job.ranks.first:
            to_do = self.end - self.start
            self._notes.append(space_note(self.folder.path, trainer.models(), settings.training, to_do))
        if unfinished := self.folder.unfinished_steps(kind):
            self._notes.append(f"not finished, and left aside: step {', '.join(map(str, unfinished))}")
        goes_on = origin.own_steps or (self.start > 0 and origin.source.path == self.folder.path)
        kept = self.start if goes_on and self.folder.metrics.exists() else None
        # A run that its own command continues has its settings in the folder: they hold for any number of processes.
        job.take_folder(resume_step=kept, saves=settings.training.resume or not origin.own_steps)
        if job.ranks.first and origin.own_steps:  # an earlier process may have ended before it came to that
            clean_up(self.folder, kind, self.start, settings.training)
        self._report = report = TrainingReport(job, values_of(settings), kind, start=self.start, kept=kept is not None)
        self.say, self.warn, self.validated, self.baselines = job.say, job.warn, report.validated, report.baselines
        job.list_bad_images(keep=self._state.data is not None)
        self.bad_images_met = SharedReport(lambda *told: job.bad_images(*told), job.ranks)
        self._picture_cadences = settings.training.steps_per_display_output, settings.training.steps_per_save_output
        self._rhythm, self._watch = Rhythm(self.start), Stopwatch(trainer.device)
        self._stopping: Signal | None = None
        self._logged = self._saved = self.start
        self._whole: int | None = self.start  # the updates done; None while one is being made

    def __enter__(self) -> TrainingRun:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if isinstance(error, Exception):
                self._save_before_the_end()
            if isinstance(error, Stopped):
                self._stop(error.number, self._saved)
        finally:
            # Before destroy_process_group(): NCCL hangs while a captured CUDA graph still references its collectives.
            self._trainer.release()
            self._report.close()

    def introduce(self, data: str) -> None:
        """First lines of the log: what runs where, on what, from where; then the settings."""
        how, to_do = f"continuing after step {self.start}" if self.start else "starting", self.end - self.start
        steps = f"{how}, {to_do} steps to do{'' if to_do else '; a larger --train_steps goes on'}"
        more = {"parameters": tell_parameters(self._trainer.models()[False]), "data": data, "steps": steps}
        self._job.introduce(f"{self.kind} on {self.settings.run.dataset}", more, self._notes)

    def compare_data(self, images: ImageData) -> None:
        """Say if a resumed run's images are not those that it was trained on; every saved step notes which they are."""
        before, self._state.data = self._state.data, {"images": len(images), "fingerprint": images.fingerprint}
        if before and before != self._state.data:
            self.warn(
                f"WARNING: the data set changed since step {self.start}: {before['images']} images then, "
                f"{len(images)} now, or other files, sizes or times; the run goes on, but not as it would have"
            )
            self._job.list_bad_images()

    def compare_autoencoder(self, file: Path) -> None:
        """Say if a resumed run's autoencoder is not the one whose codes it was trained on; saved steps note which."""
        before, self._state.autoencoder = self._state.autoencoder, sha256_of(file)
        if before and before != self._state.autoencoder:
            self.warn(
                f"WARNING: {file} is not the autoencoder that the run had until step {self.start}: its codes mean "
                "something else; the run goes on, but not as it would have"
            )

    def steps(self, batches: Iterable[Tensor]) -> Iterator[tuple[int, Tensor]]:
        """The steps to do, each with its batch. SystemExit: a signal asked to stop, and the last step is saved."""
        self._report.begin()
        self._watch.start()
        source = iter(batches)
        for step in range(self.start, self.end):
            batch = next(source)
            self._watch.mark("data")
            self._whole = None
            yield step, batch
            self._watch.mark("other")
            if self._stopping and step + 1 < self.end:
                self._stop(self._stopping, step + 1)

    def log(self, done: int, metrics: Mapping[str, Tensor]) -> None:
        """Enter the metrics of the step that was just made; means are written every `steps_per_log` steps."""
        self._watch.mark("step")
        self._report.stepped()
        state, skipped = self._state, metrics["skipped"]
        state.skipped.add(done, skipped)
        state.averages.add({name: value for name, value in metrics.items() if name != "skipped"})
        due = self.due(self._training.steps_per_log, done)
        total = state.skipped.check() if due or skipped.device.type == "cpu" else 0
        self._whole = done
        if due:
            steps, self._logged = done - self._logged, done
            self._report.logged(done, *state.averages.pop(), steps=steps, seconds=self._watch.pop(), skipped=total)

    @staticmethod
    def due(every: int, done: int) -> bool:
        """Whether something that happens every so many steps (0: never) happens after `done` updates."""
        return bool(every) and done % every == 0

    def picture_due(self, done: int) -> bool:
        """Whether a picture is to be shown or written."""
        return any(self.due(every, done) for every in self._picture_cadences)

    def picture(self, done: int, name: str, images: Tensor, columns: int = 8) -> None:
        """Show and write images [n,C,H,W], uint8 or in [0,1], as far as each is due."""
        if self._ranks.first:
            display, save = (self.due(every, done) for every in self._picture_cadences)
            self._report.picture(done, name, images, columns, display=display, save=save)

    def save_if_due(self, done: int) -> None:
        """Save every `steps_per_checkpoint` steps, when a signal asks, and at the end; RunError if that one fails."""
        save_asked = self._heed_signals(done)
        last = done == self.end or self._stopping is not None
        if not (last or save_asked or self.due(self._training.steps_per_checkpoint, done)):
            return
        try:
            if self._ranks.first:
                self._save(done)
        except OSError as error:
            problem = f"step {done} could not be saved in {self.folder.saved_models} ({error.strerror})"
            if last:
                self._saved = done  # no other attempt as this error ends the run
                advice = "make room there, then the same command goes on from the newest saved step"
                raise RunError(f"{problem}: {advice}") from None
            self.warn(f"WARNING: {problem}; the run goes on and tries again at its next checkpoint")
            if not self.folder.state_file(self.kind, done).exists():
                drop_weights(self.folder, self.kind, done)  # or they would take the room of the next one
            return
        self._saved = done
        if self._ranks.first:
            clean_up(self.folder, self.kind, done, self._training)

    def _save(self, done: int) -> None:
        self._job.record.sync()  # a whole step has its metrics
        self._state.save(done)
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
            if not self._ranks.first:  # unless another one is saving it
                make_folder(self.folder.saved_models)
                self.folder.saving_mark(self.kind, done).touch(exist_ok=False)
            self._save(done)
        except FileExistsError:
            pass
        except Exception as error:  # the first error is the one to tell
            self.warn(f"WARNING: step {done} could not be saved ({' '.join(str(error).split())[:120]})")

    def _heed_signals(self, done: int) -> bool:
        """Whether a signal asks to save. Processes look after the same step, and exchange what they could not read."""
        if self._ranks.count > 1 and not self._rhythm.due(done) and done < self.end:
            return False
        self.bad_images_met.exchange()
        signals = self._job.signals
        save, signals.save = signals.save, False
        stop, save_asked = self._rhythm.agree(done, self._ranks, signals.stop or 0, save)
        self._stopping = Signal(stop) if stop else None
        return bool(save_asked)

    def _stop(self, number: Signal, done: int) -> NoReturn:
        self.warn(f"stopped by {number.name} after step {done}; the same command goes on")
        raise SystemExit(exit_code(number))
