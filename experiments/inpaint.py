"""Paint a part of given images anew, so that it fits the rest."""

from __future__ import annotations

import numpy as np

from experiments import _packages  # noqa: F401 - first: it refuses packages that are not ours
from hparams.cli import parse, run_script
from hparams.saved import describe
from hparams.settings.experiments import InpaintingExperiment
from utils.data.masks import painted_pixels
from utils.runs.preflight import check_experiment, check_file, check_split
from utils.runs.run_folder import RunFolder

EXAMPLE = (
    "python experiments/inpaint.py --sampler absorbing --dataset churches --log_dir inpainted_churches "
    "--ae_load_dir vqgan_churches --ae_load_step 2200000 --load_dir absorbing_churches --load_step 2000000 --ema "
    "--region 128 0 128 256"
)


def main() -> None:
    settings = parse(InpaintingExperiment, description=__doc__, example=EXAMPLE)
    settings = check_experiment(settings)
    check_split(settings.run, settings.inpainting.split)
    check_file("--mask_path", settings.inpainting.mask_path)
    painted = painted_pixels(settings.inpainting, settings.autoencoder.img_size)
    if settings.run.dry_run:
        print(describe(settings))
        return
    paint(settings, painted)


def paint(settings: InpaintingExperiment, painted: np.ndarray) -> None:
    """Draw completions of the first images, and write each by itself, and all beside what was given.

    Their codes are drawn first, and kept: an interrupted call goes on from them. painted: the pixels that are not
    given, bool [img_size,img_size].
    """
    # Imported late, so that --help and a refused flag need not wait for torch.
    import torch

    from hparams.settings.stages import SamplingSettings
    from models.sampling.inpainting import codes_of
    from utils.data.batches import eval_batches
    from utils.data.pictures import to_uint8
    from utils.machine.progress import say
    from utils.metrics.feature_sources import open_split
    from utils.pretrained.trained_models import load_trained_models
    from utils.reporting.sinks import shown
    from utils.runs.experiment_run import experiment_run, list_bad_images
    from utils.runs.introduction import introduce
    from utils.sampling.inpainting import CompletionsPicture, given_codes
    from utils.sampling.latents import cached_latents
    from utils.sampling.sample_files import SampleFiles
    from utils.sampling.sampled_ids import sampled_ids
    from utils.sampling.sampling import shared_decoding

    run, inpainting = settings.run, settings.inpainting
    models = load_trained_models(settings)
    data = open_split(run, inpainting.split, settings.autoencoder.img_size).first(inpainting.n_images)
    hidden = codes_of(torch.from_numpy(painted), models.autoencoder.latent_size)
    folder, n = RunFolder(run.log_dir), len(data) * inpainting.n_samples
    what = f"{inpainting.n_samples} completions of each of {len(data)} images of {run.dataset}"
    anew = f"{int(hidden.sum())} of {hidden.numel()} codes"
    introduce(settings, what, models.device, models.facts() | {"drawn anew": anew})
    sampling = SamplingSettings(n_samples=n, temp=inpainting.temp, sample_steps=inpainting.sample_steps)
    with experiment_run(settings, models.device, data) as ranks:
        bad = list_bad_images(run, ranks)
        codes = cached_latents(
            folder.latents,
            models.autoencoder,
            data,
            flip=False,
            batch_size=run.batch_size,
            num_workers=run.num_workers,
            say=say if not run.quiet else lambda _: None,
            quiet=run.quiet,
            bad=bad,
            ranks=ranks,
        )
        mask_id = settings.autoencoder.codebook_size
        starts = given_codes(codes, hidden, mask_id=mask_id, completions=inpainting.n_samples)
        ids = sampled_ids(folder, models, settings, sampling, ranks, starts)
        batches = shared_decoding(models.autoencoder, ids, run, models.amp_dtype, ranks)
        if not ranks.first:
            for _ in batches:  # to do its share is all that it does
                pass
            return
        picture = CompletionsPicture(len(data), inpainting.n_samples)
        files = SampleFiles(folder.images, individually=True)
        for images in batches:
            pixels = to_uint8(images).cpu()
            picture.add(pixels)
            list(files.add(pixels))  # each is written
        list(files.finish())
        drawn = picture.draw(next(eval_batches(data, picture.rows, 0, bad=bad)), hidden)
        with shown(run) as record:
            record.picture(None, "inpainted", drawn)
    print(f"{n} images in {files.where}: {inpainting.n_samples} for each image, one after the other")
    path = folder.images / "inpainted.png"
    print(f"{path}: image, what is given of it, completions ({picture.rows} x {picture.completions})")


if __name__ == "__main__":
    run_script(main)
