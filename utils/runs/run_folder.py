"""Where a run's files lie, and which of its steps are whole. Knows names and sizes; imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from hparams import saved
from hparams.errors import UserError
from hparams.folders import LOGS, require_run
from hparams.settings.stages import Stage
from utils.machine.files import whole_file

Flags = tuple[str, str]  # that name a run's folder and a step of it, for messages
AE_FLAGS, PRIOR_FLAGS = ("--ae_load_dir", "--ae_load_step"), ("--load_dir", "--load_step")

VQGAN, ABSORBING, AUTOREGRESSIVE = "vqgan", "absorbing", "autoregressive"  # the kinds of model
KINDS = (VQGAN, ABSORBING, AUTOREGRESSIVE)
DATA_FEATURES = LOGS / "features"  # of data sets, which all experiments share
# The published code saves each optimiser to a file of its own, `<name>_optim_<step>.th`.
OPTIMISERS = {VQGAN: ("ae", "disc"), ABSORBING: (ABSORBING,), AUTOREGRESSIVE: (AUTOREGRESSIVE,)}


def save_settings(stage: Stage, path: Path) -> None:
    """Write the settings of a run to its ``hparams.yaml``, whole or not at all; missing folders are made."""
    with whole_file(path) as file:
        file.write(saved.as_yaml(stage).encode())


class RunFolder:
    """`logs/<log_dir>`. Model files are named `<kind>_<step>.th`, their average's `<kind>_ema_<step>.th`."""

    def __init__(self, log_dir: str, root: Path = LOGS) -> None:
        self.name, self.root, self.path = log_dir, root, root / log_dir
        self.hparams, self.log = self.path / saved.FILE_NAME, self.path / "log.txt"
        self.metrics, self.newest = self.path / "metrics.jsonl", self.path / "newest.json"
        self.summary, self.results = self.path / "summary.png", self.path / "results.json"
        self.images, self.bad_images = self.path / "images", self.path / "bad_images.txt"
        self.saved_models, self.likelihoods = self.path / "saved_models", self.path / "likelihoods"
        self.latents, self.samples, self.features = (self.path / name for name in ("latents", "samples", "features"))

    def model_file(self, kind: str, step: int, *, ema: bool = False) -> Path:
        """The state dict of a model at a step."""
        return self.saved_models / f"{kind}{'_ema' if ema else ''}_{step}.th"

    def state_file(self, kind: str, step: int) -> Path:
        """The training state of a step: written last, so that it vouches for the step's other files."""
        return self.saved_models / f"{kind}_state_{step}.th"

    def saving_mark(self, kind: str, step: int) -> Path:
        """A file that is there while a step is being saved."""
        return self.saved_models / f".{kind}_saving_{step}"

    def optimiser_files(self, kind: str, step: int) -> dict[str, Path]:
        """The published code's optimiser files of a step, by the optimiser's name."""
        return {name: self.saved_models / f"{name}_optim_{step}.th" for name in OPTIMISERS[kind]}

    def optimiser_steps(self, kind: str) -> list[int]:
        """Steps that --load_optim can read, in order: those with a training state, or all published files."""
        published = (set(self._steps(rf"{name}_optim_(\d+)\.th")) for name in OPTIMISERS[kind])
        return sorted(set.intersection(*published) | set(self.state_steps(kind)))

    def state_steps(self, kind: str) -> list[int]:
        """Steps that have a training state, in order."""
        return self._steps(rf"{kind}_state_(\d+)\.th")

    def model_steps(self, kind: str) -> list[int]:
        """Steps that can be loaded, in order: the finished ones, or all where there is no training state at all."""
        unfinished = self.unfinished_steps(kind)
        return [step for step in self._steps(rf"{kind}(?:_ema)?_(\d+)\.th") if step not in unfinished]

    def unfinished_steps(self, kind: str) -> list[int]:
        """Steps whose saving was interrupted: marked as begun, or newer than the newest training state."""
        steps, states = self._steps(rf"{kind}(?:_ema)?_(\d+)\.th"), self.state_steps(kind)
        begun = self._steps(rf"\.{kind}_saving_(\d+)")
        newer = [step for step in steps if states and step > states[-1]]
        return sorted({step for step in [*begun, *newer] if step not in states})

    def pick_step(self, kind: str, step: int | None, flags: Flags = PRIOR_FLAGS) -> int:
        """`step` if the run has it, or its newest for None. UserError, with one of `flags`: there is none."""
        require_run(flags[0], self.root, self.name)
        flag = flags[0] if step is None else flags[1]
        steps = self.model_steps(kind)
        if not steps:
            others = " and ".join(other for other in KINDS if self.model_steps(other))
            fix = f"its models are of {others}" if others else "has this run saved a step?"
            raise UserError(f"{flag}: no {kind}_<step>.th in {self.saved_models}; {fix}")
        if step is None:
            return steps[-1]
        if step not in steps:
            near = ", ".join(map(str, sorted(sorted(steps, key=lambda other: abs(other - step))[:5])))
            more = ", …" if len(steps) > 5 else ""
            raise UserError(f"{flag}: {self.path} has no {kind} of step {step}; it has step {near}{more}")
        return step

    def pick_model_file(self, kind: str, step: int, *, ema: bool) -> Path:
        """The file of a step: the average if it exists and `ema` wants it, else the raw weights, or a UserError."""
        raw, average = self.model_file(kind, step), self.model_file(kind, step, ema=True)
        if ema and average.exists():
            return average
        if not raw.exists():
            raise UserError(f"{raw} does not exist, only {average.name}: leave out --no_ema")
        return raw

    def pick(self, kind: str, step: int | None, flags: Flags = PRIOR_FLAGS, *, ema: bool) -> tuple[int, Path]:
        """The step and its model file, as `pick_step` and `pick_model_file` find them."""
        step = self.pick_step(kind, step, flags)
        return step, self.pick_model_file(kind, step, ema=ema)

    def starting_file(self, kind: str, step: int, *, ema: bool) -> Path:
        """The file from which a model, or its average, starts to train on: the other one where it is missing."""
        own, other = self.model_file(kind, step, ema=ema), self.model_file(kind, step, ema=not ema)
        return own if own.exists() else other

    def _steps(self, pattern: str) -> list[int]:
        files = self.saved_models.iterdir() if self.saved_models.is_dir() else ()
        return sorted({int(match[1]) for file in files if (match := re.fullmatch(pattern, file.name))})
