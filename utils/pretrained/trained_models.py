"""The two trained models of an experiment, with everything they are run with."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from hparams import launch, saved
from hparams.presets import FOLDERS
from hparams.settings.experiments import PriorExperiment
from hparams.settings.models import AutoencoderSettings
from hparams.settings.stages import AutoencoderSource, PriorStage, VQGANStage
from models.prior.prior import Prior
from models.vqgan.autoencoder import VQAutoEncoder
from utils.machine.compiling import compile_blocks
from utils.machine.devices import precision_name
from utils.machine.files import sha256_of
from utils.pretrained.loading import autoencoder_file, note_of_average, restore_autoencoder, restore_prior, step_of
from utils.runs.checkpoints import noted_autoencoder
from utils.runs.job import Job, tell_parameters
from utils.runs.results import Value
from utils.runs.run_folder import VQGAN, RunFolder


@dataclass(frozen=True)
class TrainedModels:
    """Frozen modules in evaluation mode, and the files that they came from."""

    prior: Prior
    autoencoder: VQAutoEncoder
    prior_file: Path
    ae_file: Path
    prior_key: tuple[object, ...]  # what determines its predictions: weights and sizes
    ae_key: tuple[object, ...]  # what determines the images that it decodes

    def facts(self) -> dict[str, str]:
        """What they are, for the first lines of a run."""
        return {
            "prior": f"{self.prior_file}, {tell_parameters(self.prior)} parameters",
            "autoencoder": f"{self.ae_file}, {tell_parameters(self.autoencoder)} parameters",
        }

    def conditions(self, job: Job, dataset: str) -> dict[str, Value]:
        """What every number that comes of these models depends on, for `Job.result`."""
        files = {"prior": str(self.prior_file), "autoencoder": str(self.ae_file)}
        return {"dataset": dataset, **files, "dtype": precision_name(job.amp_dtype), "seed": job.seed}


def load_trained_models(job: Job, settings: PriorExperiment) -> TrainedModels:
    """Load prior and autoencoder of an experiment; lines on stderr say where the prior's run had another data set or
    autoencoder.

    Raises:
        UserError: no such run, step or file, or a file that does not fit the settings.
    """
    checkpoint, sizes = settings.checkpoint, settings.autoencoder
    kind, ema, folder = settings.prior.sampler, checkpoint.ema is not False, RunFolder(str(checkpoint.load_dir))
    autoencoder, ae_file, ae_key = load_trained_autoencoder(job, sizes, settings.source, ema=ema)
    _, file = folder.pick(kind, checkpoint.load_step, ema=ema)
    prior = restore_prior(settings.prior, sizes.codebook_size, file, job.device)
    _say(_doubts(settings.run.dataset, file, ae_file))
    _say_of_average(file)
    compile_blocks(prior, job.compile, job.device)
    if job.compile == "on":  # longer than most decodings take
        compile_blocks(autoencoder, job.compile, job.device)
    prior_key = (sha256_of(file), asdict(settings.prior))
    return TrainedModels(prior, autoencoder, file, ae_file, prior_key, ae_key)


def load_trained_autoencoder(
    job: Job, settings: AutoencoderSettings, source: AutoencoderSource, *, ema: bool
) -> tuple[VQAutoEncoder, Path, tuple[object, ...]]:
    """An autoencoder, its file, and what determines the images that it decodes; errors as above."""
    file = autoencoder_file(source.ae_load_dir, source.ae_load_step, ema=ema)
    autoencoder = restore_autoencoder(settings, file, job.device)
    _say_of_average(file)
    return autoencoder, file, (sha256_of(file), asdict(settings))


def note_if_seen(dataset: str, folder: str | None, *files: Path) -> None:
    """Say on stderr if training, as the runs of model files note it, did not hold out what is held out now.

    folder: `custom_dataset_path`. Of data sets that are no folders, training and validation images are never the same.
    """
    data = {"dataset": dataset, "custom_dataset_path": folder, "steps_per_eval": 0}
    stages = [(file.parents[1], VQGANStage if file.name.startswith(VQGAN) else PriorStage) for file in files]
    notes = [(str(run), saved.load(run / saved.FILE_NAME, stage)) for run, stage in stages]
    if dataset in FOLDERS and (seen := [run for run, noted in notes if data.items() <= noted.items()]):
        who = " and ".join(seen)
        _say([f"note: {who} learnt from the images to evaluate, too: training with --steps_per_eval holds them out"])


def _doubts(dataset: str, prior_file: Path, ae_file: Path) -> Iterator[str]:
    """Lines to be said if the prior's run notes another data set or autoencoder. Where nothing is noted, none is."""
    (run, kind, step), (ae_run, _, ae_step) = step_of(prior_file), step_of(ae_file)
    learnt = saved.load(run.hparams, PriorStage)
    if (then := learnt.get("dataset")) not in (None, dataset):
        yield f"note: {prior_file} learnt from --dataset {then}, and this is of --dataset {dataset}"
    # Names are not compared, as runs may have been renamed: a training state notes the checksum of the file, of the
    # average where there is one, also where raw weights are loaded now. Without one the step has to do.
    if noted := noted_autoencoder(run.state_file(kind, step)):
        known = noted == sha256_of(ae_run.pick_model_file(VQGAN, ae_step, ema=True))
    else:
        known = learnt.get("ae_load_step") in (None, ae_step)
    if not known:  # which is no error, as the same weights may have been written to another file
        name, number = learnt.get("ae_load_dir"), learnt.get("ae_load_step")
        was = f" ({name!r} at step {number}, then)" if name and number else ""
        yield (
            f"WARNING: {ae_file} is not the autoencoder whose codes {prior_file} learnt{was}: its codes mean something "
            "else; name that one by --ae_load_dir and --ae_load_step"
        )


def _say_of_average(file: Path) -> None:
    """Whether a model file holds an average that is still much like its random start."""
    if line := note_of_average(file):
        _say([f"note: {line}: --no_ema takes the raw weights"])


def _say(lines: Iterable[str]) -> None:
    """On stderr, by the first process alone."""
    for line in lines if launch.rank() == 0 else ():
        print(line, file=sys.stderr)
