"""Draw images from a trained prior."""

from __future__ import annotations

from experiments import _packages  # noqa: F401 - first: it refuses packages that are not ours
from hparams.cli import parse, run_script
from hparams.saved import describe
from hparams.settings.experiments import SamplesExperiment
from utils.runs.preflight import check_experiment
from utils.runs.run_folder import RunFolder

EXAMPLE = (
    "python experiments/get_samples.py --sampler absorbing --dataset churches --log_dir samples_churches "
    "--ae_load_dir vqgan_churches --ae_load_step 2200000 --load_dir absorbing_churches --load_step 2000000 "
    "--ema --n_samples 64 --temp 0.9"
)


def main() -> None:
    settings = parse(SamplesExperiment, description=__doc__, example=EXAMPLE)
    settings = check_experiment(settings)
    if settings.run.dry_run:
        print(describe(settings))
        return
    sample(settings)


def sample(settings: SamplesExperiment) -> None:
    """Draw exactly `n_samples` images into `images/` of the run folder, in grids or one by one.

    Their codes are drawn first, and kept: an interrupted call goes on from them.
    """
    # Imported late, so that --help and a refused flag need not wait for torch.
    from utils.pretrained.trained_models import load_trained_models
    from utils.reporting.sinks import shown
    from utils.runs.experiment_run import experiment_run
    from utils.runs.introduction import introduce
    from utils.sampling.sample_files import SampleFiles
    from utils.sampling.sampled_ids import sampled_ids
    from utils.sampling.sampling import shared_decoding

    run, models = settings.run, load_trained_models(settings)
    folder = RunFolder(run.log_dir)
    what = f"{settings.sampling.n_samples} samples of {settings.prior.sampler} on {run.dataset}"
    introduce(settings, what, models.device, models.facts())
    with experiment_run(settings, models.device) as ranks:
        ids = sampled_ids(folder, models, settings, settings.sampling, ranks)
        batches = shared_decoding(models.autoencoder, ids, run, models.amp_dtype, ranks)
        if not ranks.first:
            for _ in batches:  # to do its share is all that it does
                pass
            return
        with shown(run) as record:
            files = SampleFiles(folder.images, individually=settings.output.save_individually)
            for images in batches:
                for grid in files.add(images):
                    record.picture(None, "samples", grid, write=False)
            for grid in files.finish():
                record.picture(None, "samples", grid, write=False)
        print(f"{len(ids)} images in {files.where}")


if __name__ == "__main__":
    run_script(main)
