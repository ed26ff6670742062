"""Machines whose commands or data differ in what matters are told so."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import train_sampler
import train_vqgan
from hparams.errors import UserError
from hparams.resolve import resolve
from hparams.settings.data import DataSettings
from hparams.settings.stages import PriorStage, VQGANStage
from utils.data.datasets import ImageData, open_images
from utils.machine.distributed import Ranks
from utils.runs.job import Job, open_job, require_same_images

TYPED = {"dataset": "custom", "custom_dataset_path": "photos", "num_workers": 4}


def open_three(monkeypatch: pytest.MonkeyPatch, **others: Any) -> None:
    """Open a job of three processes, of which the last one was started by another command."""
    three = Mock(count=3, gather_objects=lambda thing: [thing, thing, thing | others])
    monkeypatch.setattr("utils.runs.job.joined", lambda *_, **__: nullcontext(three))
    with open_job(resolve(VQGANStage, TYPED)):
        pass


def test_what_is_a_machines_own_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    open_three(monkeypatch, custom_dataset_path="/ssd/photos", num_workers=8, device="cuda:1", visdom_port=9)
    open_three(monkeypatch, sinks=[], visdom_base_url="/visdom")


@pytest.mark.parametrize(
    ("name", "other", "told"),
    [
        *[("lr", 0.5, "0.5, and rank 0 1.35e-05: start all"), ("amp", True, "on, and rank 0 off")],
        *[("batch_size", 4, "4, and rank 0 3"), ("dist_backend", "gloo", "gloo, and rank 0 auto")],
    ],
)
def test_all_else_may_not(name: str, other: object, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=f"--{name}: rank 2 has {told}"):
        open_three(monkeypatch, **{name: other})


class Two(Ranks):
    """Of which the other one, on another machine, has the same settings, and files of other names or sizes."""

    def gather_objects(self, thing: Any) -> list[Any]:
        return [thing, ("there", thing[1], [f"{each}?" for each in thing[2]]) if isinstance(thing, tuple) else thing]


def photos(folder: Path) -> ImageData:
    (folder / "photos").mkdir()
    for number in range(41):
        (folder / f"photos/{number}.png").touch()
    return open_images(DataSettings("custom", str(folder / "photos")), split="all", img_size=8, hold_out=False)


OTHER = r"other names or sizes of files on rank 1 on there \(41 images\) than on rank 0 on .+ \(41 images\): give all"


def test_a_job_asks_for_all_images_before_it_writes(tmp_path: Path, job: Job) -> None:
    job.ranks, data = Two(0, 2), {"--dataset custom": [], "--fake_images_path": [photos(tmp_path)]}
    with pytest.raises(UserError, match=f"^--fake_images_path: {OTHER}"):
        job.begin("a test", {}, data=data)
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("held_out", [0, 5])
@pytest.mark.parametrize(
    ("train", "stage", "more"),
    [(train_vqgan.train, VQGANStage, {}), (train_sampler.train, PriorStage, {"ae_load_dir": "ae"})],
)
def test_training_asks_for_all_images_before_it_writes(train, stage, more, held_out, tmp_path, monkeypatch) -> None:
    """Held-out ones count."""
    photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("utils.runs.job.joined", lambda *_, **__: nullcontext(Two(0, 2)))
    settings = resolve(stage, TYPED | more | {"log_dir": "run", "steps_per_eval": held_out, "device": "cpu"})
    with pytest.raises(UserError, match=f"^--dataset custom: {OTHER}"):
        train(settings)
    assert not (tmp_path / "logs").exists()


def test_a_copy_of_the_data_that_is_another_is_named_by_its_machine(tmp_path: Path) -> None:
    others = [("b", 40, ["x"]), ("b", 40, ["x"]), ("c", 41, ["y"])]
    five = Mock(count=5, gather_objects=lambda thing: [thing, thing, *others])
    told = r"ffhq: .* on rank 2 on b \(40 images\), rank 4 on c \(41 images\) than on rank 0 on .* \(41 images\)"
    with pytest.raises(UserError, match=told):
        require_same_images("--dataset ffhq", [photos(tmp_path)], five)
    require_same_images("--dataset ffhq", [object()], Ranks())  # type: ignore[list-item] # one process lists nothing
