"""FID and KID of a trained autoencoder's reconstructions, with PSNR, SSIM, LPIPS and the use of its codebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments._experiment import check_reconstruction, experiment
from hparams.script import run_script
from hparams.settings.experiments import ReconstructionExperiment

if TYPE_CHECKING:
    from utils.runs.job import Job

EXAMPLE = (
    "python experiments/calc_VQGAN_FID.py --dataset churches --log_dir VQGAN_FID_log --ae_load_dir vqgan_churches "
    "--ae_load_step 2200000"
)


def calculate(job: Job, settings: ReconstructionExperiment) -> None:
    """Reconstruct a split, and compare with it as a set and image by image."""
    from hparams.checks import check_image_count
    from utils.data.datasets import open_images
    from utils.machine.devices import precision_name
    from utils.metrics.feature_sources import of_data
    from utils.metrics.features import build_features
    from utils.metrics.fid import distances
    from utils.metrics.reconstructions import compare_reconstructions, lpips_if_there, picture_of
    from utils.pretrained.trained_models import load_trained_autoencoder
    from utils.runs.job import tell_parameters
    from utils.runs.run_folder import RunFolder
    from utils.sampling.latents import codes_in_use, encoded

    source, sizes, split, compared = settings.source, settings.autoencoder, settings.real.split, settings.reconstruction
    extractor = build_features(settings.features.features, settings.features.feature_weights, job.device)
    autoencoder, file, key = load_trained_autoencoder(job, sizes, source, ema=settings.weights.ema is not False)
    data = open_images(settings.run, split=split, img_size=sizes.img_size, hold_out=True)
    real = of_data(extractor, data, split, compared.n_samples)
    check_image_count(settings, real.n, real.where)
    lpips = lpips_if_there(job, compared.lpips_net, compared.lpips_weights, sizes.img_size)
    facts = {
        "autoencoder": f"{file}, {tell_parameters(autoencoder)} parameters",
        "real": f"{real.n} images, {real.where}",
        "features": f"{extractor.name} (weights {extractor.weights})",
    }
    job.begin("FID of reconstructions", facts, data={f"--dataset {settings.run.dataset}": [data]})
    shown = data.first(compared.n_samples)
    codes = encoded(job, autoencoder, shown, RunFolder(str(source.ae_load_dir)).latents)
    features, quality = compare_reconstructions(job, autoencoder, key, shown, codes, extractor, lpips)
    statistics = real.statistics(job)
    real_features = real.features(job) if settings.kid.kid_subsets else None
    if not job.go_on_alone():
        return
    values = distances(job, features, real_features, statistics, real.n, settings.kid) | quality
    values |= codes_in_use(codes, sizes.codebook_size)
    made_by = {"autoencoder": str(file), "dtype": precision_name(job.amp_dtype)}
    conditions = {"metric": "reconstruction FID", **real.conditions, **made_by, **vars(settings.kid)}
    if lpips:
        conditions |= {"lpips_net": compared.lpips_net, "lpips_weights": lpips.weights}
    path = job.picture("originals_over_reconstructions", picture_of(job, autoencoder, shown, codes))
    job.result(conditions, values)
    print(f"originals over reconstructions: {path}")


main = experiment(ReconstructionExperiment, calculate, description=__doc__, example=EXAMPLE, check=check_reconstruction)

if __name__ == "__main__":
    run_script(main)
