"""FID and KID of images from a trained prior, of given codes, or of a folder, against a data set."""

from __future__ import annotations

from hparams.cli import parse, run_script
from hparams.experiments import FIDExperiment
from hparams.saved import describe, save
from utils.preflight import check_comparison
from utils.run_folder import RunFolder

EXAMPLE = (
    "python experiments/calc_FID.py --sampler absorbing --dataset churches --log_dir FID_log "
    "--ae_load_dir vqgan_churches --ae_load_step 2200000 --load_dir absorbing_churches --load_step 2000000 --ema "
    "--n_samples 50000 --temp 0.9"
)


def main() -> None:
    settings = parse(FIDExperiment, description=__doc__, example=EXAMPLE)
    check_comparison(settings)
    if settings.run.dry_run:
        print(describe(settings))
        return
    calculate(settings)


def calculate(settings: FIDExperiment) -> None:
    """Compute features of both sets, going on with what an earlier call left unfinished, and their distances."""
    # Imported late, so that --help and a refused flag need not wait for torch.
    from utils.devices import pick_device
    from utils.feature_sources import open_sources
    from utils.fid import distances
    from utils.files import sole_writer
    from utils.results import FILE_NAME, record_result

    run, folder = settings.run, RunFolder(settings.run.log_dir)
    generated, real = open_sources(settings, folder, pick_device(run.device), as_many=False)
    with sole_writer(folder.path):
        save(settings, folder.hparams)
        values = distances(generated.compute(), real.compute(), settings.kid)
        conditions = {"metric": "FID", **real.conditions, **generated.conditions}
        print(record_result(folder.path / FILE_NAME, conditions, values))


if __name__ == "__main__":
    run_script(main)
