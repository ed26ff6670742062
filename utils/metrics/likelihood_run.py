"""The two long parts of a likelihood estimate, each of which goes on after an interruption."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import Any

from hparams.settings.experiments import LikelihoodExperiment
from utils.data.bad_images import Report, SharedReport
from utils.data.batches import BatchOrder, train_batches
from utils.data.datasets import ImageData
from utils.machine.distributed import ALONE, Ranks
from utils.machine.files import sha256_of
from utils.machine.progress import Progress, say
from utils.metrics.likelihood import (
    HeadTrainer,
    Likelihoods,
    evaluate_batch,
    mean_pixel_bits,
    validation_batches,
    validation_images,
)
from utils.pretrained.trained_models import TrainedModels
from utils.reporting.sinks import open_sinks
from utils.runs.checkpoints import require_finite
from utils.runs.partial import Partial
from utils.runs.record import Record
from utils.runs.run_folder import RunFolder
from utils.runs.shared_batches import in_order
from utils.training.averages import Averages

STEPS_PER_LOG = 100


def train_head(
    settings: LikelihoodExperiment,
    models: TrainedModels,
    train_data: ImageData,
    val_data: ImageData,
    folder: RunFolder,
    bad: Report | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Train the log-sigma head for `train_steps`, going on from what the run folder holds of the same training.

    With 0 the head stays as it is, and so does what the folder holds. `bad` is told of images that cannot be read.
    Several `ranks` share every batch.
    """
    run, likelihood, end = settings.run, settings.likelihood, settings.likelihood.train_steps
    if not end:
        return
    key = {
        "autoencoder": sha256_of(models.ae_file),
        "data": train_data.fingerprint,
        "precision": str(models.amp_dtype),
        **{name: getattr(run, name) for name in ("seed", "batch_size")},
        **{name: getattr(likelihood, name) for name in ("protocol", "bits", "lr")},
    }
    trainer, averages, done = HeadTrainer(settings, models, ranks), Averages(), 0

    def state() -> dict[str, Any]:
        return {"step": done, "trainer": trainer.state_dict()}

    file = folder.path / "logsigma.th"
    with Partial(file, key, ranks) as work, ExitStack() as opened:
        if (saved := work.load()) and saved["step"] <= end:
            trainer.load_state_dict(saved["trainer"])
            require_finite(trainer.state_dict(), file, "delete it, and the head is trained anew")
            done = saved["step"]
        record: Record | None = None
        if ranks.first:
            record = opened.enter_context(closing(Record(folder, resume_step=done or None, quiet=run.quiet)))
            open_sinks(record, folder, vars(run), resume_step=done or None)
        progress = opened.enter_context(
            Progress("log-sigma head", end, "step", done=done, quiet=run.quiet, say=record.show if record else say)
        )

        def tell(split: str, bits: float) -> None:
            if not record:
                return
            record.note(f"log-sigma head, step {done}/{end}  {split}: {bits:.4f} bits per dimension")
            record.scalars(done, split, {"pixel_bits_per_dim": bits})
            progress.update(0, **{f"{split} bits/dim": bits})

        order = BatchOrder(len(train_data), run.batch_size, run.seed, ranks.part)
        report = SharedReport(bad, ranks)
        batches = train_batches(train_data, order, done, run.num_workers, bad=report)
        for step in range(done, end):
            averages.add(trainer.step(next(batches), step))
            done = step + 1
            progress.update()
            if done % STEPS_PER_LOG == 0:
                tell("train", averages.pop()[0]["pixel_bits_per_dim"])
            if likelihood.steps_per_eval and done % likelihood.steps_per_eval == 0:
                tell("val", mean_pixel_bits(models, settings, val_data, bad, ranks))
            report.exchange()
            work.keep(state)
        work.save(state())


def evaluate(
    settings: LikelihoodExperiment,
    models: TrainedModels,
    data: ImageData,
    folder: RunFolder,
    bad: Report | None = None,
    ranks: Ranks = ALONE,
) -> Likelihoods:
    """Both terms of every image to evaluate, going on from what the run folder holds of the same evaluation.

    `bad` is told of images that cannot be read. Of several `ranks` each evaluates its share.
    """
    key = {
        "autoencoder": sha256_of(models.ae_file),
        "prior": sha256_of(models.prior_file),
        "data": data.fingerprint,
        "precision": str(models.amp_dtype),
        **{name: getattr(settings.run, name) for name in ("seed", "batch_size")},
        **vars(settings.likelihood),
    }
    found, report = Likelihoods.none(), SharedReport(bad, ranks)

    def state() -> dict[str, Any]:
        return {"terms": vars(found), "unreadable": report.found}

    n, size, none = len(validation_images(data, settings)), settings.run.batch_size, vars(Likelihoods.none()).values()
    with Partial(folder.path / "likelihoods.partial", key, ranks) as work:
        if saved := work.load():
            found = Likelihoods(**saved["terms"])
            if bad and saved["unreadable"]:
                bad(saved["unreadable"], len(data))
            report.found |= saved["unreadable"]
        batches = validation_batches(data, settings, len(found), report, ranks)
        own = (tuple(vars(evaluate_batch(models, settings, *batch)).values()) for batch in batches)
        with Progress("bits per dimension", n, "image", done=len(found), quiet=settings.run.quiet) as progress:
            for parts in in_order(own, n - len(found), size, tuple(none), ranks):
                report.exchange()
                found = found.and_then(Likelihoods(*parts))
                progress.update(len(parts[0]))
                work.keep(state)
        work.remove()
    return found
