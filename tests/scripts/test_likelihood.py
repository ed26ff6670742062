"""Bits per dimension, neighbours and larger images on the toy runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hparams.resolve import resolve
from hparams.settings.experiments import LargerExperiment, LikelihoodExperiment
from models.prior.diffusion import bound_nats
from models.prior.transformer import SelfAttention
from models.vqgan.gaussian import dequantise
from shown import shown
from utils.machine.devices import pick_amp_dtype, precision_name
from utils.machine.seeding import make_generator, seed_global
from utils.metrics.likelihood import (
    HeadTrainer,
    code_term,
    evaluate_batch,
    mean_pixel_bits,
    pixel_term,
    validation_batches,
)
from utils.metrics.likelihood_run import evaluate, train_head
from utils.pretrained.building import open_data
from utils.pretrained.trained_models import load_trained_models
from utils.runs.checkpoints import load_file
from utils.runs.logged import read_metrics
from utils.runs.partial import Partial
from utils.runs.run_folder import RunFolder
from utils.sampling.larger_images import decode_larger, larger_ids

RUN: dict[str, Any] = {
    "dataset": "toy_churches",
    "toy_images": 96,
    "batch_size": 24,
    "device": "cpu",
    "num_workers": 0,
    "visdom_port": 9,
    "quiet": True,
    "load_dir": "absorbing",
}


@pytest.fixture
def here(toy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Work in the folder of the toy runs."""
    monkeypatch.chdir(toy.folder)
    return toy


def likelihood_of(**changes: Any) -> tuple[LikelihoodExperiment, Any, list[Any]]:
    settings = resolve(LikelihoodExperiment, {**RUN, "train_steps": 6, "steps_per_eval": 0, "lr": 1e-3, **changes})
    seed_global(0, "log-sigma head")
    models = load_trained_models(settings)
    data = [open_data(settings.run, split=split, img_size=16, hold_out=True) for split in ("train", "val")]
    return settings, models, data


@contextmanager
def interrupted_after(calls: int) -> Iterator[None]:
    """A block in which work is saved at every `keep`, and stops at one of them."""
    count = 0

    def keep(work: Partial, state: Any) -> None:
        nonlocal count
        count += 1
        work.save(state())
        if count == calls:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Partial, "keep", keep)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_only_the_head_is_trained_and_an_interruption_changes_nothing(
    here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, models, data = likelihood_of(steps_per_eval=2)
    before = {name: value.clone() for name, value in models.autoencoder.state_dict().items()}
    train_head(settings, models, *data, RunFolder("whole", tmp_path))
    after = models.autoencoder.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".logsigma." in f".{name}"}

    settings, again, data = likelihood_of(steps_per_eval=2)
    with interrupted_after(4):
        train_head(settings, again, *data, RunFolder("parts", tmp_path))
    settings, again, data = likelihood_of(steps_per_eval=2)
    train_head(settings, again, *data, RunFolder("parts", tmp_path))
    assert all(torch.equal(value, after[name]) for name, value in again.autoencoder.state_dict().items())
    whole, parts = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert [line["step"] for line in parts] == [2, 4, 6]
    assert [line["pixel_bits_per_dim"] for line in parts] == [line["pixel_bits_per_dim"] for line in whole]
    assert whole[-1]["pixel_bits_per_dim"] == mean_pixel_bits(again, settings, data[1])

    heads = []  # of fewer steps: those that a longer training kept are no start
    for name in ("parts", "short"):
        settings, short, data = likelihood_of(train_steps=3)
        train_head(settings, short, *data, RunFolder(name, tmp_path))
        heads.append(short.autoencoder.state_dict())
    assert all(torch.equal(value, heads[0][name]) for name, value in heads[1].items())

    settings, none, data = likelihood_of(train_steps=0)  # leaves all as it is, what was kept too
    train_head(settings, none, *data, RunFolder("whole", tmp_path))
    assert all(torch.equal(value, before[name]) for name, value in none.autoencoder.state_dict().items())
    settings, kept, data = likelihood_of()  # a finished head is taken as it is
    monkeypatch.setattr("utils.metrics.likelihood.HeadTrainer.step", pytest.fail)
    train_head(settings, kept, *data, RunFolder("whole", tmp_path))
    assert all(torch.equal(value, after[name]) for name, value in kept.autoencoder.state_dict().items())


