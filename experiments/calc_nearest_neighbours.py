"""Find the training images nearest to samples: to see whether a prior repeats what it was trained on."""

from __future__ import annotations

from experiments import _packages  # noqa: F401 - first: it refuses packages that are not ours
from hparams.cli import parse, run_script
from hparams.saved import describe
from hparams.settings.experiments import NeighboursExperiment
from utils.runs.preflight import check_data, check_experiment, check_file
from utils.runs.run_folder import RunFolder

EXAMPLE = (
    "python experiments/calc_nearest_neighbours.py --sampler absorbing --dataset churches "
    "--log_dir nearest_neighbours_churches --ae_load_dir vqgan_churches --ae_load_step 2200000 "
    "--load_dir absorbing_churches --load_step 2000000 --ema"
)


def main() -> None:
    settings = parse(NeighboursExperiment, description=__doc__, example=EXAMPLE)
    settings = check_experiment(settings)
    check_data(settings.run, hold_out=False)
    check_file("--lpips_weights", settings.neighbours.lpips_weights)
    if settings.run.dry_run:
        print(describe(settings))
        return
    find(settings)


def find(settings: NeighboursExperiment) -> None:
    """Draw samples, compare them with every training image, and write the nearest ones as a grid and as a list.

    Codes of samples are kept as they are drawn, and so is how far the comparison is: an interrupted call goes on.
    """
    # Imported late, so that --help and a refused flag need not wait for torch.
    from utils.machine.progress import say
    from utils.metrics.neighbour_files import write_neighbours
    from utils.metrics.neighbour_search import build_embedding, images_to_compare, search
    from utils.pretrained.building import open_data
    from utils.pretrained.trained_models import load_trained_models
    from utils.reporting.sinks import shown
    from utils.runs.experiment_run import experiment_run, list_bad_images
    from utils.runs.introduction import introduce
    from utils.runs.results import record_result
    from utils.sampling.sample_files import SampleFiles
    from utils.sampling.sampled_ids import sampled_ids
    from utils.sampling.sampling import decode_all, sampling_conditions

    run, neighbours, sampling = settings.run, settings.neighbours, settings.sampling
    models = load_trained_models(settings)
    embedding = build_embedding(neighbours, models.device, warn=say)
    data = open_data(run, split="all", img_size=settings.autoencoder.img_size, hold_out=False)
    folder = RunFolder(run.log_dir)
    what = f"nearest neighbours of {sampling.n_samples} samples of {settings.prior.sampler} on {run.dataset}"
    most = images_to_compare(data, neighbours.train_images, neighbours.top_k)
    compared = f"the first {most} of {len(data)} training images" if most < len(data) else f"all {most} training images"
    facts = models.facts() | {"data": compared, "distance": embedding.name}
    introduce(settings, what, models.device, facts)
    with experiment_run(settings, models.device, data) as ranks:
        bad = list_bad_images(run, ranks, until_then="it is no neighbour")
        ids = sampled_ids(folder, models, settings, sampling, ranks)
        samples = decode_all(models.autoencoder, ids, run, models.amp_dtype, ranks)
        if ranks.first:
            files = SampleFiles(folder.images, individually=True)
            for _ in (*files.add(samples), *files.finish()):
                pass  # each is written
        found = search(
            embedding,
            samples.to(models.device),
            data,
            neighbours.top_k,
            images=neighbours.train_images,
            batch_size=run.batch_size,
            num_workers=run.num_workers,
            partial=folder.path / "neighbours.partial",
            quiet=run.quiet,
            bad=bad,
            ranks=ranks,
        )
        if not ranks.first:
            return
        conditions = {
            **models.conditions(run),
            "distance": embedding.name,
            "weights": embedding.weights,
            "samples": len(samples),
            **sampling_conditions(sampling, settings.prior.sampler),
            "split": "all",
            "training_images": found.seen,
        }
        grid = write_neighbours(folder, samples, found, data, conditions)
        nearest = found.distances[:, 0].double()
        values = {"nearest_mean": nearest.mean().item(), "nearest_least": nearest.min().item()}
        line = record_result(folder.results, conditions, values)
        with shown(run) as record:
            record.picture(None, "neighbours", grid, write=False)
            record.results()
    print(line)
    print(f"{folder.images / 'neighbours.png'}: each sample, then the nearest of {compared}")


if __name__ == "__main__":
    run_script(main)
