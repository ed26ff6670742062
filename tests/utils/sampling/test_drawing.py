"""Drawing images from a prior, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hparams.errors import NotFiniteError
from hparams.fields import settings_of
from hparams.resolve import resolve
from hparams.settings.sampling import SamplingSettings
from hparams.settings.stages import PriorStage
from jobs import a_job
from models.prior.absorbing import AbsorbingDiffusion
from models.vqgan.autoencoder import VQAutoEncoder
from trainers import PRIOR
from utils.pretrained.building import Prior, build_autoencoder, build_prior
from utils.pretrained.trained_models import TrainedModels
from utils.runs.job import Job
from utils.sampling.drawing import decoded, draw_images, drawn_ids, sampled_codes, sampling_conditions
from utils.sampling.unmasking import unmasking_strip

SMALL = PRIOR | {"res_blocks": 1, "emb_dim": 4, "n_samples": 10}


def models(**changes: Any) -> tuple[Prior, VQAutoEncoder, SamplingSettings]:
    settings = resolve(PriorStage, SMALL | changes)
    torch.manual_seed(0)
    prior, autoencoder = build_prior(settings.prior, 16), build_autoencoder(settings.autoencoder)
    torch.nn.init.normal_(autoencoder.quantize.codebook)
    return prior, autoencoder, settings.sampling


def draw(amp_dtype: torch.dtype | None = None, seed: int = 0, **changes: Any) -> torch.Tensor:
    with a_job(seed=seed) as job:
        job.amp_dtype = amp_dtype
        return draw_images(job, *models(**changes))


def ids(indices: Sequence[int] | None = None, batch_size: int = 4, **changes: Any) -> torch.Tensor | None:
    prior, _, sampling = models(**changes)
    with a_job(batch_size=batch_size) as job:
        batches = list(drawn_ids(job, prior, sampling, range(sampling.n_samples) if indices is None else indices))
    return torch.cat(batches) if batches else None


@pytest.mark.parametrize("sampler", ["absorbing", "autoregressive"])
def test_exactly_as_many_images_as_asked_for_of_the_seed(sampler: str) -> None:
    images = draw(sampler=sampler)
    assert (images.shape, images.dtype) == ((10, 3, 16, 16), torch.uint8)
    assert [len(draw(sampler=sampler, n_samples=n)) for n in (1, 4)] == [1, 4]
    assert torch.equal(images, draw(sampler=sampler))
    assert not torch.equal(images, draw(sampler=sampler, seed=1))
    assert not torch.equal(images[:4], images[4:8])


def test_batches_are_of_the_batch_size_but_for_the_last(job: Job) -> None:
    prior, _, sampling = models()
    prior.train()
    sizes = []
    for batch in drawn_ids(job, prior, sampling, range(10)):
        sizes.append(len(batch))
        assert prior.training  # modes are back whenever the caller has control
        assert torch.is_grad_enabled()
    assert sizes == [4, 4, 2]


def test_more_samples_than_before_begin_with_those_that_are_kept(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """50,000 after 10,000 draw 40,000; other settings draw their own."""
    prior, autoencoder, sampling = models()
    trained = TrainedModels(prior, autoencoder, Path(), Path(), ("prior",), ("autoencoder",))
    drawn: list[int] = []

    def counted(*given: Any) -> Iterator[torch.Tensor]:
        drawn.extend(given[3])
        return drawn_ids(*given)

    monkeypatch.setattr("utils.sampling.drawing.drawn_ids", counted)
    few, few_key = sampled_codes(job, trained, replace(sampling, n_samples=6))
    many, key = sampled_codes(job, trained, sampling)
    assert drawn == list(range(10))
    assert np.array_equal(many[:6], few[:])
    assert np.array_equal(many[:], ids())
    others = (replace(sampling, temp=0.5),), (sampling, torch.full((10, 64), 16))  # a mask to start from
    assert few_key == key
    assert len({key, *(sampled_codes(job, trained, *other)[1] for other in others)}) == 3
    assert np.array_equal(sampled_codes(job, trained, replace(sampling, n_samples=3))[0][:], many[:3])
    assert len(drawn) == 30


@pytest.mark.parametrize("change", [{"sampler": "autoregressive"}, {"sample_type": "mlm"}, {}])
def test_an_image_depends_on_its_index_alone(change: dict[str, Any]) -> None:
    whole = ids(**change)
    assert torch.equal(ids(**change, n_samples=8), whole[:8])
    for batch_size in (1, 3, 32):
        assert torch.equal(ids(**change, batch_size=batch_size), whole)
    assert torch.equal(ids(range(7, 10), **change), whole[7:])  # an interrupted sampling goes on
    assert torch.equal(ids(range(1, 10, 3), **change), whole[1::3])  # one of three processes
    assert ids([], **change) is None


@pytest.mark.parametrize("change", [{"temp": 0.2}, {"sample_steps": 2}, {"sample_type": "mlm"}])
def test_settings_of_sampling_count(change: dict[str, Any]) -> None:
    assert not torch.equal(draw(), draw(**change))


def test_a_result_names_each_setting_of_sampling_that_is_another() -> None:
    """Else the later of two results would take the place of the earlier one."""
    usual = resolve(PriorStage, SMALL).sampling
    for name, setting in settings_of(PriorStage).items():
        if setting.group == "sampling" and name != "n_samples":
            other = setting.choices[-1] if setting.choices else setting.kind(getattr(usual, name) / 2)
            assert other != getattr(usual, name)
            assert sampling_conditions(replace(usual, **{name: other}), "absorbing")[name] == other


@pytest.mark.parametrize("sampler", ["absorbing", "autoregressive"])
def test_predictions_that_are_not_finite_end_the_drawing_in_a_line(job: Job, sampler: str) -> None:
    """The weights are, as those are that overflow in float16."""
    prior, autoencoder, sampling = models(sampler=sampler)
    for parameter in prior.parameters():
        parameter.data.fill_(3e38)
    with pytest.raises(NotFiniteError, match="the prior's predictions are not finite in float32: take the weights of"):
        draw_images(job, prior, autoencoder, sampling)
    if isinstance(prior, AbsorbingDiffusion):
        with pytest.raises(NotFiniteError, match="predictions"):
            unmasking_strip(job, prior, autoencoder, sampling)
    job.amp_dtype = torch.bfloat16
    with pytest.raises(NotFiniteError, match="the prior's predictions are not finite in bfloat16: use --no_amp"):
        next(drawn_ids(job, prior, sampling, range(4)))


def test_images_that_are_not_finite_end_the_decoding_in_a_line(job: Job) -> None:
    autoencoder = build_autoencoder(resolve(PriorStage, SMALL).autoencoder)
    for parameter in autoencoder.generator.parameters():
        parameter.data.fill_(3e38)
    with pytest.raises(NotFiniteError, match="decoded images are not finite in float32"):
        decoded(job, autoencoder, np.zeros((2, 64), np.uint8))
