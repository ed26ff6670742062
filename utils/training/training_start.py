"""Where a training run begins. Imports no torch, so that a run without a beginning is refused at once."""

from __future__ import annotations

from hparams import launch, saved
from hparams.cli import note
from hparams.errors import UserError
from hparams.notes import notes_on_length
from hparams.same_command import begun_from
from hparams.settings.stages import PriorStage, VQGANStage
from utils.machine.files import sole_writer
from utils.machine.progress import say
from utils.runs.retention import clean_up
from utils.runs.run_folder import KINDS, VQGAN, RunFolder


class TrainingStart:
    """The beginning of a run of a kind: how many updates, `step`, are done before its first one, and by what."""

    def __init__(self, settings: VQGANStage | PriorStage, kind: str) -> None:
        """UserError: nothing to resume or to load, nothing left to do, or it would write over an earlier run."""
        self.settings, self.kind, self.folder = settings, kind, RunFolder(settings.run.log_dir)
        self.source = RunFolder(settings.training.load_dir or settings.run.log_dir)  # of starting weights, if any
        # Those from which it can go on exactly, in order: the run's own states, whose settings `resolve` compared.
        self.own_steps = [step for step in self.folder.state_steps(kind) if step > begun_from(settings)]
        self.step = self.own_steps[-1] if self.own_steps else self._step_of_weights()
        end, path = settings.training.train_steps, (self.folder if self.own_steps else self.source).path
        if self.step > end or (self.step == end and not self.own_steps):
            raise UserError(f"--train_steps {end}: {path} has reached step {self.step} already; name a later one")

    def has_work(self) -> bool:
        """Whether to train now: not with --dry_run, nor, but for --resume, which checks its files, a complete run."""
        training = self.settings.training
        if self.settings.run.dry_run:
            print(saved.describe(self.settings))
            note(notes_on_length(self.settings))
            return False
        if self.step < training.train_steps or training.resume:
            return True
        if launch.rank() == 0:  # a kill may have come before it
            with sole_writer(self.folder.path):
                clean_up(self.folder, self.kind, self.step, training)
        last = self.folder.model_file(self.kind, self.step).name
        say(f"{self.folder.path} is complete: {last} is its last step; --resume with a larger --train_steps goes on")
        return False

    def _step_of_weights(self) -> int:
        """For a run without steps of its own: 0, or that of the weights from which it starts."""
        training, folder, source, kind = self.settings.training, self.folder, self.source, self.kind
        weights = folder.model_steps(kind)
        # Interrupted before its first step was saved, a run starts again as it did: maybe from weights.
        if training.resume and (weights or not folder.hparams.exists()):
            advice = f"--load_step {weights[-1]} starts from its weights" if weights else "leave out --resume to start"
            raise UserError(f"--resume: {folder.path} holds no saved step to continue from exactly; {advice}")
        step = source.pick_step(kind, training.load_step) if training.load_step else 0
        if step and training.load_optim and step not in (steps := source.optimiser_steps(kind)):
            known = f"steps with one: {', '.join(map(str, steps)) or 'none'}"
            raise UserError(f"--load_optim: {source.path} has no optimiser state of step {step}; {known}")
        if not step or source.path != folder.path:
            self._refuse_occupied()
        elif weights[-1] > step:
            raise UserError(
                f"--load_step {step}: {folder.path} goes on to step {weights[-1]}, and would be mixed with the new "
                "run: use another --log_dir, and --load_dir for this one"
            )
        return step + 1 if step and self._is_published(step) else step

    def _is_published(self, step: int) -> bool:
        """Whether weights come from the published code, which counts from 0: its file of step s holds s + 1 updates."""
        source, kind = self.source, self.kind
        if source.state_file(kind, step).exists():
            return False
        if not source.hparams.exists() or any(file.exists() for file in source.optimiser_files(kind, step).values()):
            return True
        kept = saved.load(source.hparams, type(self.settings))
        # Settings of a run that went on from this step, in its folder, do not make the step ours.
        return (kept.get("load_step"), kept.get("load_dir")) == (step, source.name)

    def _refuse_occupied(self) -> None:
        for kind in KINDS:
            if steps := self.folder.model_steps(kind):
                start = f"--load_step {steps[-1]} to start from its weights, or " if kind == self.kind else ""
                article = "a" if kind == VQGAN else "an"
                raise UserError(f"{self.folder.path} already holds {article} {kind} run: use {start}another --log_dir")
