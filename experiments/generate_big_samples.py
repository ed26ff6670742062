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
    from utils.reporting.sinks import shown
    from utils.runs.experiment_run import experiment_run
    from utils.runs.introduction import introduce
    from utils.runs.results import record_result
    from utils.sampling.larger_images import decode_larger, larger_ids
    from utils.sampling.sample_files import SampleFiles

    run, larger = settings.run, settings.larger
    models = load_trained_models(settings)
    folder = RunFolder(run.log_dir)
    height, width = larger.shape
    what = f"{larger.n_samples} larger samples ({height}x{width} codes) of {settings.prior.sampler} on {run.dataset}"
    introduce(settings, what, models.device, models.facts())
    with experiment_run(settings, models.device) as ranks:
        ids, evaluations = larger_ids(models, settings, folder.path / "codes.th", ranks)
        images = decode_larger(models, ids, quiet=run.quiet, ranks=ranks)
        if not ranks.first:
            for _ in images:  # to decode its share is all that is left to do
                pass
            return
        files = SampleFiles(folder.images, individually=True)
        with shown(run) as record:
            for part in images:
                for grid in files.add(part):
                    record.picture(None, "samples", grid, write=False)
            for grid in files.finish():
                record.picture(None, "samples", grid, write=False)
            conditions = {
                **models.conditions(run),
                "shape": f"{height}x{width}",
                "images": len(ids),
                "order": larger.order,
                "sample_steps": larger.sample_steps if larger.order == "random" else None,
                "stride": larger.stride,
                "temp": larger.temp,
            }
            values = {"windows_per_image": evaluations / len(ids)}
            line = record_result(folder.results, conditions, values)
            record.results()
    print(line)
    print(f"{len(ids)} images in {files.where}")


if __name__ == "__main__":
    run_script(main)
