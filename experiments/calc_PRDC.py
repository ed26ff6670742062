"""Precision, recall, density and coverage of images from a trained prior, of given codes, images or features."""

from __future__ import annotations

from experiments import _packages  # noqa: F401 - first: it refuses packages that are not ours
from hparams.cli import parse, run_script
from hparams.saved import describe
from hparams.settings.experiments import PRDCExperiment
from utils.runs.preflight import check_comparison
from utils.runs.run_folder import RunFolder

EXAMPLE = (
    "python experiments/calc_PRDC.py --sampler absorbing --dataset churches --log_dir PRDC_log "
    "--ae_load_dir vqgan_churches --ae_load_step 2200000 --load_dir absorbing_churches --load_step 2000000 --ema "
    "--n_samples 50000"
)


def main() -> None:
    settings = parse(PRDCExperiment, description=__doc__, example=EXAMPLE)
    settings = check_comparison(settings)
    if settings.run.dry_run:
        print(describe(settings))
        return
    calculate(settings)


def calculate(settings: PRDCExperiment) -> None:
    """Compare generated images with as many real ones, the first of the split."""
    # Imported late, so that --help and a refused flag need not wait for torch.
    from utils.machine.devices import pick_device
    from utils.metrics.feature_sources import facts_of, open_sources
    from utils.metrics.prdc import prdc_of_arrays
    from utils.reporting.sinks import shown
    from utils.runs.experiment_run import experiment_run, list_bad_images
    from utils.runs.introduction import introduce
    from utils.runs.results import record_result

    run, folder, nearest_k = settings.run, RunFolder(settings.run.log_dir), settings.prdc.nearest_k
    device = pick_device(run.device)
    generated, real = open_sources(settings, folder, device, as_many=True)
    introduce(settings, "precision, recall, density and coverage", device, facts_of(generated, real))
    splits = [real.data] if real.data else []
    with experiment_run(settings, device, *splits, fake_images=generated.data) as ranks:
        bad = list_bad_images(run, ranks)
        features = real.compute(ranks, bad), generated.compute(ranks, bad)
        values = prdc_of_arrays(*features, nearest_k, device, quiet=run.quiet, ranks=ranks)
    if not ranks.first:
        return
    conditions = {"metric": "PRDC", "features": "given", **real.conditions, **generated.conditions}
    line = record_result(folder.results, {**conditions, "nearest_k": nearest_k}, vars(values))
    with shown(run) as record:
        record.results()
    print(line)


if __name__ == "__main__":
    run_script(main)
