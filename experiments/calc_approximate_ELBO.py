"""Bits per dimension of validation images: an upper bound on their negative log likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments._experiment import check_experiment, command, experiment
from hparams.script import run_script
from hparams.settings.experiments import LikelihoodExperiment
from utils.data.datasets import check_images

if TYPE_CHECKING:
    from utils.runs.job import Job

EXAMPLE = command("calc_approximate_ELBO.py", "nll_ffhq", "--steps_per_eval 5000 --train_steps 10000", dataset="ffhq")


def check(settings: LikelihoodExperiment) -> LikelihoodExperiment:
    """The settings with the steps of what is loaded; UserError if something is not there."""
    settings = check_experiment(settings)
    check_images(settings.run, hold_out=True)
    return settings


def calculate(job: Job, settings: LikelihoodExperiment) -> None:
    """Train the log-sigma head, evaluate both terms on the validation set, and record the result."""
    from utils.data.datasets import open_images
    from utils.machine.seeding import seed_global
    from utils.metrics.head import HeadTrainer
    from utils.metrics.likelihood import describe_code_term, summarise, terms_of_images
    from utils.pretrained.trained_models import load_trained_models, note_if_seen

    run, likelihood, img_size = settings.run, settings.likelihood, settings.autoencoder.img_size
    seed_global(run.seed, "log-sigma head")  # checkpoints of before the head have none
    models = load_trained_models(job, settings)
    train_data, val_data = (open_images(run, split=s, img_size=img_size, hold_out=True) for s in ("train", "val"))
    head = HeadTrainer(job, models, likelihood, train_data)
    job.begin(
        f"likelihood of {settings.prior.sampler} on {run.dataset}",
        models.facts() | {"data": f"{len(train_data)} training images, {len(val_data)} to evaluate"},
        data={f"--dataset {run.dataset}": [train_data, val_data]},
        resume_step=head.done or None,
    )
    note_if_seen(run.dataset, run.custom_dataset_path, models.ae_file, models.prior_file)
    head.train(val_data)
    terms = terms_of_images(job, models, likelihood, val_data)
    if not job.go_on_alone():
        return
    conditions = {
        **models.conditions(job, run.dataset), "images": len(terms), "split": "val",
        "protocol": likelihood.protocol, "bits": likelihood.bits,
        "code_term": describe_code_term(models.prior, likelihood),
        "head_steps": likelihood.train_steps, "head_lr": likelihood.lr, "batch_size": run.batch_size,
    }
    c, h, w = models.autoencoder.image_shape
    job.result(conditions, summarise(terms, dimensions=c * h * w, tokens=models.prior.tokens))


main = experiment(LikelihoodExperiment, calculate, description=__doc__, example=EXAMPLE, check=check)

if __name__ == "__main__":
    run_script(main)
