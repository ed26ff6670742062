"""Stage 2: train a prior over the codes of a trained VQGAN."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

from hparams.cli import note, parse, run_script
from hparams.errors import NotFiniteError
from hparams.notes import notes_on_length
from hparams.saved import describe
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
    from models.prior.absorbing import AbsorbingDiffusion
    from utils.data.batches import BatchOrder
    from utils.machine.devices import pick_amp_dtype, pick_device, rows
    from utils.machine.distributed import joined
    from utils.machine.seeding import seed_global
    from utils.pretrained.building import build_prior, open_data
    from utils.pretrained.loading import note_of_average, restore_autoencoder
    from utils.runs.same_settings import require_same_images, require_same_settings
    from utils.sampling.latents import code_statistics, resident_codes
    from utils.sampling.sampling import draw_images
    from utils.sampling.unmasking import unmasking_strip
    from utils.training.prior_trainer import PriorTrainer
    from utils.training.training_run import TrainingRun

    run_settings, training, source = settings.run, settings.training, settings.source
    codebook_size = settings.autoencoder.codebook_size
    device = pick_device(run_settings.device)
    amp_dtype = pick_amp_dtype(device, run_settings.amp, run_settings.amp_dtype)
    validates = training.steps_per_eval > 0
    with joined(device, backend=run_settings.dist_backend, timeout_s=run_settings.dist_timeout) as ranks:
        require_same_settings(settings, ranks)
        images_of = partial(open_data, run_settings, img_size=settings.autoencoder.img_size, hold_out=validates)
        images, val_images = images_of(split="train"), images_of(split="val") if validates else None
        splits = [images] if val_images is None else [images, val_images]
        require_same_images(f"--dataset {run_settings.dataset}", splits, ranks)
        autoencoder, ae_file = restore_autoencoder(
            settings.autoencoder, str(source.ae_load_dir), source.ae_load_step, ema=True, device=device
        )
        seed_global(run_settings.seed, "prior")
        trainer = PriorTrainer(settings, build_prior(settings.prior, codebook_size), device, amp_dtype, ranks)

        with TrainingRun(settings, settings.prior.sampler, trainer, ranks) as run:
            run.say(f"autoencoder from {ae_file}")
            if line := note_of_average(ae_file):
                run.say(f"note: {line}: train it on, or anew with --ema_warmup")
            run.compare_autoencoder(ae_file)
            run.compare_data(images)
            bad, check = run.bad_images.report, run.stop_if_asked
            encode = partial(
                resident_codes, settings, autoencoder, ranks=ranks, say=run.say, warn=run.warn, bad=bad, check=check
            )
            ids = encode(images, flip=training.horizontal_flip)
            held_out = encode(val_images, flip=False) if val_images is not None else None
            order = BatchOrder(len(ids), training.global_batch, run_settings.seed, ranks.part)
            data = f"{len(ids)} x {ids.shape[1]} codes, {order.batches_per_epoch} steps per epoch"
            run.introduce(trainer, amp_dtype, data)
            run.baselines(code_statistics(ids, codebook_size))
            batches = (rows(ids, order.indices(step)) for step in itertools.count(run.start))
            for step, batch in run.steps(batches):
                metrics = trainer.step(batch, step)
                done = step + 1
                run.log(done, metrics)
                if held_out is not None and run.due(training.steps_per_eval, done):
                    run.validated(done, trainer.validate(held_out, run_settings.batch_size))
                if run.picture_due(done):
                    model, drawn_by = trainer.averaged, (autoencoder, settings.sampling, run_settings, amp_dtype)
                    try:
                        run.picture(done, "samples", draw_images(model, *drawn_by, ranks))
                        if ranks.first and isinstance(model, AbsorbingDiffusion):
                            strip = unmasking_strip(model, *drawn_by)
                            run.picture(done, "unmasking", strip, columns=len(strip) // 2)
                    except NotFiniteError as error:  # a training step that overflows is skipped, too
                        run.warn(f"WARNING: no picture of samples after step {done}: {error}; training goes on")
                run.save_if_due(done)


if __name__ == "__main__":
    run_script(main)
