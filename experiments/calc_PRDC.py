"""Precision, recall, density and coverage of images from a trained prior, of given codes, images or features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments._experiment import check_comparison, experiment
from hparams.script import run_script
from hparams.settings.experiments import PRDCExperiment

if TYPE_CHECKING:
    from utils.runs.job import Job

EXAMPLE = (
    "python experiments/calc_PRDC.py --sampler absorbing --dataset churches --log_dir PRDC_log "
    "--ae_load_dir vqgan_churches --ae_load_step 2200000 --load_dir absorbing_churches --load_step 2000000 --ema "
    "--n_samples 50000"
)


def calculate(job: Job, settings: PRDCExperiment) -> None:
    """Compare generated images with as many real ones, the first of the split."""
    from utils.metrics.feature_sources import facts_of, images_read, open_sources
    from utils.metrics.prdc import prdc

    generated, real = open_sources(job, settings, as_many=True)
    what, data = "precision, recall, density and coverage", images_read(generated, real, settings.run.dataset)
    job.begin(what, facts_of(generated, real), data=data)
    nearest_k = settings.prdc.nearest_k
    values = prdc(job, real.features(job), generated.features(job), nearest_k)
    if job.go_on_alone():
        conditions = {"metric": "PRDC", "features": "given", **real.conditions, **generated.conditions}
        job.result({**conditions, "nearest_k": nearest_k}, vars(values))


main = experiment(PRDCExperiment, calculate, description=__doc__, example=EXAMPLE, check=check_comparison)

if __name__ == "__main__":
    run_script(main)