def key_of(work: Callable[..., Any], *given: Any) -> str:
    """What determines a piece of work, as its `Partial` is told."""

    class ToldError(Exception):
        """The work itself is of no interest."""

    def tell(partial: Partial, path: Path, key: dict[str, Any], ranks: Any) -> None:
        raise ToldError(json.dumps(key))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Partial, "__init__", tell)
        with pytest.raises(ToldError) as told:
            work(*given)
    return str(told.value)


def test_what_was_saved_serves_no_other_work(here: Any, tmp_path: Path) -> None:
    """A finished head and finished codes too, which stay in the run folder."""
    _, models, (train, val) = likelihood_of()
    folder = RunFolder("run", tmp_path)
    others = [replace(models, **{name: Path(here.logs, "vqgan/hparams.yaml")}) for name in ("ae_file", "prior_file")]
    half = replace(models, amp_dtype=torch.bfloat16)
    changes = [{}, {"seed": 1}, {"batch_size": 12}, {"bits": 5}, {"protocol": "published"}]

    heads = [likelihood_of(**changed)[0] for changed in (*changes, {"lr": 1e-2})]
    keys = [key_of(train_head, settings, models, train, val, folder) for settings in heads]
    keys += [key_of(train_head, heads[0], other, train, val, folder) for other in (half, others[0])]
    keys += [key_of(train_head, heads[0], models, val, val, folder)]
    assert len(set(keys)) == len(keys)

    bounds = [likelihood_of(**changed)[0] for changed in (*changes, {"code_bound": "continuous"}, {"elbo_steps": 6})]
    keys = [key_of(evaluate, settings, models, val, folder) for settings in bounds]
    keys += [key_of(evaluate, bounds[0], other, val, folder) for other in (half, *others)]
    keys += [key_of(evaluate, bounds[0], models, train, folder)]
    assert len(set(keys)) == len(keys)

    random = {"order": "random", "sample_steps": 3}
    grids = ({}, {"seed": 1}, {"temp": 0.5}, {"stride": 2}, {"shape": (9, 10)}, {"n_samples": 4}, random)
    keys = [key_of(larger_ids, models, larger_of(**changed)[0], tmp_path) for changed in grids]
    keys += [key_of(larger_ids, models, larger_of(order="random")[0], tmp_path)]
    keys += [key_of(larger_ids, other, larger_of()[0], tmp_path) for other in (half, *others)]
    assert len(set(keys)) == len(keys)


