"""Paint a part of given images anew, so that it fits the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from experiments._experiment import check_experiment, command, experiment
from hparams.script import run_script
from hparams.settings.experiments import InpaintingExperiment
from utils.data.datasets import check_images
from utils.data.images import painted_pixels
from utils.runs.preflight import check_file

if TYPE_CHECKING:
    from utils.runs.job import Job

EXAMPLE = command("inpaint.py", "inpainted_churches", "--region 128 0 128 256")


def check(settings: InpaintingExperiment) -> InpaintingExperiment:
    """The settings with the steps of what is loaded; UserError if something is not there, or there is no region."""
    settings = check_experiment(settings)
    check_images(settings.run, split=settings.inpainting.split)
    check_file("--mask_path", settings.inpainting.mask_path)
    painted_pixels(settings.inpainting.mask_path, settings.inpainting.region, settings.autoencoder.img_size)
    return settings


def paint(job: Job, settings: InpaintingExperiment) -> None:
    """Draw completions of the first images, and write each by itself, and all beside what was given.

    Their codes are drawn first, and kept: an interrupted call goes on from them.
    """
    import torch

    from models.sampling.inpainting import codes_of
    from utils.data.datasets import open_images
    from utils.pretrained.trained_models import load_trained_models
    from utils.sampling.drawing import decoded, sampled_codes
    from utils.sampling.inpainting import completions_picture, given_codes
    from utils.sampling.latents import encoded
    from utils.sampling.sample_files import write_samples

    run, inpainting, img_size = settings.run, settings.inpainting, settings.autoencoder.img_size
    models = load_trained_models(job, settings)
    whole = open_images(run, split=inpainting.split, img_size=img_size, hold_out=True)
    data, each = whole.first(inpainting.n_images), settings.sampling.n_samples
    painted = torch.from_numpy(painted_pixels(inpainting.mask_path, inpainting.region, img_size))
    hidden = codes_of(painted, models.autoencoder.latent_size)
    job.begin(
        f"{each} completions of each of {len(data)} images of {run.dataset}",
        models.facts() | {"drawn anew": f"{int(hidden.sum())} of {hidden.numel()} codes"},
        data={f"--dataset {run.dataset}": [data]},
    )
    codes = encoded(job, models.autoencoder, data, job.folder.latents)
    starts = given_codes(codes, hidden, mask_id=settings.autoencoder.codebook_size, completions=each)
    ids, _ = sampled_codes(job, models, replace(settings.sampling, n_samples=len(starts)), starts)
    files = write_samples(
        job, len(ids), lambda part: decoded(job, models.autoencoder, ids[part]), job.folder.images, individually=True
    )
    if not job.go_on_alone():
        return
    path = job.picture("inpainted", completions_picture(job, models.autoencoder, data, ids, hidden))
    print(f"{len(ids)} images in {files.where}: {each} for each image, one after the other")
    print(f"{path}: image, what is given of it, completions")


main = experiment(InpaintingExperiment, paint, description=__doc__, example=EXAMPLE, check=check)

if __name__ == "__main__":
    run_script(main)
