"""FID and KID of images from a trained prior, of given codes, or of a folder, against a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments._experiment import check_comparison, command, experiment
from hparams.script import run_script
from hparams.settings.experiments import FIDExperiment

if TYPE_CHECKING:
    from utils.runs.job import Job

EXAMPLE = command("calc_FID.py", "FID_log", "--n_samples 50000 --temp 0.9")


def calculate(job: Job, settings: FIDExperiment) -> None:
    """Compute features of both sets, going on with what an earlier call left unfinished, and their distances."""
    from utils.metrics.feature_sources import begin_comparison
    from utils.metrics.fid import distances

    generated, real = begin_comparison(job, settings, "FID and KID", as_many=False)
    features, statistics = generated.features(job), real.statistics(job)
    real_features = real.features(job) if settings.kid.kid_subsets else None
    if job.go_on_alone():
        values = distances(job, features, real_features, statistics, real.n, settings.kid)
        job.result({"metric": "FID", **real.conditions, **generated.conditions, **vars(settings.kid)}, values)


main = experiment(FIDExperiment, calculate, description=__doc__, example=EXAMPLE, check=check_comparison)

if __name__ == "__main__":
    run_script(main)
