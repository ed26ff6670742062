"""The two trained models of an experiment, with everything they are run with."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hparams import launch, saved
from hparams.presets import FOLDERS
from hparams.settings.experiments import PriorExperiment
from hparams.settings.models import AutoencoderSettings
from hparams.settings.stages import PriorStage, VQGANStage
from models.prior.prior import Prior
from models.vqgan.autoencoder import VQAutoEncoder
from utils.machine.compiling import compile_blocks
from utils.machine.devices import precision_name
from utils.machine.files import sha256_of
from utils.pretrained.loading import note_of_average, restore_autoencoder, restore_prior
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
        """What every number that comes of these models depends on, for `Job.record`."""
        return {
            "dataset": dataset,
            "prior": str(self.prior_file),
            "autoencoder": str(self.ae_file),
            "dtype": precision_name(job.amp_dtype),
            "seed": job.seed,
        }


def load_trained_models(job: Job, settings: PriorExperiment) -> TrainedModels:
    """Load prior and autoencoder of an experiment; lines on stderr say what the prior learnt otherwise.

    Raises:
        UserError: no such run, step or file, or a file that does not fit the settings.
    """
    source, checkpoint = settings.source, settings.checkpoint
    ema = checkpoint.ema is not False
    autoencoder, ae_file = restore_autoencoder(
        settings.autoencoder, str(source.ae_load_dir), source.ae_load_step, ema=ema, device=job.device
    )
    prior, prior_file = restore_prior(
        settings.prior,
        settings.autoencoder.codebook_size,
        str(checkpoint.load_dir),
        checkpoint.load_step,
        ema=ema,
        device=job.device,
    )
    if job.ranks.first:
        for line in _doubts(settings, prior_file, ae_file):
            print(line, file=sys.stderr)
    note_averages(ae_file, prior_file)
    compile_blocks(prior, job.compile, job.device)
    if job.compile == "on":  # longer than most decodings take
        compile_blocks(autoencoder, job.compile, job.device)
    return TrainedModels(
        prior,
        autoencoder,
        prior_file,
        ae_file,
        (sha256_of(prior_file), asdict(settings.prior)),
        ae_key(ae_file, settings.autoencoder),
    )


def ae_key(ae_file: Path, autoencoder: AutoencoderSettings) -> tuple[object, ...]:
    """What determines the images that an autoencoder decodes."""
    return (sha256_of(ae_file), asdict(autoencoder))


def note_if_seen(settings: PriorExperiment) -> None:
    """Say on stderr if training, as the models' runs note it, did not hold out what is held out of a folder now."""
    run = settings.run
    if run.dataset not in FOLDERS or launch.rank():
        return
    data = {"dataset": run.dataset, "custom_dataset_path": run.custom_dataset_path, "steps_per_eval": 0}
    runs = ((settings.source.ae_load_dir, VQGANStage), (settings.checkpoint.load_dir, PriorStage))
    folders = [(RunFolder(str(name)), stage) for name, stage in runs]
    seen = [str(folder.path) for folder, stage in folders if data.items() <= saved.load(folder.hparams, stage).items()]
    if seen:
        who = " and ".join(seen)
        print(
            f"note: {who} learnt from the images to evaluate, too: training with --steps_per_eval holds them out",
            file=sys.stderr,
        )


def note_averages(*files: Path) -> None:
    """Say on stderr which of some model files hold an average that is still much like its random start."""
    for line in filter(None, map(note_of_average, files)) if launch.rank() == 0 else ():
        print(f"note: {line}: --no_ema takes the raw weights", file=sys.stderr)


def _doubts(settings: PriorExperiment, prior_file: Path, ae_file: Path) -> Iterator[str]:
    """Lines to be said if the prior's run notes another data set or autoencoder. Where nothing is noted, none is."""
    learnt, now = saved.load(RunFolder(str(settings.checkpoint.load_dir)).hparams, PriorStage), settings.run.dataset
    if (then := learnt.get("dataset")) not in (None, now):
        yield f"note: {prior_file} learnt from --dataset {then}, and this is of --dataset {now}"
    if not _is_known(settings, learnt):
        name, number = learnt.get("ae_load_dir"), learnt.get("ae_load_step")
        was = f" ({name!r} at step {number}, then)" if name and number else ""
        yield (
            f"WARNING: {ae_file} is not the autoencoder whose codes {prior_file} learnt{was}: its codes mean something "
            "else; name that one by --ae_load_dir and --ae_load_step"
        )


def _is_known(settings: PriorExperiment, learnt: Mapping[str, Any]) -> bool:
    """Whether the autoencoder is the one that the prior's run notes. learnt: that run's settings.

    Names are not compared, as runs may have been renamed: a training state notes the checksum of the file, and without
    one the step has to do. It is no error, as the same weights may have been written to another file.
    """
    source, checkpoint, kind = settings.source, settings.checkpoint, settings.prior.sampler
    prior_run, ae_run = RunFolder(str(checkpoint.load_dir)), RunFolder(str(source.ae_load_dir))
    step = ae_run.pick_step(VQGAN, source.ae_load_step)
    noted = noted_autoencoder(prior_run.state_file(kind, prior_run.pick_step(kind, checkpoint.load_step)))
    if noted:  # of the average where there is one, also where raw weights are loaded now
        return noted == sha256_of(ae_run.pick_model_file(VQGAN, step, ema=True))
    return learnt.get("ae_load_step") in (None, step)
