"""Draw images larger than the training ones: the prior predicts in windows of its own size, which overlap."""

from __future__ import annotations

from experiments import _packages  # noqa: F401 - first: it refuses packages that are not ours
from hparams.cli import parse, run_script
from hparams.saved import describe
from hparams.settings.experiments import LargerExperiment
from utils.runs.preflight import check_experiment
from utils.runs.run_folder import RunFolder

EXAMPLE = (
    "python experiments/generate_big_samples.py --sampler absorbing --dataset churches --log_dir big_samples_churches "
    "--ae_load_dir vqgan_churches --ae_load_step 2200000 --load_dir absorbing_churches --load_step 2000000 --ema "
    "--shape 32 16"
)


def main() -> None:
    settings = parse(LargerExperiment, description=__doc__, example=EXAMPLE)
    settings = check_experiment(settings)
    if settings.run.dry_run:
        print(describe(settings))
        return
    draw(settings)


def draw(settings: LargerExperiment) -> None:
    """Draw exactly `n_samples` images, and write each by itself and all in one picture."""
    # Imported late, so that --help and a refused flag need not wait for torch.
    from utils.pretrained.trained_models import load_trained_models
    from utils.reporting.experiment_panes import open_dashboard, show_picture, show_results
    from utils.runs.experiment_run import experiment_run
    from utils.runs.introduction import introduce
    from utils.runs.results import record_result
    from utils.sampling.larger_images import decode_larger, larger_ids
    from utils.sampling.sample_files import SampleFiles
    from utils.sampling.sampling import sampling_conditions

    run, larger, sampling = settings.run, settings.larger, settings.sampling
    models = load_trained_models(settings)
    folder = RunFolder(run.log_dir)
    height, width = larger.shape
    what = f"{sampling.n_samples} larger samples ({height}x{width} codes) of {settings.prior.sampler} on {run.dataset}"
    introduce(settings, what, models.device, models.facts())
    with experiment_run(settings, models.device) as ranks:
        ids, evaluations = larger_ids(models, settings, folder.path / "codes.th", ranks)
        images = decode_larger(models, ids, quiet=run.quiet, ranks=ranks)
        if not ranks.first:
            for _ in images:  # to decode its share is all that is left to do
                pass
            return
        files = SampleFiles(folder.images, individually=True)
        with open_dashboard(run) as dashboard:
            for part in images:
                for grid in files.add(part):
                    show_picture(dashboard, "larger samples", grid, title="larger samples")
            for grid in files.finish():
                show_picture(dashboard, "larger samples", grid, title="larger samples")
            conditions = {
                **models.conditions(run),
                "shape": f"{height}x{width}",
                "images": len(ids),
                "order": larger.order,
                **sampling_conditions(sampling, settings.prior.sampler),
                "stride": larger.stride,
            }
            if larger.order == "raster":  # one code a step
                conditions["sample_steps"] = None
            values = {"windows_per_image": evaluations / len(ids)}
            line = record_result(folder.results, conditions, values)
            show_results(dashboard, folder.results)
    print(line)
    print(f"{len(ids)} images in {files.where}")


if __name__ == "__main__":
    run_script(main)
