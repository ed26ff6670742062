"""Stage 2: train a prior over the codes of a trained VQGAN."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

from hparams.cli import parse
from hparams.errors import NotFiniteError
from hparams.script import run_script
from hparams.settings.stages import PriorStage
from utils.data.datasets import check_images
from utils.runs.preflight import check_autoencoder
from utils.training.training_start import TrainingStart

EXAMPLE = (
    "python3 train_sampler.py --sampler absorbing --dataset churches --log_dir absorbing_churches "
    "--ae_load_dir vqgan_churches --ae_load_step 2200000 --amp --ema"
)


def main() -> None:
    settings = parse(PriorStage, description=__doc__, example=EXAMPLE)
    check_images(settings.run, hold_out=settings.training.steps_per_eval > 0)
    # Saved with the run: its codes stay those of one autoencoder, also when stage 1 has gone on.
    settings = replace(settings, source=check_autoencoder(settings.source))
    if TrainingStart(settings, settings.prior.sampler).has_work():
        train(settings)


def train(settings: PriorStage) -> None:
    """Train as the settings say, from the start or from where an earlier run ended."""
    # Imported late, so that --help and a refused flag need not wait for torch.
    from utils.data.batch_order import BatchOrder
    from utils.data.datasets import open_images
    from utils.machine.devices import rows
    from utils.machine.seeding import seed_global
    from utils.pretrained.building import build_prior
    from utils.pretrained.loading import autoencoder_file, note_of_average, restore_autoencoder
    from utils.reporting.sinks import open_sinks
    from utils.runs.job import open_job, require_same_images
    from utils.runs.run_folder import RunFolder
    from utils.sampling.drawing import draw_images
    from utils.sampling.latents import code_statistics, encoded, resident
    from utils.sampling.unmasking import unmasking_strip
    from utils.training.prior_trainer import PriorTrainer
    from utils.training.training_run import TrainingRun

    training, validates = settings.training, settings.training.steps_per_eval > 0
    ae_load_dir, ae_step = str(settings.source.ae_load_dir), settings.source.ae_load_step
    with open_job(settings, open_sinks) as job:
        device, ranks = job.device, job.ranks
        img_size, codebook_size = settings.autoencoder.img_size, settings.autoencoder.codebook_size
        images = open_images(settings.run, split="train", img_size=img_size, hold_out=validates)
        held_out = open_images(settings.run, split="val", img_size=img_size, hold_out=True) if validates else None
        require_same_images(f"--dataset {settings.run.dataset}", [images, held_out] if held_out else [images], ranks)
        ae_file = autoencoder_file(ae_load_dir, ae_step, ema=True)
        autoencoder = restore_autoencoder(settings.autoencoder, ae_file, device)
        seed_global(settings.run.seed, "prior")
        trainer = PriorTrainer(job, training, settings.prior, build_prior(settings.prior, codebook_size))
        encode = partial(encoded, job, autoencoder, folder=RunFolder(ae_load_dir).latents)

        with TrainingRun(settings, settings.prior.sampler, trainer, job) as run:
            run.say(f"autoencoder from {ae_file}")
            if line := note_of_average(ae_file):
                run.say(f"note: {line}: train it on, or anew with --ema_warmup")
            run.compare_autoencoder(ae_file)
            run.compare_data(images)
            ids = resident(encode(images, flip=training.horizontal_flip), codebook_size, device)
            val_ids = resident(encode(held_out), codebook_size, device) if held_out else None
            order = BatchOrder(len(ids), training.global_batch, settings.run.seed, ranks.part)
            run.introduce(f"{len(ids)} x {ids.shape[1]} codes, {order.batches_per_epoch} steps per epoch")
            run.baselines(code_statistics(ids, codebook_size))
            batches = (rows(ids, order.indices(step)) for step in itertools.count(run.start))
            for step, batch in run.steps(batches):
                done = step + 1
                run.log(done, trainer.step(batch, step))
                if val_ids is not None and run.due(training.steps_per_eval, done):
                    run.validated(done, trainer.validate(val_ids, settings.run.batch_size))
                if run.picture_due(done):
                    model = trainer.averaged
                    try:
                        run.picture(done, "samples", draw_images(job, model, autoencoder, settings.sampling))
                        if ranks.first and model.mask_id is not None:
                            strip = unmasking_strip(job, model, autoencoder, settings.sampling)
                            run.picture(done, "unmasking", strip, columns=len(strip) // 2)
                    except NotFiniteError as error:  # a training step that overflows is skipped, too
                        run.warn(f"WARNING: no picture of samples after step {done}: {error}; training goes on")
                run.save_if_due(done)


if __name__ == "__main__":
    run_script(main)
