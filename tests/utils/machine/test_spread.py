"""Several processes, or micro-batches, compute what one process computes with the whole batch; see `spread.py`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from spread import run_all

Load = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """What a case left: load(name, rank)."""
    out = tmp_path_factory.mktemp("spread")
    run_all(out)
    return lambda name, rank=0: torch.load(out / f"{name}.{rank}.pt", weights_only=True)


def assert_same_end(got: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """The same weights, averages and buffers within a tolerance."""
    for ema, model in expected["models"].items():
        for name, value in model.items():
            torch.testing.assert_close(got["models"][ema][name], value, rtol=0, atol=tolerance, msg=f"{ema} {name}")


WAYS = ("float64_2", "float64_4", "micro_1_4", "micro_2_2")
SEVERAL = [f"{stage}_{way}" for stage in ("vqgan", "prior") for way in WAYS]


@pytest.mark.parametrize("several", [*SEVERAL, "vqgan_gumbel_2", "prior_autoregressive_2"])
def test_in_float64_the_final_weights_are_those_of_one_process(load: Load, several: str) -> None:
    got, expected = load(several), load(re.sub(r"(_\d)+$", "_1_1" if "micro" in several else "_1", several))
    assert_same_end(got, expected, 1e-10)
    for step, terms in enumerate(expected["losses"]):
        assert got["losses"][step] == pytest.approx(terms, rel=1e-9, abs=1e-12), step
    for images in ("validation", "validation_of_3"):  # of 4 processes, one has none of 3
        assert got[images] == pytest.approx(expected[images], rel=1e-10), images


@pytest.mark.parametrize("stage", ["vqgan", "prior"])
def test_4_then_1_then_2_processes_end_as_one_that_nobody_disturbed(load: Load, stage: str) -> None:
    got, expected = load(f"{stage}_resumed_2"), load(f"{stage}_undisturbed")
    assert_same_end(got, expected, 1e-10)
    for number, terms in enumerate(expected["losses"][8:]):
        assert got["losses"][number] == pytest.approx(terms, rel=1e-9, abs=1e-12), number


def test_the_float64_runs_were_in_float64_and_used_every_part(load: Load) -> None:
    vqgan, prior = load("vqgan_float64_4"), load("prior_float64_4")
    for run in (vqgan, prior):
        floats = [value for value in run["models"]["False"].values() if value.is_floating_point()]
        assert {value.dtype for value in floats} == {torch.float64}
    assert all(step["disc_weight"] > 0 and "d_loss" in step for step in vqgan["losses"][6:])
    assert vqgan["losses"][-1]["l1"] < vqgan["losses"][0]["l1"]
    assert prior["models"]["False"]["Lt_count"].sum() == 30 * 8


@pytest.mark.parametrize("stage", ["vqgan", "prior"])
def test_in_float32_processes_hold_the_same_bits_and_the_losses_of_30_steps_are_those_of_one(load: Load, stage) -> None:
    first, one = load(f"{stage}_float32_4"), load(f"{stage}_float32_1")["losses"]
    assert len(one) == 30
    for step, terms in enumerate(one):
        # g_loss passes zero; the weight is a quotient of gradients, which kinks of the discriminator move
        assert first["losses"][step] == pytest.approx(terms, rel=1e-5, abs=3e-6), step
    for other in (load(f"{stage}_float32_4", rank) for rank in (1, 2, 3)):
        assert_same_end(other, first, 0)
        assert (other["losses"], other["validation"]) == (first["losses"], first["validation"])


def test_without_synchronised_batch_norm_statistics_are_each_process_s_own(load: Load) -> None:
    own = [load("vqgan_local_2", rank)["models"]["False"] for rank in (0, 1)]
    assert not torch.equal(own[0]["disc.main.3.running_mean"], own[1]["disc.main.3.running_mean"])
    assert torch.equal(own[0]["disc.main.3.weight"], own[1]["disc.main.3.weight"])


def test_compressed_gradients_are_close_and_not_the_same(load: Load) -> None:
    compressed, exact = load("prior_compressed_2")["losses"], load("prior_float32_1")["losses"]
    assert compressed[-1]["loss"] == pytest.approx(exact[-1]["loss"], rel=1e-2)
    assert compressed[-1]["loss"] != exact[-1]["loss"]
