"""Machines whose commands or data differ in what matters are told so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import train_sampler
import train_vqgan
from hparams.errors import UserError
from hparams.resolve import resolve
from hparams.settings import PriorStage, VQGANStage
from utils import distributed, experiment_run
from utils.distributed import Ranks
from utils.same_settings import _common, require_as_many_images, require_same_settings

TYPED = {"dataset": "custom", "custom_dataset_path": "photos", "num_workers": 4}


def compare(others: dict[str, Any]) -> None:
    """Three processes, of which the last one was started by another command."""
    settings = resolve(VQGANStage, TYPED)

    class Three(Ranks):
        def gather_objects(self, thing: Any) -> list[Any]:
            return [thing, thing, _common(resolve(VQGANStage, TYPED | others))]

    require_same_settings(settings, Three(0, 3))


def test_what_is_a_machines_own_may_differ() -> None:
    compare({"custom_dataset_path": "/ssd/photos", "num_workers": 8, "device": "cuda:1", "visdom_port": 9})
    compare({"dashboard": False, "visdom_base_url": "/visdom"})
    require_same_settings(resolve(VQGANStage, TYPED), Ranks())


@pytest.mark.parametrize(
    ("others", "told"),
    [
        ({"lr": 0.5}, "--lr: rank 2 has 0.5, and rank 0 1.35e-05: start all"),
        ({"amp": True}, "--amp: rank 2 has on, and rank 0 off"),
        ({"batch_size": 4}, "--batch_size: rank 2 has 4, and rank 0 3"),
        ({"img_size": 128}, "--img_size: rank 2 has 128, and rank 0 256"),
        ({"dist_backend": "gloo"}, "--dist_backend: rank 2 has gloo, and rank 0 auto"),
    ],
)
def test_all_else_may_not(others: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        compare(others)


class Two(Ranks):
    """Of which the other one has the same settings, and an image less."""

    def gather_objects(self, thing: Any) -> list[Any]:
        return [thing, thing - 1 if isinstance(thing, int) else thing]


def test_an_experiment_asks_for_both_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment_run, "joined", lambda *_, **__: nullcontext(Two(0, 2)))
    settings = resolve(VQGANStage, TYPED | {"log_dir": "run"})
    with (
        pytest.raises(UserError, match="--dataset custom: rank 1 finds 22 images, and rank 0 23"),
        experiment_run.experiment_run(settings, torch.device("cpu"), 23),
    ):
        pytest.fail("it goes on")
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("held_out", [0, 5])
@pytest.mark.parametrize(("stage", "train"), [(VQGANStage, train_vqgan.train), (PriorStage, train_sampler.train)])
def test_training_asks_for_all_images_before_it_writes(
    stage: type[VQGANStage | PriorStage],
    train: Callable[[Any], None],
    held_out: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Held-out ones count: of 40 images and of 41, as many train."""
    (tmp_path / "photos").mkdir()
    for number in range(41):
        (tmp_path / f"photos/{number}.png").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distributed, "joined", lambda *_, **__: nullcontext(Two(0, 2)))
    source = {"ae_load_dir": "ae"} if stage is PriorStage else {}
    settings = resolve(stage, TYPED | source | {"log_dir": "run", "steps_per_eval": held_out, "device": "cpu"})
    with pytest.raises(UserError, match="--dataset custom: rank 1 finds 40 images, and rank 0 41"):
        train(settings)
    assert not (tmp_path / "logs").exists()


def test_a_copy_of_the_data_that_is_not_whole_is_named() -> None:
    class Three(Ranks):
        def gather_objects(self, thing: Any) -> list[Any]:
            return [thing, thing, thing - 1]

    with pytest.raises(UserError, match="--dataset ffhq: rank 2 finds 22 images, and rank 0 23: give all"):
        require_as_many_images("ffhq", 23, Three(1, 3))
    require_as_many_images("ffhq", 23, Ranks())
