"""All that a training run saves of a step, and takes up again when it goes on."""

from __future__ import annotations

from typing import Any

from hparams.errors import UserError
from utils.machine.distributed import Ranks
from utils.runs import checkpoints
from utils.training.bookkeeping import Averages, SkippedUpdates
from utils.training.trainer import StageTrainer
from utils.training.training_start import TrainingStart


class RunState:
    """A trainer, what its run counts, and what it is trained on: model files and one training state for each step."""

    def __init__(self, trainer: StageTrainer[Any], start: TrainingStart) -> None:
        self._trainer, self._start = trainer, start
        self.averages = Averages()  # since the last line of the log
        self.skipped = SkippedUpdates(trainer.device, start.settings.training.max_skipped)
        self.data: dict[str, Any] | None = None  # how many `images` it was trained on so far, and their `fingerprint`
        self.autoencoder: str | None = None  # the checksum of the file whose codes it was trained on so far
        self.notes: list[str] = []  # lines for the log, about where all this came from

    def save(self, done: int) -> None:
        """Save a step, which is the same on every process; OSError where the disk does not take it."""
        parts: dict[str, Any] = {"trainer": self._trainer, "averages": self.averages, "skipped": self.skipped}
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"data": self.data, "autoencoder": self.autoencoder}
        checkpoints.save_step(self._start.folder, self._start.kind, done, self._trainer.models(), state)

    def restore(self, ranks: Ranks) -> int:
        """Load everything where the run goes on, weights only with --load_step. Returns the number of updates done."""
        start, training = self._start, self._start.settings.training
        if start.own_steps:
            return self._resume(ranks)
        if training.resume:
            self.notes.append("this run was interrupted before it saved a step: it starts again")
        if training.load_step:
            for ema, model in self._trainer.models().items():
                file = start.source.starting_file(start.kind, training.load_step, ema=ema)
                checkpoints.load_into(model, checkpoints.load_state_dict(file), file, may_lack=checkpoints.LOGSIGMA)
                self.notes.append(f"{'average' if ema else 'weights'} from {file}")
            if training.load_optim:
                self._load_optimisers(training.load_step)
        return start.step

    def _resume(self, ranks: Ranks) -> int:
        """From the newest step whose files are unharmed, by the first process's judgement."""
        folder, kind, read = self._start.folder, self._start.kind, {}

        def newest() -> int:
            errors = []
            for step in reversed(self._start.own_steps):
                try:
                    read.update(checkpoints.load_state(folder, kind, step))
                    return step
                except UserError as error:
                    errors.append(error)
                    self.notes.append(f"{error}; trying an older step")
            raise errors[0]

        step = ranks.from_first(newest)
        file = folder.state_file(kind, step)
        state: dict[str, Any] = read or checkpoints.load_file(file)  # the first process has read it
        for ema, model in self._trainer.models().items():
            sibling = folder.model_file(kind, step, ema=ema)
            if sibling.name not in state["siblings"]:
                raise UserError(f"--ema: step {step} was saved without {sibling.name}: resume with --no_ema")
            checkpoints.load_into(model, checkpoints.load_state_dict(sibling), sibling)
        try:
            self._trainer.load_state_dict(state["trainer"])
            self.averages.load_state_dict(state["averages"], self._trainer.device)
            self.skipped.load_state_dict(state["skipped"])
            self.data, self.autoencoder = state.get("data"), state.get("autoencoder")
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{file} does not fit these settings ({reason}): check the flags") from None
        adams = {name: optimiser.adam.state_dict() for name, optimiser in self._trainer.optimisers.items()}
        checkpoints.require_finite(adams, file)
        return step

    def _load_optimisers(self, step: int) -> None:
        """From a training state, or the published code's files."""
        source, kind, optimisers = self._start.source, self._start.kind, self._trainer.optimisers
        state_file = source.state_file(kind, step)
        if state_file.exists():
            files = dict.fromkeys(optimisers, state_file)
            states = checkpoints.load_state(source, kind, step)["trainer"]["optimisers"]
        else:
            files = source.optimiser_files(kind, step)
            states = {name: checkpoints.load_file(file) for name, file in files.items()}
        names = {parameter: name for name, parameter in self._trainer.models()[False].named_parameters()}
        for name, optimiser in optimisers.items():
            own = [names[parameter] for parameter in optimiser.parameters]
            optimiser.load_moments(own, states[name], f"--load_optim: {files[name]}", may_lack=checkpoints.LOGSIGMA)
            checkpoints.require_finite(optimiser.adam.state_dict(), f"--load_optim: {files[name]}")
            self.notes.append(f"{name} optimiser from {files[name]}")
