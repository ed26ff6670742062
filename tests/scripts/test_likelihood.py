"""Bits per dimension and larger images on the toy runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hparams.errors import RunError
from hparams.resolve import resolve
from hparams.settings.experiments import LargerExperiment, LikelihoodExperiment, PriorExperiment
from models.prior.bounds import bound_nats
from models.prior.transformer import SelfAttention
from models.vqgan.gaussian import dequantise
from utils.data.datasets import open_images
from utils.data.pictures import to_uint8
from utils.machine.seeding import make_generator, seed_global
from utils.metrics import head, likelihood
from utils.metrics.head import HeadTrainer
from utils.metrics.likelihood import code_term, summarise, terms_of_images
from utils.pretrained.trained_models import TrainedModels, load_trained_models
from utils.runs.job import Job
from utils.runs.logged import read_metrics
from utils.runs.run_folder import RunFolder
from utils.runs.shards import Shards
from utils.sampling.larger import decode_larger, larger_codes

RUN: dict[str, Any] = {
    "dataset": "toy_churches", "toy_images": 96, "batch_size": 24, "device": "cpu", "num_workers": 0,
    "visdom_port": 9, "quiet": True, "load_dir": "absorbing",
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("_here")


@pytest.fixture
def _here(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the folder of the toy runs."""
    monkeypatch.chdir(toy.folder)


def job_of(settings: PriorExperiment, folder: Path, amp_dtype: torch.dtype | None = None) -> Job:
    """A job that nothing is to stop, in a folder of its own."""
    job = Job(settings, torch.device("cpu"))
    job.folder, job.amp_dtype = RunFolder(folder.name, folder.parent), amp_dtype
    job.bad_images = lambda found, images: pytest.fail(str(found))
    return job


def likelihood_of(folder: Path, **changes: Any) -> tuple[LikelihoodExperiment, Job, TrainedModels, list[Any]]:
    settings = resolve(LikelihoodExperiment, {**RUN, "train_steps": 6, "steps_per_eval": 0, "lr": 1e-3, **changes})
    seed_global(0, "log-sigma head")
    job = job_of(settings, folder)
    models = load_trained_models(job, settings)
    data = [open_images(settings.run, split=split, img_size=16, hold_out=True) for split in ("train", "val")]
    return settings, job, models, data


def larger_of(folder: Path, **changes: Any) -> tuple[LargerExperiment, Job, TrainedModels]:
    settings = resolve(LargerExperiment, {**RUN, "shape": (8, 10), "n_samples": 3, **changes})
    job = job_of(settings, folder)
    return settings, job, load_trained_models(job, settings)


def train_head(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """The autoencoder's weights when its head is trained. The metrics go on from what the folder holds."""
    settings, job, models, (train, val) = likelihood_of(folder, **changes)
    trainer = HeadTrainer(job, models, settings.likelihood, train)
    with job:
        job.begin("a test", {}, resume_step=trainer.done or None)
        trainer.train(val)
    return models.autoencoder.state_dict()


def equal(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, others[name]) for name, value in some.items())


