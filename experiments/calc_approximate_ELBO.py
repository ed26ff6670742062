"""Bits per dimension of validation images: an upper bound on their negative log likelihood."""

from __future__ import annotations

from experiments import _packages  # noqa: F401 - first: it refuses packages that are not ours
from hparams.cli import parse, run_script
from hparams.saved import describe
from hparams.settings.experiments import LikelihoodExperiment
from utils.runs.preflight import check_data, check_experiment
from utils.runs.run_folder import RunFolder

EXAMPLE = (
    "python experiments/calc_approximate_ELBO.py --sampler absorbing --dataset ffhq --log_dir nll_ffhq "
    "--ae_load_dir vqgan_ffhq --ae_load_step 2200000 --load_dir absorbing_ffhq --load_step 2000000 --ema "
    "--steps_per_eval 5000 --train_steps 10000"
)


def main() -> None:
    settings = parse(LikelihoodExperiment, description=__doc__, example=EXAMPLE)
    settings = check_experiment(settings)
    check_data(settings.run, hold_out=True)
    if settings.run.dry_run:
        print(describe(settings))
        return
    calculate(settings)


def calculate(settings: LikelihoodExperiment) -> None:
    """Train the log-sigma head, evaluate both terms on the validation set, and record the result."""
    # Imported late, so that --help and a refused flag need not wait for torch.
    from utils.machine.seeding import seed_global
    from utils.metrics.likelihood import describe_code_term, summarise
    from utils.metrics.likelihood_run import evaluate, train_head
    from utils.pretrained.building import open_data
    from utils.pretrained.trained_models import load_trained_models, note_if_seen
    from utils.reporting.sinks import shown
    from utils.runs.experiment_run import experiment_run, list_bad_images
    from utils.runs.introduction import introduce
    from utils.runs.results import record_result

    run, likelihood = settings.run, settings.likelihood
    seed_global(run.seed, "log-sigma head")  # checkpoints of before the head have none
    models = load_trained_models(settings)
    train_data, val_data = (
        open_data(run, split=split, img_size=settings.autoencoder.img_size, hold_out=True) for split in ("train", "val")
    )
    folder = RunFolder(run.log_dir)
    what = f"likelihood of {settings.prior.sampler} on {run.dataset}"
    data = f"{len(train_data)} training images, {len(val_data)} to evaluate"
    introduce(settings, what, models.device, models.facts() | {"data": data})
    note_if_seen(settings)
    with experiment_run(settings, models.device, train_data, val_data) as ranks:
        bad = list_bad_images(run, ranks)
        train_head(settings, models, train_data, val_data, folder, bad, ranks)
        likelihoods = evaluate(settings, models, val_data, folder, bad, ranks)
        if not ranks.first:
            return
        conditions = {
            **models.conditions(run),
            "images": len(likelihoods),
            "split": "val",
            "protocol": likelihood.protocol,
            "bits": likelihood.bits,
            "code_term": describe_code_term(models.prior, likelihood),
            "head_steps": likelihood.train_steps,
            "head_lr": likelihood.lr,
            "batch_size": run.batch_size,
        }
        c, h, w = models.autoencoder.image_shape
        values = summarise(likelihoods, dimensions=c * h * w, tokens=models.prior.tokens)
        line = record_result(folder.results, conditions, values)
        with shown(run) as record:
            record.results()
    print(line)


if __name__ == "__main__":
    run_script(main)
