"""Which panes a run has."""

from __future__ import annotations

from typing import Any

import pytest

from hparams.resolve import resolve
from hparams.settings.stages import PriorStage, VQGANStage
from utils.reporting.training_panes import TRAIN, VAL, Curves, panes_of


def windows(*, cuda: bool = False, **changes: Any) -> list[str]:
    settings = resolve(VQGANStage, {"dataset": "churches", "steps_per_eval": 10, **changes})
    return [pane.window for pane in panes_of(settings, cuda=cuda)]


def test_what_a_run_does_not_have_has_no_pane() -> None:
    every = windows(cuda=True)
    assert {"perceptual", "psnr_db", "gpu_memory"} <= set(every)
    assert windows() == [window for window in every if window != "gpu_memory"]
    assert windows(cuda=True, steps_per_eval=0) == [window for window in every if window != "psnr_db"]


@pytest.mark.parametrize("off", [{"perceptual": "none"}, {"perceptual_weight": 0.0}])
def test_without_a_perceptual_loss_there_is_no_pane_of_zeros(off: dict[str, Any]) -> None:
    assert windows(**off) == [window for window in windows() if window != "perceptual"]


def of_prior(**changes: Any) -> dict[str, Any]:
    settings = resolve(PriorStage, {"dataset": "churches", "ae_load_dir": "ae", **changes})
    return {pane.window: pane for pane in panes_of(settings, cuda=False)}


@pytest.mark.parametrize(
    ("loss_type", "unit"),
    [("reweighted_elbo", "bits / token"), ("elbo", "bits / token"), ("mlm", "nats / masked token")],
)
def test_the_objective_has_its_unit(loss_type: str, unit: str) -> None:
    panes = of_prior(loss_type=loss_type)
    assert {panes[window].ylabel for window in ("loss", "loss_by_time")} == {unit}
    assert panes["elbo_bits_per_token"].ylabel == "bits / token"
    autoregressive = of_prior(sampler="autoregressive", loss_type=loss_type)
    assert {autoregressive[window].ylabel for window in ("loss", "elbo_bits_per_token")} == {"bits / token"}


def test_the_times_say_what_is_masked() -> None:
    assert of_prior()["loss_by_time"].xlabel == "t, tokens masked with probability t/T"
    assert of_prior(mask_schedule="fixed")["loss_by_time"].xlabel == "t, round(t/T · N) of N tokens masked"


def test_an_autoregressive_prior_has_no_times_and_no_unmasking() -> None:
    absorbing = of_prior()
    others = of_prior(sampler="autoregressive")
    assert absorbing.keys() - others.keys() == {"loss_by_time", "unmasking"}
    assert list(others) == [window for window in absorbing if window in others]


def test_a_pane_shows_its_own_metrics_by_split() -> None:
    both, training = Curves("l1", "L1", "y", (TRAIN, VAL)), Curves("loss", "loss", "y")
    assert both.names(validates=True) == ["train", "val"]
    assert both.names(validates=False) == training.names(validates=True) == ["train"]
    metrics = {"l1": 1.0, "loss": 2.0}
    assert (both.values(VAL, metrics), training.values(VAL, metrics)) == ({"val": 1.0}, {})
    assert training.values(TRAIN, metrics) == {"train": 2.0}
    assert training.values(TRAIN, {"l1": 1.0}) == {}


def test_a_pane_of_several_metrics_names_each() -> None:
    pane = Curves("losses", "losses", "y", labels={"g_loss": "generator", "d_loss": "discriminator"})
    assert pane.names(validates=False) == ["generator", "discriminator"]
    assert pane.values(TRAIN, {"d_loss": 2.0, "loss": 3.0}) == {"discriminator": 2.0}