def test_only_the_head_is_trained_and_an_interruption_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, models, _ = likelihood_of(tmp_path / "whole")
    before = {name: value.clone() for name, value in models.autoencoder.state_dict().items()}
    after = train_head(tmp_path / "whole", steps_per_eval=2)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".logsigma." in f".{name}"}
    step = HeadTrainer.step

    def interrupted(trainer: HeadTrainer, pixels: torch.Tensor, number: int) -> dict[str, torch.Tensor]:
        if number == 4:
            raise KeyboardInterrupt
        return step(trainer, pixels, number)

    with monkeypatch.context() as patch:
        patch.setattr(head, "SECONDS_PER_SAVE", 0.0)
        patch.setattr(HeadTrainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_head(tmp_path / "parts", steps_per_eval=2)
    assert equal(train_head(tmp_path / "parts", steps_per_eval=2), after)
    whole, parts = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert [line["step"] for line in parts] == [2, 4, 6]
    assert [line["pixel_bits_per_dim"] for line in parts] == [line["pixel_bits_per_dim"] for line in whole]

    # Of fewer steps: those that a longer training kept are no start.
    assert equal(train_head(tmp_path / "parts", train_steps=3), train_head(tmp_path / "short", train_steps=3))
    assert equal(train_head(tmp_path / "whole", train_steps=0), before)  # leaves all as it is, what was kept too
    monkeypatch.setattr(HeadTrainer, "step", pytest.fail)
    assert equal(train_head(tmp_path / "whole"), after)  # a finished head is taken as it is


def test_what_was_kept_serves_no_other_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished head, terms of images and codes."""
    folders: list[Path] = []

    def tell(shards: Shards, *_: Any, **__: Any) -> None:
        folders.append(shards._folder)
        raise KeyboardInterrupt  # the work itself is of no interest

    monkeypatch.setattr(Shards, "fill", tell)

    def distinct(work: Callable[..., Any], cases: list[tuple[Any, ...]]) -> None:
        folders.clear()
        for case in cases:
            with pytest.raises(KeyboardInterrupt):
                work(*case)
        assert len(set(folders)) == len(folders)

    changes = [{}, {"seed": 1}, {"batch_size": 12}, {"bits": 5}, {"protocol": "published"}]
    settings, job, models, (train, val) = likelihood_of(tmp_path)
    half, wanted = job_of(settings, tmp_path, torch.bfloat16), settings.likelihood
    others = [replace(models, **{name: ("other",)}) for name in ("ae_key", "prior_key")]

    def changed(**change: Any) -> tuple[Job, Any]:
        settings, job, _, _ = likelihood_of(tmp_path, **change)
        return job, settings.likelihood

    works = [(job, models, wanted) for job, wanted in (changed(**change) for change in (*changes, {"lr": 1e-2}))]
    heads = [HeadTrainer(*work, train) for work in works] + [HeadTrainer(job, others[0], wanted, train)]
    heads += [HeadTrainer(job, models, wanted, val), HeadTrainer(half, models, wanted, train)]
    assert len({trainer._key for trainer in heads}) == len(heads)
    works = [changed(**change) for change in (*changes, {"code_bound": "continuous"}, {"elbo_steps": 6})]
    cases = [(job, models, wanted, val) for job, wanted in works] + [(job, other, wanted, val) for other in others]
    distinct(terms_of_images, [*cases, (job, models, wanted, train), (half, models, wanted, val)])
    random = {"order": "random", "sample_steps": 3}
    cases = []
    for change in ({}, {"seed": 1}, {"temp": 0.5}, {"stride": 2}, {"shape": (9, 10)}, random, {"order": "random"}):
        settings, job, _ = larger_of(tmp_path, **change)
        cases.append((job, models, settings.larger, settings.sampling))
    job, _, *drawn = cases[0]
    distinct(larger_codes, [*cases, (job, others[1], *drawn), (half, models, *drawn)])


def test_an_update_of_the_head_has_noise_of_its_own_and_short_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, job, models, (train, _) = likelihood_of(tmp_path, lr=1e-30)  # nothing moves
    trainer = HeadTrainer(job, models, settings.likelihood, train)
    pixels = torch.from_numpy(np.stack([train[i] for i in range(8)]))
    noisy: list[torch.Tensor] = []  # the noise moves the loss by less than it may round
    monkeypatch.setattr(likelihood, "dequantise", lambda *given: noisy.append(dequantise(*given)) or noisy[-1])
    for step in (0, 1, 2, 0):
        trainer.step(pixels, step)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        assert (noisy[i] != noisy[j]).float().mean() > 0.9
    assert torch.equal(noisy[3], noisy[0])
    gradients = [parameter.grad for parameter in models.autoencoder.generator.logsigma.parameters()]
    assert torch.nn.utils.get_total_norm(gradients) == pytest.approx(0.1, rel=1e-4)  # longer ones, as published


def test_training_the_head_lowers_the_pixel_term(tmp_path: Path) -> None:
    train_head(tmp_path, train_steps=40, steps_per_eval=20)
    settings, job, models, (_, val) = likelihood_of(tmp_path / "fresh", train_steps=0)
    terms = terms_of_images(job, models, settings.likelihood, val)
    assert terms.shape == (64, 3)  # of every validation image
    assert (terms[:, 2] > 0).all()
    start = terms[:, 0].mean() / (3 * 16 * 16 * math.log(2))
    ends = [line["pixel_bits_per_dim"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert start - 0.14 > ends[0] > ends[1]


def test_the_published_protocol(tmp_path: Path) -> None:
    """One batch; no dequantisation; log 32 for each dimension; one draw of masks for each t."""
    settings, job, models, (_, val) = likelihood_of(tmp_path, protocol="published", batch_size=10)
    images = likelihood.images_to_evaluate(job, settings.likelihood, val)
    terms = torch.from_numpy(terms_of_images(job, models, settings.likelihood, val))
    assert terms.shape == (10, 3)
    with torch.no_grad():
        x = torch.from_numpy(np.stack([val[i] for i in images])).float() / 255
        ids = models.autoencoder.encode(x)
        mean, logsigma = models.autoencoder.distribution(ids)
        normal = torch.distributions.Normal(mean, logsigma.exp())
        expected = -normal.log_prob(x).sum((1, 2, 3)) + 3 * 16 * 16 * math.log(32)
        uniforms = torch.rand((16, *ids.shape), generator=make_generator("cpu", 0, "likelihood", "codes", 0))
        codes = bound_nats(models.prior.logits, ids, uniforms, mask_id=models.prior.mask_id)
    torch.testing.assert_close(terms[:, 0], expected.double(), rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(terms[:, 1], codes, rtol=1e-5, atol=1e-5)
    assert terms[:, 2].isnan().all()


def test_the_code_term_of_an_autoregressive_prior_is_exact(tmp_path: Path) -> None:
    settings, _, models, _ = likelihood_of(tmp_path, load_dir="autoregressive", sampler="autoregressive")
    ids = torch.randint(0, 32, (3, 64), generator=make_generator("cpu", 0))
    with torch.no_grad():
        found = code_term(models.prior, settings.likelihood, ids, make_generator("cpu", 0))
        log_p = models.prior.logits(ids).double().log_softmax(-1).gather(2, ids[..., None]).sum((1, 2))
    torch.testing.assert_close(found.nats, -log_p, rtol=1e-5, atol=1e-5)
    assert (found.variance == 0).all()


@pytest.mark.parametrize("order", ["raster", "random"])
def test_larger_images_do_not_depend_on_those_beside_them(tmp_path: Path, order: str) -> None:
    settings, job, models = larger_of(tmp_path / "whole", order=order, batch_size=3)  # an image fills a batch
    codes, windows = larger_codes(job, models, settings.larger, settings.sampling)
    assert codes.shape == (3, 8, 10)
    assert (codes < 32).all()
    if order == "raster":
        assert windows == 3 * 64  # three windows of 64 codes for each image
    alone_job, one = job_of(settings, tmp_path / "alone"), replace(settings.sampling, n_samples=1)
    assert np.array_equal(larger_codes(alone_job, models, settings.larger, one)[0][0], codes[0])
    assert not np.array_equal(codes[0], codes[1])


def test_windows_go_through_the_prior_in_batches_and_in_half_precision(tmp_path: Path) -> None:
    settings, job, models = larger_of(tmp_path, order="random", sample_steps=4, batch_size=4)
    job.amp_dtype = torch.bfloat16
    seen = set()
    attention = next(module for module in models.prior.modules() if isinstance(module, SelfAttention))
    attention.key.register_forward_hook(lambda _, __, out: seen.add((len(out), out.dtype)))
    larger_codes(job, models, settings.larger, settings.sampling)
    # Three windows for each image, and two images together.
    assert seen == {(4, torch.bfloat16), (2, torch.bfloat16), (3, torch.bfloat16)}


def test_a_larger_image_at_the_training_size_is_decoded_like_any_other(tmp_path: Path) -> None:
    _, job, models = larger_of(tmp_path)
    ids = torch.randint(0, 32, (2, 8, 8), generator=make_generator("cpu", 0))
    images = decode_larger(job, models, ids.numpy())
    expected = to_uint8(models.autoencoder.decode(ids.flatten(1)))
    assert (images.int() - expected.int()).abs().max() <= 1
    assert decode_larger(job, models, torch.cat([ids[:1], ids[1:]], dim=2).numpy()).shape == (1, 3, 16, 32)


def test_means_and_errors_in_bits_per_dimension() -> None:
    bit = math.log(2)  # nats
    terms = np.array([[120 * bit, 12 * bit, 9 * bit**2], [240 * bit, 36 * bit, 16 * bit**2]])
    values = summarise(terms, dimensions=12, tokens=4)
    both = {"bits_per_dim": 17, "standard_error": 6}  # half the difference of 11 and 23
    pixels = {"pixel_bits_per_dim": 15, "pixel_standard_error": 5}
    codes = {"code_bits_per_dim": 2, "code_standard_error": 1, "code_mc_error": 5 / 2 / 12, "code_bits_per_token": 6}
    assert values == pytest.approx(both | pixels | codes)
    values = summarise(np.array([[1.0, 1.0, math.nan]]), dimensions=1, tokens=1)  # of one image and one draw
    assert values["standard_error"] is values["code_mc_error"] is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_no_result(value: float) -> None:
    with pytest.raises(RunError, match="finite"):
        summarise(np.array([[1.0, 1.0, 0.0], [value, 1.0, 0.0]]), dimensions=1, tokens=1)
