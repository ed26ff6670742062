"""Draw images larger than the training ones: the prior predicts in windows of its own size, which overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments._experiment import check_experiment, experiment
from hparams.script import run_script
from hparams.settings.experiments import LargerExperiment

if TYPE_CHECKING:
    from utils.runs.job import Job

EXAMPLE = (
    "python experiments/generate_big_samples.py --sampler absorbing --dataset churches --log_dir big_samples_churches "
    "--ae_load_dir vqgan_churches --ae_load_step 2200000 --load_dir absorbing_churches --load_step 2000000 --ema "
    "--shape 32 16"
)


def draw(job: Job, settings: LargerExperiment) -> None:
    """Draw exactly `n_samples` images, and write each by itself."""
    from utils.pretrained.trained_models import load_trained_models
    from utils.sampling.drawing import sampling_conditions
    from utils.sampling.larger import decode_larger, larger_codes
    from utils.sampling.sample_files import write_samples

    run, larger, n = settings.run, settings.larger, settings.sampling.n_samples
    models, (height, width) = load_trained_models(job, settings), larger.shape
    size = f"{height}x{width}"
    what = f"{n} larger samples ({size} codes) of {settings.prior.sampler} on {run.dataset}"
    job.begin(what, models.facts())
    codes, windows = larger_codes(job, models, larger, settings.sampling)
    files = write_samples(
        job,
        len(codes),
        lambda part: decode_larger(job, models, codes[part.start : part.stop]),
        job.folder.images,
        individually=True,
    )
    if not job.go_on_alone():
        return
    drawn = sampling_conditions(settings.sampling, settings.prior.sampler)
    if larger.order == "raster":
        del drawn["sample_steps"]  # one code a step
    conditions = {
        **models.conditions(job, run.dataset),
        "shape": size,
        "images": len(codes),
        "order": larger.order,
        **drawn,
        "stride": larger.stride,
    }
    job.picture("samples", files.first, write=False)
    job.result(conditions, {"windows_per_image": windows})
    print(f"{len(codes)} images in {files.where}")


main = experiment(LargerExperiment, draw, description=__doc__, example=EXAMPLE, check=check_experiment)

if __name__ == "__main__":
    run_script(main)
