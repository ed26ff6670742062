"""Precision, recall, density and coverage of images from a trained prior, of given codes, images or features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments._experiment import check_comparison, command, experiment
from hparams.script import run_script
from hparams.settings.experiments import PRDCExperiment

if TYPE_CHECKING:
    from utils.runs.job import Job

EXAMPLE = command("calc_PRDC.py", "PRDC_log", "--n_samples 50000")


def calculate(job: Job, settings: PRDCExperiment) -> None:
    """Compare generated images with as many real ones, the first of the split."""
    from utils.metrics.feature_sources import begin_comparison
    from utils.metrics.prdc import prdc

    what, k = "precision, recall, density and coverage", settings.prdc.nearest_k
    generated, real = begin_comparison(job, settings, what, as_many=True)
    values = prdc(job, real.features(job), generated.features(job), k)
    if job.go_on_alone():
        conditions = {"metric": "PRDC", "features": "given", **real.conditions, **generated.conditions}
        job.result({**conditions, "nearest_k": k}, values)


main = experiment(PRDCExperiment, calculate, description=__doc__, example=EXAMPLE, check=check_comparison)

if __name__ == "__main__":
    run_script(main)
