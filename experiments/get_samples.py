"""Draw images from a trained prior."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments._experiment import check_experiment, experiment
from hparams.script import run_script
from hparams.settings.experiments import SamplesExperiment

if TYPE_CHECKING:
    from utils.runs.job import Job

EXAMPLE = (
    "python experiments/get_samples.py --sampler absorbing --dataset churches --log_dir samples_churches "
    "--ae_load_dir vqgan_churches --ae_load_step 2200000 --load_dir absorbing_churches --load_step 2000000 "
    "--ema --n_samples 64 --temp 0.9"
)


def sample(job: Job, settings: SamplesExperiment) -> None:
    """Draw exactly `n_samples` images into `images/` of the run folder, in grids or one by one.

    Their codes are drawn first, and kept: an interrupted call goes on from them.
    """
    from utils.pretrained.trained_models import load_trained_models
    from utils.sampling.drawing import decoded, sampled_codes
    from utils.sampling.sample_files import write_samples

    models, n = load_trained_models(job, settings), settings.sampling.n_samples
    job.begin(f"{n} samples of {settings.prior.sampler} on {settings.run.dataset}", models.facts())
    ids = sampled_codes(job, models, settings.sampling).ids
    files = write_samples(
        job,
        n,
        lambda part: decoded(job, models.autoencoder, ids[part.start : part.stop]),
        job.folder.images,
        individually=settings.output.save_individually,
    )
    if job.go_on_alone():
        job.picture("samples", files.first, write=False)
        print(f"{n} images in {files.where}")


main = experiment(SamplesExperiment, sample, description=__doc__, example=EXAMPLE, check=check_experiment)

if __name__ == "__main__":
    run_script(main)
