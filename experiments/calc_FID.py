"""FID and KID of images from a trained prior, of given codes, or of a folder, against a data set."""

from __future__ import annotations

from experiments import _packages  # noqa: F401 - first: it refuses packages that are not ours
from hparams.cli import parse, run_script
from hparams.saved import describe
from hparams.settings.experiments import FIDExperiment
from utils.runs.preflight import check_comparison
from utils.runs.run_folder import RunFolder

EXAMPLE = (
    "python experiments/calc_FID.py --sampler absorbing --dataset churches --log_dir FID_log "
    "--ae_load_dir vqgan_churches --ae_load_step 2200000 --load_dir absorbing_churches --load_step 2000000 --ema "
    "--n_samples 50000 --temp 0.9"
)


def main() -> None:
    settings = parse(FIDExperiment, description=__doc__, example=EXAMPLE)
    settings = check_comparison(settings)
    if settings.run.dry_run:
        print(describe(settings))
        return
    calculate(settings)


def calculate(settings: FIDExperiment) -> None:
    """Compute features of both sets, going on with what an earlier call left unfinished, and their distances."""
    # Imported late, so that --help and a refused flag need not wait for torch.
    from utils.machine.devices import pick_device
    from utils.metrics.feature_sources import facts_of, open_sources
    from utils.metrics.fid import distances
    from utils.reporting.sinks import shown
    from utils.runs.experiment_run import experiment_run, list_bad_images
    from utils.runs.introduction import introduce
    from utils.runs.results import record_result

    run, folder = settings.run, RunFolder(settings.run.log_dir)
    device = pick_device(run.device)
    generated, real = open_sources(settings, folder, device, as_many=False)
    introduce(settings, "FID and KID", device, facts_of(generated, real))
    splits = [real.data] if real.data else []
    with experiment_run(settings, device, *splits, fake_images=generated.data) as ranks:
        bad = list_bad_images(run, ranks)
        features = generated.compute(ranks, bad)
        statistics = real.statistics(ranks, bad, quiet=run.quiet)
        real_features = real.compute(ranks, bad) if settings.kid.kid_subsets else None
    if not ranks.first:
        return
    values = distances(features, real_features, statistics, real.n, settings.kid, quiet=run.quiet)
    conditions = {"metric": "FID", **real.conditions, **generated.conditions, **vars(settings.kid)}
    line = record_result(folder.results, conditions, values)
    with shown(run) as record:
        record.results()
    print(line)


if __name__ == "__main__":
    run_script(main)
