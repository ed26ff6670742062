"""Find the training images nearest to samples: to see whether a prior repeats what it was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments._experiment import check_experiment, command, experiment
from hparams.script import run_script
from hparams.settings.experiments import NeighboursExperiment
from utils.data.datasets import check_images
from utils.runs.preflight import check_file

if TYPE_CHECKING:
    from utils.runs.job import Job

EXAMPLE = command("calc_nearest_neighbours.py", "nearest_neighbours_churches")


def check(settings: NeighboursExperiment) -> NeighboursExperiment:
    """The settings with the steps of what is loaded; UserError if something is not there."""
    settings = check_experiment(settings)
    check_images(settings.run, hold_out=False)
    check_file("--lpips_weights", settings.neighbours.lpips_weights)
    return settings


def find(job: Job, settings: NeighboursExperiment) -> None:
    """Draw samples, compare them with every training image, and write the nearest ones as a grid and as a list.

    Codes of samples are kept as they are drawn, and so is what was compared: an interrupted call goes on.
    """
    from utils.data.datasets import open_images
    from utils.metrics.neighbours import build_embedding, images_to_compare, nearest_images, write_neighbours
    from utils.pretrained.trained_models import load_trained_models
    from utils.sampling.drawing import decoded, sampled_codes, sampling_conditions
    from utils.sampling.sample_files import write_samples

    run, wanted, sampling = settings.run, settings.neighbours, settings.sampling
    models = load_trained_models(job, settings)
    embedding = build_embedding(job, wanted.distance, wanted.lpips_net, wanted.lpips_weights)
    data = open_images(run, split="all", img_size=settings.autoencoder.img_size, hold_out=False)
    most = images_to_compare(data, wanted.train_images, wanted.top_k)
    compared = f"the first {most} of {len(data)} training images" if most < len(data) else f"all {most} training images"
    job.begin(
        f"nearest neighbours of {sampling.n_samples} samples of {settings.prior.sampler} on {run.dataset}",
        models.facts() | {"data": compared, "distance": embedding.name},
        data={f"--dataset {run.dataset}": [data]},
        until_replaced="it is no neighbour",
    )
    ids, _ = sampled_codes(job, models, sampling)
    samples = decoded(job, models.autoencoder, ids[:]).cpu()
    write_samples(job, len(samples), lambda part: samples[part], job.folder.images, individually=True)
    found = nearest_images(job, embedding, samples, data, most, wanted.top_k)
    if not job.go_on_alone():
        return
    conditions = {
        **models.conditions(job, run.dataset), "distance": embedding.name, "weights": embedding.weights,
        "samples": len(samples), **sampling_conditions(sampling, settings.prior.sampler),
        "split": "all", "training_images": most,
    }
    path = job.picture("neighbours", write_neighbours(job, samples, found, data, conditions))
    nearest = found.distances[:, 0].cpu().double()
    job.result(conditions, {"nearest_mean": nearest.mean().item(), "nearest_least": nearest.min().item()})
    print(f"{path}: each sample, then the nearest of {compared}")


main = experiment(NeighboursExperiment, find, description=__doc__, example=EXAMPLE, check=check)

if __name__ == "__main__":
    run_script(main)