def test_an_update_of_the_head_has_noise_of_its_own_and_short_gradients(
    here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, models, (train, _) = likelihood_of(lr=1e-30)  # nothing moves
    trainer, pixels = HeadTrainer(settings, models), torch.from_numpy(np.stack([train[i] for i in range(8)]))
    noisy: list[torch.Tensor] = []  # the noise moves the loss by less than it may round
    record = "utils.metrics.likelihood.dequantise"
    monkeypatch.setattr(record, lambda *given: noisy.append(dequantise(*given)) or noisy[-1])
    for step in (0, 1, 2, 0):
        trainer.step(pixels, step)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        assert (noisy[i] != noisy[j]).float().mean() > 0.9
    assert torch.equal(noisy[3], noisy[0])
    gradients = [parameter.grad for parameter in models.autoencoder.generator.logsigma.parameters()]
    assert torch.nn.utils.get_total_norm(gradients) == pytest.approx(0.1, rel=1e-4)  # longer ones, as published


def test_training_the_head_lowers_the_pixel_term(here: Any, tmp_path: Path) -> None:
    settings, models, data = likelihood_of(train_steps=40)
    start = evaluate_batch(models, settings, 0, next(validation_batches(data[1], settings))[1]).pixels.mean()
    train_head(settings, models, *data, RunFolder("run", tmp_path))
    end = evaluate_batch(models, settings, 0, next(validation_batches(data[1], settings))[1]).pixels.mean()
    assert end < start - 0.1 * 3 * 16 * 16  # nats per dimension


def test_the_evaluation_covers_every_validation_image_and_goes_on(
    here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, models, (_, val) = likelihood_of(batch_size=24)
    whole = evaluate(settings, models, val, RunFolder("whole", tmp_path))
    assert len(whole) == len(val) == 64
    assert (whole.variance > 0).all()
    with interrupted_after(2):
        evaluate(settings, models, val, RunFolder("parts", tmp_path))
    seen = []
    monkeypatch.setattr(
        "utils.metrics.likelihood_run.evaluate_batch", lambda *given: seen.append(given[2]) or evaluate_batch(*given)
    )
    parts = evaluate(settings, models, val, RunFolder("parts", tmp_path))
    assert seen == [2]
    assert all(torch.equal(vars(parts)[name], vars(whole)[name]) for name in vars(whole))
    assert not (tmp_path / "parts/likelihoods.partial").exists()


def test_fewer_bits_cost_less(here: Any) -> None:
    """The pixel term of the same images and head falls by about the bits that are dropped."""
    _, models, (_, val) = likelihood_of()
    pixels = torch.stack([torch.from_numpy(val[i]) for i in range(8)])
    bits = {}
    for b in (8, 5):
        settings = likelihood_of(bits=b)[0]
        nats = pixel_term(models, settings.likelihood, pixels, make_generator("cpu", 0))[1]
        bits[b] = nats.mean().item() / (pixels[0].numel() * math.log(2))
    assert bits[8] - bits[5] == pytest.approx(3, abs=0.1)


def test_the_published_protocol(here: Any) -> None:
    """One batch; no dequantisation; log 32 for each dimension; one draw of masks for each t."""
    settings, models, (_, val) = likelihood_of(protocol="published", batch_size=10)
    ((number, pixels),) = validation_batches(val, settings)
    assert pixels.shape == (10, 3, 16, 16)
    result = evaluate_batch(models, settings, number, pixels)
    with torch.no_grad():
        x = pixels.float() / 255
        ids = models.autoencoder.encode(x)
        mean, logsigma = models.autoencoder.distribution(ids)
        normal = torch.distributions.Normal(mean, logsigma.exp())
        expected = -normal.log_prob(x).sum((1, 2, 3)) + 3 * 16 * 16 * math.log(32)
        uniforms = torch.rand((16, *ids.shape), generator=make_generator("cpu", 0, "likelihood", "codes", 0))
        codes = bound_nats(models.prior.logits, ids, uniforms, mask_id=models.prior.mask_id)
    torch.testing.assert_close(result.pixels, expected.double(), rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(result.codes, codes)
    assert result.variance.isnan().all()


def test_the_code_term_of_an_autoregressive_prior_is_exact(here: Any) -> None:
    settings, models, _ = likelihood_of(load_dir="autoregressive", sampler="autoregressive")
    ids = torch.randint(0, 32, (3, 64), generator=make_generator("cpu", 0))
    with torch.no_grad():
        found = code_term(models.prior, settings.likelihood, ids, make_generator("cpu", 0))
        log_p = models.prior.logits(ids).double().log_softmax(-1).gather(2, ids[..., None]).sum((1, 2))
    torch.testing.assert_close(found.nats, -log_p, rtol=1e-5, atol=1e-5)
    assert (found.variance == 0).all()


def larger_of(**changes: Any) -> tuple[LargerExperiment, Any]:
    settings = resolve(LargerExperiment, {**RUN, "shape": (8, 10), "n_samples": 3, **changes})
    return settings, load_trained_models(settings)


@pytest.mark.parametrize("order", ["raster", "random"])
def test_larger_images_go_on_and_do_not_depend_on_those_beside_them(here: Any, tmp_path: Path, order: str) -> None:
    settings, models = larger_of(order=order)
    ids, evaluations = larger_ids(models, settings, tmp_path / "whole")
    assert ids.shape == (3, 8, 10)
    assert (ids < 32).all()
    if order == "raster":
        assert evaluations == 3 * 3 * 64  # three windows of 64 codes for each image
    with interrupted_after(5):
        larger_ids(models, settings, tmp_path / "parts")
    rest, counted = larger_ids(models, settings, tmp_path / "parts")
    assert torch.equal(rest, ids)
    assert counted == evaluations
    kept = [load_file(tmp_path / name)["state"] for name in ("whole", "parts")]  # what a third call would take
    assert all(torch.equal(state["x"], ids) and state["done"] == kept[0]["done"] for state in kept)
    alone = larger_ids(models, larger_of(order=order, n_samples=1)[0], tmp_path / "alone")[0]
    assert torch.equal(alone[0], ids[0])
    assert not torch.equal(ids[0], ids[1])


def test_windows_go_through_the_prior_in_batches_and_in_half_precision(here: Any, tmp_path: Path) -> None:
    settings, models = larger_of(order="random", sample_steps=4, batch_size=4)
    seen = set()
    attention = next(module for module in models.prior.modules() if isinstance(module, SelfAttention))
    attention.key.register_forward_hook(lambda _, __, out: seen.add((len(out), out.dtype)))
    larger_ids(replace(models, amp_dtype=torch.bfloat16), settings, tmp_path / "codes")
    assert seen == {(4, torch.bfloat16), (1, torch.bfloat16)}  # of nine windows, three for each image


def test_a_larger_image_at_the_training_size_is_decoded_like_any_other(here: Any) -> None:
    _, models = larger_of()
    ids = torch.randint(0, 32, (2, 8, 8), generator=make_generator("cpu", 0))
    images = torch.cat(list(decode_larger(models, ids, quiet=True)))
    torch.testing.assert_close(images, models.autoencoder.decode(ids.flatten(1)), rtol=1e-4, atol=1e-5)
    wide = torch.cat([ids[:1], ids[1:]], dim=2)
    assert next(decode_larger(models, wide, quiet=True)).shape == (1, 3, 16, 32)


ELBO = "experiments/calc_approximate_ELBO.py {RUN} --steps_per_eval 4 --lr 1e-3 --elbo_steps 16"
LARGER = "experiments/generate_big_samples.py {RUN} --load_dir absorbing --shape 8 9 --n_samples 2"


@pytest.fixture(scope="module")
def printed(toy: Any) -> dict[str, str]:
    """What the three scripts print; the first one runs twice."""
    outs = toy.abreast(
        [
            f"{ELBO} --load_dir absorbing --log_dir nll --train_steps 4",
            f"{ELBO} --load_dir absorbing --log_dir nll --train_steps 8 --amp --code_bound continuous",
        ],
        [
            "experiments/calc_nearest_neighbours.py {RUN} --load_dir autoregressive --sampler autoregressive "
            "--log_dir neighbours --n_samples 3 --top_k 4 --train_images 20",
            f"{LARGER} --log_dir larger --order random --stride 2 --amp --sinks summary",
        ],
    )
    return dict(
        zip(("elbo", "elbo again", "neighbours", "larger"), (out for chain in outs for out in chain), strict=True)
    )


def results(run: Path) -> list[dict[str, dict[str, Any]]]:
    return json.loads((run / "results.json").read_text())


@pytest.mark.parametrize(
    ("run", "panes"),
    [
        ("nll", ["pixel_bits_per_dim", "results"]),
        ("neighbours", ["neighbours", "results"]),
        ("larger", ["samples", "results"]),
    ],
)
def test_the_dashboard_shows_what_came_of_it(toy: Any, printed: dict[str, str], run: str, panes: list[str]) -> None:
    assert list(shown(toy.logs / run).panes) == panes
    assert (toy.logs / run / "summary.png").exists() == (run == "larger")  # the others were told --sinks visdom


ABSORBING = {
    "dataset": "toy_churches",
    "prior": "logs/absorbing/saved_models/absorbing_ema_20.th",
    "autoencoder": "logs/vqgan/saved_models/vqgan_ema_20.th",
    "seed": 0,
}
CONDITIONS: dict[str, dict[str, Any]] = {
    "nll": {
        **ABSORBING,
        "dtype": "float32",
        "images": 64,
        "split": "val",
        "protocol": "dequantised",
        "bits": 8,
        "code_term": "bound of T = 16 steps, 16 evaluations per image",
        "head_steps": 4,
        "head_lr": 1e-3,
        "batch_size": 8,
    },
    "neighbours": {
        **ABSORBING,
        "prior": "logs/autoregressive/saved_models/autoregressive_20.th",
        "dtype": "float32",
        "distance": "squared distance of R64 features",
        "weights": "fixed",
        "samples": 3,
        "temp": 1.0,
        "split": "all",
        "training_images": 20,
    },
    "larger": {
        **ABSORBING,
        "dtype": precision_name(pick_amp_dtype(torch.device("cpu"), True, "auto")),
        "shape": "8x9",
        "images": 2,
        "order": "random",
        "sample_steps": 16,
        "stride": 2,
        "temp": 0.8,
    },
}


@pytest.mark.parametrize("run", CONDITIONS)
def test_results_name_all_that_they_depend_on(toy: Any, printed: dict[str, str], run: str) -> None:
    entry = results(toy.logs / run)[0]
    assert entry["conditions"] == CONDITIONS[run]
    first = next(iter(entry["values"]))
    said = printed["elbo" if run == "nll" else run]
    (line,) = (line for line in said.splitlines() if line.startswith(f"{first} "))
    for name, value in [*entry["values"].items(), *entry["conditions"].items()]:
        assert f"{name} {value:.4g}" in line if isinstance(value, float) else f"{name} {value}" in line


def test_elbo_from_the_shell(toy: Any, printed: dict[str, str]) -> None:
    t_step, continuous = results(toy.logs / "nll")
    assert continuous["conditions"]["code_term"] == "continuous-time bound, 16 evaluations per image"
    for entry in (t_step, continuous):
        values = entry["values"]
        assert values["bits_per_dim"] == pytest.approx(values["pixel_bits_per_dim"] + values["code_bits_per_dim"])
        assert 0 < values["code_mc_error"] < values["code_bits_per_dim"]
        assert values["code_bits_per_token"] == pytest.approx(values["code_bits_per_dim"] * 3 * 16 * 16 / 64)
        assert values["standard_error"] > 0
    assert f"bits_per_dim {t_step['values']['bits_per_dim']:.4g}" in printed["elbo"]
    lines = [json.loads(line) for line in (toy.logs / "nll/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "val"] == [4, 8]


def test_neighbours_from_the_shell(toy: Any, printed: dict[str, str]) -> None:
    run = toy.logs / "neighbours"
    content = json.loads((run / "neighbours.json").read_text())
    assert [len(row) for row in content["samples"]] == [4, 4, 4]
    for row in content["samples"]:
        assert [entry["distance"] for entry in row] == sorted(entry["distance"] for entry in row)
        assert all("toy_churches_train_lmdb:" in entry["source"] for entry in row)
    assert content["conditions"]["training_images"] == 20
    assert len(list((run / "images/samples").glob("*.png"))) == 3
    assert Image.open(run / "images/neighbours.png").size == (100 + 12 + 4 * 98 + 2, 3 * 98 + 2)
    (entry,) = results(run)
    assert entry["values"]["nearest_least"] == min(row[0]["distance"] for row in content["samples"])
    assert "R64" in printed["neighbours"]
    (codes,) = (run / "samples").glob("*.npy")  # from which an interrupted call goes on
    assert np.load(codes).shape == (3, 64)
    said = [line.split("  ")[:2] for line in printed["neighbours"].splitlines()]
    for work in ("sampling", "decoding"):
        assert [work, "3/3 images"] in said


def test_larger_images_from_the_shell(toy: Any, printed: dict[str, str]) -> None:
    files = sorted((toy.logs / "larger/images/samples").glob("*.png"))
    assert [Image.open(file).size for file in files] == [(18, 16)] * 2
    assert not np.array_equal(*(np.asarray(Image.open(file)) for file in files))
    (entry,) = results(toy.logs / "larger")
    assert entry["values"]["windows_per_image"] <= 2 * 16
    assert "\ndecoding  2/2 images" in printed["larger"]
