"""FID and KID of images from a trained prior, of given codes, or of a folder, against a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments._experiment import check_comparison, experiment
from hparams.script import run_script
from hparams.settings.experiments import FIDExperiment

if TYPE_CHECKING:
    from utils.runs.job import Job

EXAMPLE = (
    "python experiments/calc_FID.py --sampler absorbing --dataset churches --log_dir FID_log "
    "--ae_load_dir vqgan_churches --ae_load_step 2200000 --load_dir absorbing_churches --load_step 2000000 --ema "
    "--n_samples 50000 --temp 0.9"
)


def calculate(job: Job, settings: FIDExperiment) -> None:
    """Compute features of both sets, going on with what an earlier call left unfinished, and their distances."""
    from utils.metrics.feature_sources import facts_of, images_read, open_sources
    from utils.metrics.fid import distances

    generated, real = open_sources(job, settings, as_many=False)
    data = images_read(generated, real, settings.run.dataset)
    job.begin("FID and KID", facts_of(generated, real), data=data)
    features, statistics = generated.features(job), real.statistics(job)
    real_features = real.features(job) if settings.kid.kid_subsets else None
    if job.go_on_alone():
        values = distances(job, features, real_features, statistics, real.n, settings.kid)
        conditions = {"metric": "FID", **real.conditions, **generated.conditions, **vars(settings.kid)}
        job.result(conditions, values)


main = experiment(FIDExperiment, calculate, description=__doc__, example=EXAMPLE, check=check_comparison)

if __name__ == "__main__":
    run_script(main)
