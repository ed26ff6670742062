"""Stage 1: train a VQGAN, which turns images into a grid of codes and back."""

from __future__ import annotations

from hparams.cli import parse
from hparams.script import run_script
from hparams.settings.stages import VQGANStage
from utils.data.datasets import check_images
from utils.runs.run_folder import VQGAN
from utils.training.training_start import TrainingStart

EXAMPLE = "python3 train_vqgan.py --dataset churches --log_dir vqgan_churches --amp --ema --batch_size 4"


def main() -> None:
    settings = parse(VQGANStage, description=__doc__, example=EXAMPLE)
    check_images(settings.run, hold_out=settings.training.steps_per_eval > 0)
    if TrainingStart(settings, VQGAN).has_work():
        train(settings)


def train(settings: VQGANStage) -> None:
    """Train as the settings say, from the start or from where an earlier run ended."""
    # Imported late, so that --help and a refused flag need not wait for torch.
    from utils.data.batch_order import BatchOrder
    from utils.data.batches import eval_batches, train_batches
    from utils.data.datasets import open_images
    from utils.data.pictures import comparison_rows
    from utils.machine.seeding import seed_global
    from utils.pretrained.building import build_vqgan
    from utils.pretrained.perceptual import build_perceptual
    from utils.reporting.sinks import open_sinks
    from utils.runs.job import open_job, require_same_images
    from utils.training.training_run import TrainingRun
    from utils.training.vqgan_trainer import VQGANTrainer

    training, img_size = settings.training, settings.autoencoder.img_size
    batch_size, workers, validates = settings.run.batch_size, settings.run.num_workers, training.steps_per_eval > 0
    with open_job(settings, open_sinks) as job:
        device, ranks = job.device, job.ranks
        images = open_images(settings.run, split="train", img_size=img_size, hold_out=validates)
        held_out = open_images(settings.run, split="val", img_size=img_size, hold_out=True) if validates else None
        require_same_images(f"--dataset {settings.run.dataset}", [images, held_out] if held_out else [images], ranks)
        order = BatchOrder(len(images), training.global_batch, settings.run.seed, ranks.part)
        seed_global(settings.run.seed, "vqgan")
        vqgan = build_vqgan(settings.autoencoder, settings.vqgan, build_perceptual(settings.vqgan, device))
        trainer = VQGANTrainer(job, training, settings.vqgan, vqgan)

        with TrainingRun(settings, VQGAN, trainer, job) as run:
            run.introduce(f"{len(images)} training images, {order.batches_per_epoch} steps per epoch")
            run.compare_data(images)
            bad = run.bad_images_met
            batches = train_batches(images, order, run.start, workers, pin_memory=device.type == "cuda", bad=bad)
            for step, batch in run.steps(batches):
                done = step + 1
                run.log(done, trainer.step(batch, step))
                if held_out and run.due(training.steps_per_eval, done):
                    share = eval_batches(held_out, batch_size, workers, indices=ranks.share(len(held_out)), bad=bad)
                    run.validated(done, trainer.validate(share))
                if run.picture_due(done):
                    shown = next(eval_batches(held_out, 16, 0, bad=bad)) if held_out else batch
                    rows, columns = comparison_rows(shown, trainer.reconstruct(shown))
                    run.picture(done, "originals_over_reconstructions", rows, columns)
                run.save_if_due(done)


if __name__ == "__main__":
    run_script(main)
