"""FID and KID of a trained autoencoder's reconstructions, with PSNR, SSIM, LPIPS and the use of its codebook."""

from __future__ import annotations

from dataclasses import replace

from experiments import _packages  # noqa: F401 - first: it refuses packages that are not ours
from hparams.checks import check_image_count
from hparams.cli import parse, run_script
from hparams.saved import describe
from hparams.settings.experiments import ReconstructionExperiment
from utils.runs.preflight import check_autoencoder, check_file, check_output, check_split
from utils.runs.run_folder import RunFolder

EXAMPLE = (
    "python experiments/calc_VQGAN_FID.py --dataset churches --log_dir VQGAN_FID_log --ae_load_dir vqgan_churches "
    "--ae_load_step 2200000"
)


def main() -> None:
    settings = parse(ReconstructionExperiment, description=__doc__, example=EXAMPLE)
    source = check_autoencoder(settings.source, ema=settings.weights.ema is not False)
    settings = replace(settings, source=source)
    check_file("--feature_weights", settings.features.feature_weights)
    check_file("--lpips_weights", settings.reconstruction.lpips_weights)
    check_split(settings.run, settings.real.split)
    check_output(settings.run)
    if settings.run.dry_run:
        print(describe(settings))
        return
    calculate(settings)


def calculate(settings: ReconstructionExperiment) -> None:
    """Reconstruct a split, and compare with it as a set and image by image."""
    # Imported late, so that --help and a refused flag need not wait for torch.
    from utils.machine.devices import pick_amp_dtype, pick_device, precision_name
    from utils.machine.progress import say
    from utils.metrics.feature_sources import open_split, real_source
    from utils.metrics.features import build_features
    from utils.metrics.fid import distances
    from utils.metrics.reconstructions import Reconstructions, lpips_if_there
    from utils.pretrained.loading import restore_autoencoder
    from utils.pretrained.trained_models import note_averages
    from utils.reporting.sinks import shown
    from utils.runs.experiment_run import experiment_run, list_bad_images
    from utils.runs.introduction import introduce, tell_parameters
    from utils.runs.results import record_result
    from utils.sampling.latents import codes_in_use

    run, source, sizes = settings.run, settings.source, settings.autoencoder
    device, folder, split = pick_device(run.device), RunFolder(run.log_dir), settings.real.split
    extractor = build_features(settings.features, device)
    autoencoder, ae_file = restore_autoencoder(
        sizes, str(source.ae_load_dir), source.ae_load_step, ema=settings.weights.ema is not False, device=device
    )
    note_averages(ae_file)
    data, most = open_split(run, split, sizes.img_size), settings.reconstruction.n_samples
    real = real_source(run, extractor, data, split, most)
    check_image_count(settings, real.n, real.where)
    lpips = lpips_if_there(settings, device, say)
    facts = {
        "autoencoder": f"{ae_file}, {tell_parameters(autoencoder)} parameters",
        "real": f"{real.n} images, {real.where}",
        "features": f"{extractor.name} (weights {extractor.weights})",
    }
    introduce(settings, "FID of reconstructions", device, facts)
    with experiment_run(settings, device, data) as ranks:
        bad = list_bad_images(run, ranks)
        reconstructions = Reconstructions(
            settings, folder, autoencoder, ae_file, data.first(most), extractor, lpips, bad, ranks
        )
        codes = reconstructions.codes()
        features, quality = reconstructions.compute(codes)
        statistics = real.statistics(ranks, bad, quiet=run.quiet)
        real_features = real.compute(ranks, bad) if settings.kid.kid_subsets else None
    if not ranks.first:
        return
    values = distances(features, real_features, statistics, real.n, settings.kid, quiet=run.quiet) | quality
    values |= codes_in_use(codes, sizes.codebook_size)
    conditions = {
        "metric": "reconstruction FID",
        **real.conditions,
        "autoencoder": str(ae_file),
        "dtype": precision_name(pick_amp_dtype(device, run.amp, run.amp_dtype)),
        **vars(settings.kid),
    }
    if lpips:
        conditions |= {"lpips_net": settings.reconstruction.lpips_net, "lpips_weights": lpips.weights}
    line = record_result(folder.results, conditions, values)
    path, grid = reconstructions.picture(codes)
    with shown(run) as record:
        record.results()
        record.picture(None, "originals_over_reconstructions", grid, write=False)
    print(line)
    print(f"originals over reconstructions: {path}")


if __name__ == "__main__":
    run_script(main)
