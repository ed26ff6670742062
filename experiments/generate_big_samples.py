"""Draw images larger than the training ones: the prior predicts in windows of its own size, which overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments._experiment import check_experiment, command, experiment
from hparams.script import run_script
from hparams.settings.experiments import LargerExperiment

if TYPE_CHECKING:
    from utils.runs.job import Job

EXAMPLE = command("generate_big_samples.py", "big_samples_churches", "--shape 32 16")


def draw(job: Job, settings: LargerExperiment) -> None:
    """Draw exactly `n_samples` images, and write each by itself."""
    from utils.pretrained.trained_models import load_trained_models
    from utils.sampling.drawing import sampling_conditions
    from utils.sampling.larger import decode_larger, larger_codes
    from utils.sampling.sample_files import write_samples

    larger, n, size = settings.larger, settings.sampling.n_samples, "x".join(map(str, settings.larger.shape))
    models, kind, dataset = load_trained_models(job, settings), settings.prior.sampler, settings.run.dataset
    job.begin(f"{n} larger samples ({size} codes) of {kind} on {dataset}", models.facts())
    codes, windows = larger_codes(job, models, larger, settings.sampling)
    files = write_samples(
        job, n, lambda part: decode_larger(job, models, codes[part]), job.folder.images, individually=True
    )
    if not job.go_on_alone():
        return
    drawn = sampling_conditions(settings.sampling, kind)
    if larger.order == "raster":
        del drawn["sample_steps"]  # one code a step
    wanted = {"shape": size, "images": n, "order": larger.order, **drawn, "stride": larger.stride}
    job.picture("samples", files.first, write=False)
    job.result({**models.conditions(job, dataset), **wanted}, {"windows_per_image": windows})
    print(f"{n} images in {files.where}")


main = experiment(LargerExperiment, draw, description=__doc__, example=EXAMPLE, check=check_experiment)

if __name__ == "__main__":
    run_script(main)
