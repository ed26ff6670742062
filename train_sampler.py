"""Stage 2: train a prior over the codes of a trained VQGAN."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

from hparams.cli import note, parse
from hparams.errors import NotFiniteError
from hparams.notes import notes_on_length
from hparams.saved import describe
from hparams.script import run_script
from hparams.settings.stages import PriorStage
from utils.runs.preflight import check_autoencoder, check_data
from utils.training.training_start import first_step, is_complete

EXAMPLE = (
    "python3 train_sampler.py --sampler absorbing --dataset churches --log_dir absorbing_churches "
    "--ae_load_dir vqgan_churches --ae_load_step 2200000 --amp --ema"
)


def main() -> None:
    settings = parse(PriorStage, description=__doc__, example=EXAMPLE)
    check_data(settings.run, hold_out=settings.training.steps_per_eval > 0)
    # Saved with the run: its codes stay those of one autoencoder, also when stage 1 has gone on.
    settings = replace(settings, source=check_autoencoder(settings.source))
    start = first_step(settings, settings.prior.sampler)
    if settings.run.dry_run:
        print(describe(settings))
        note(notes_on_length(settings))
        return
    if not is_complete(settings, settings.prior.sampler, start):
        train(settings)


def train(settings: PriorStage) -> None:
    """Train as the settings say, from the start or from where an earlier run ended."""
    # Imported late, so that --help and a refused flag need not wait for torch.
    from utils.data.batch_order import BatchOrder
    from utils.machine.devices import rows
    from utils.machine.seeding import seed_global
    from utils.pretrained.building import build_prior, open_data
    from utils.pretrained.loading import autoencoder_file, note_of_average, restore_autoencoder
    from utils.reporting.sinks import open_sinks
    from utils.runs.job import open_job, require_same_images
    from utils.runs.run_folder import RunFolder
    from utils.sampling.drawing import draw_images
    from utils.sampling.latents import code_statistics, encoded, resident
    from utils.sampling.unmasking import unmasking_strip
    from utils.training.prior_trainer import PriorTrainer
    from utils.training.training_run import TrainingRun

    run_settings, training, source = settings.run, settings.training, settings.source
    codebook_size = settings.autoencoder.codebook_size
    validates = training.steps_per_eval > 0
    with open_job(settings, open_sinks) as job:
        device, ranks, ae_folder = job.device, job.ranks, RunFolder(str(source.ae_load_dir))
        images_of = partial(open_data, run_settings, img_size=settings.autoencoder.img_size, hold_out=validates)
        images, val_images = images_of(split="train"), images_of(split="val") if validates else None
        splits = [images] if val_images is None else [images, val_images]
        require_same_images(f"--dataset {run_settings.dataset}", splits, ranks)
        ae_file = autoencoder_file(source.ae_load_dir, source.ae_load_step, ema=True)
        autoencoder = restore_autoencoder(settings.autoencoder, ae_file, device)
        seed_global(run_settings.seed, "prior")
        prior = build_prior(settings.prior, codebook_size)
        trainer = PriorTrainer(run_settings, training, settings.prior, prior, device, job.amp_dtype, ranks)

        with TrainingRun(settings, settings.prior.sampler, trainer, job) as run:
            run.say(f"autoencoder from {ae_file}")
            if line := note_of_average(ae_file):
                run.say(f"note: {line}: train it on, or anew with --ema_warmup")
            run.compare_autoencoder(ae_file)
            run.compare_data(images)
            codes = encoded(job, autoencoder, images, ae_folder.latents, flip=training.horizontal_flip)
            ids = resident(codes, codebook_size, device)
            held_out = None
            if val_images is not None:
                held_out = resident(encoded(job, autoencoder, val_images, ae_folder.latents), codebook_size, device)
            order = BatchOrder(len(ids), training.global_batch, run_settings.seed, ranks.part)
            data = f"{len(ids)} x {ids.shape[1]} codes, {order.batches_per_epoch} steps per epoch"
            run.introduce(trainer, data)
            run.baselines(code_statistics(ids, codebook_size))
            batches = (rows(ids, order.indices(step)) for step in itertools.count(run.start))
            for step, batch in run.steps(batches):
                metrics = trainer.step(batch, step)
                done = step + 1
                run.log(done, metrics)
                if held_out is not None and run.due(training.steps_per_eval, done):
                    run.validated(done, trainer.validate(held_out, run_settings.batch_size))
                if run.picture_due(done):
                    model, drawn_by = trainer.averaged, (autoencoder, settings.sampling)
                    try:
                        run.picture(done, "samples", draw_images(job, model, *drawn_by))
                        if ranks.first and model.mask_id is not None:
                            strip = unmasking_strip(job, model, *drawn_by)
                            run.picture(done, "unmasking", strip, columns=len(strip) // 2)
                    except NotFiniteError as error:  # a training step that overflows is skipped, too
                        run.warn(f"WARNING: no picture of samples after step {done}: {error}; training goes on")
                run.save_if_due(done)


if __name__ == "__main__":
    run_script(main)
