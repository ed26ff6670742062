"""Which panes a run has, what they show, and that the run folder alone gives it back."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hparams.fields import values_of
from hparams.resolve import resolve
from hparams.settings.stages import PriorStage, Stage, VQGANStage
from shown import shown
from utils.data.pictures import save_png
from utils.reporting.board import MOST_PICTURES, RESOLUTION, Board, Curve, replay, thinned
from utils.reporting.layout import Curves, panes_of, plain_table
from utils.runs.record import Record
from utils.runs.results import record_result
from utils.runs.run_folder import RunFolder, save_settings


def panes(stage: type[Stage], **changes: Any) -> dict[str, Any]:
    settings = resolve(stage, {"dataset": "churches", **changes})
    return {pane.window: pane for pane in panes_of(values_of(settings))}


of_vqgan, of_prior = partial(panes, VQGANStage), partial(panes, PriorStage, ae_load_dir="ae")


def test_what_a_run_does_not_have_has_no_pane() -> None:
    every = list(of_vqgan(steps_per_eval=10))
    assert {"perceptual", "psnr_db", "code_counts", "lr", "milliseconds"} <= set(every)
    assert list(of_vqgan(steps_per_eval=0)) == [window for window in every if window != "psnr_db"]
    for off in ({"perceptual": "none"}, {"perceptual_weight": 0.0}):
        assert list(of_vqgan(steps_per_eval=10, **off)) == [window for window in every if window != "perceptual"]
    absorbing, others = of_prior(), of_prior(sampler="autoregressive")
    assert absorbing.keys() - others.keys() == {"loss_by_time", "unmasking"}
    assert list(others) == [window for window in absorbing if window in others]
    assert panes_of({}) == []  # of an experiment


def test_axes_have_the_units_of_the_settings() -> None:
    bits, nats = "bits / token", "nats / masked token"
    for loss_type, unit in (("reweighted_elbo", bits), ("elbo", bits), ("mlm", nats)):
        panes, autoregressive = of_prior(loss_type=loss_type), of_prior(loss_type=loss_type, sampler="autoregressive")
        shown = [panes[window].ylabel for window in ("loss", "loss_by_time", "elbo_bits_per_token")]
        assert shown == [unit, unit, bits]
        assert [autoregressive[window].ylabel for window in ("loss", "elbo_bits_per_token")] == [bits, bits]
    assert of_prior()["loss_by_time"].xlabel == "t, tokens masked with probability t/T"
    assert of_prior(mask_schedule="fixed")["loss_by_time"].xlabel == "t, round(t/T · N) of N tokens masked"


def test_a_pane_shows_its_own_metric_by_split_or_names_each() -> None:
    assert Curves("l1", "L1").values("val", {"l1": 1.0, "loss": 2.0}) == {"val": 1.0}
    assert Curves("l1", "L1").values("val", {"loss": 2.0}) == {}
    several = Curves("losses", "losses", labels={"g_loss": "generator", "d_loss": "discriminator"})
    assert several.values("train", {"d_loss": 2.0, "loss": 3.0}) == {"discriminator": 2.0}


def test_columns_of_a_table_stand_below_each_other() -> None:
    table = plain_table(["FID", "<split>"], [[4.068123, "train"], [None, "two\nlines\tand more caf\udce9"]])
    assert table.splitlines() == ["FID    <split>", "4.068  train", r"       two\nlines\tand more caf\udce9"]


def test_what_is_new_gets_a_pane_after_the_others() -> None:
    """What a researcher's trainer returns, and what only some machines have."""
    board = Board(values_of(resolve(VQGANStage, {"dataset": "churches"})), lambda *_: None)
    known = list(board.panes)
    board.scalars(5, "train", {"loss": 1.0, "my_term": 2.0, "steps_per_second": 3.0, "gpu_reserved_gib": 4.0})
    board.scalars(5, "test", {"my_term": 3.0})
    board.scalars(0, "codes", {"marginal_entropy": 3.0})  # of the codes: no curve
    board.text("loss", "of the same name as a curve")
    for name in ("code_counts", "others"):
        board.histogram(5, name, np.array([1.0, 3.0, 2.0]))
    assert list(board.panes) == [*known, "my_term", "gpu_memory", "loss (words)", "others"]
    assert board.panes["my_term"].title == "my term"
    assert {name: curve.y for name, curve in board.curves["my_term"].items()} == {"train": [2.0], "test": [3.0]}
    assert board.curves["gpu_memory"]["reserved"].y == [4.0]
    assert list(board.changed)[-4:] == ["my_term", "gpu_memory", "loss (words)", "others"]
    assert (list(board.bars["code_counts"]), list(board.bars["others"])) == ([3, 2, 1], [1, 3, 2])  # largest first


def test_long_curves_are_thinned_evenly() -> None:
    curve = Curve()
    for step in range(0, 200_000, 10):
        curve.add(step, 0.0)
    assert len(curve.x) < 5000
    assert curve.x[:900] == list(range(0, 9000, 10))
    assert max(np.diff(curve.x)) <= 200_000 / RESOLUTION + 10
    assert curve.x[-1] > 199_000


def test_older_pictures_are_thinned_and_the_newest_stay() -> None:
    kept: list[int] = []
    steps = list(range(5000, 5000 * 441, 5000))
    for step in steps:
        kept = thinned([*kept, step])
    assert len(kept) <= MOST_PICTURES
    assert kept[0] == 5000
    assert kept[-2:] == steps[-2:]
    gaps = np.diff(kept)
    assert gaps[0] == gaps.max()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """The folder of a training run of 30 steps."""
    folder = RunFolder("run", tmp_path)
    settings = resolve(VQGANStage, {"dataset": "churches", "steps_per_log": 10, "sinks": ()})
    save_settings(settings, folder.hparams)
    record = Record(folder, resume_step=None)
    for step in (10, 20, 30):
        record.scalars(step, "train", {"loss": step, "l1": float("nan")})
        record.picture(step, "samples", np.zeros((3, 4, 4), np.uint8))
    record.histogram(30, "code_counts", [1.0, float("inf"), 3.0])
    record.table("more", ["FID"], [[4.07], [None]])
    record.text("run", "30 of 30")
    record.close()
    return folder


def test_a_folder_shows_what_its_run_did_or_a_part_of_it(folder: RunFolder) -> None:
    record_result(folder.results, {"features": "r64"}, {"fid": 1.5})
    board = shown(folder.path)
    assert (board.curves["loss"]["train"].x, board.curves["loss"]["train"].y) == ([10, 20, 30], [10, 20, 30])
    assert np.isnan(board.curves["l1"]["train"].y).all()
    assert [step for step, _ in board.pictures["samples"]] == [10, 20, 30]
    np.testing.assert_array_equal(board.bars["code_counts"], [np.nan, 3.0, 1.0])
    assert board.words["more"] == "FID\n4.07\n"
    assert board.words["results"] == "result\nfid       1.5\nfeatures  r64"
    assert board.words["run"] == "30 of 30"
    replay(folder, part := Board({}, lambda pane, step, picture: step), last_step=20)
    assert part.curves["loss"]["train"].x == [step for step, _ in part.pictures["samples"]] == [10, 20]


def test_pictures_that_are_none_of_this_run_are_left_out(folder: RunFolder) -> None:
    """An earlier run of the name was longer; images that were written individually are no grids; files are damaged."""
    for name in ("samples_50", "samples_30_7", "notes"):
        save_png(folder.images / f"{name}.png", np.zeros((3, 4, 4), np.uint8))
    (folder.images / "samples_31.png").write_bytes(b"no picture")
    board = shown(folder.path)
    assert {name: [step for step, _ in found] for name, found in board.pictures.items()} == {"samples": [10, 20, 30]}


def test_of_an_experiments_pictures_the_newest_of_each_name_is_shown(tmp_path: Path) -> None:
    for name in ("samples_000", "samples_001", "inpainted"):
        save_png(tmp_path / f"run/images/{name}.png", np.zeros((3, 4, 4), np.uint8))
    seen: list[str] = []
    board = Board({}, lambda pane, step, picture: seen.append(f"{pane.window} {step}"))
    replay(RunFolder("run", tmp_path), board)
    assert seen == ["inpainted None", "samples None"]


def test_samples_that_were_written_individually_are_shown_as_a_grid(tmp_path: Path) -> None:
    for shade in range(10):
        save_png(tmp_path / f"run/images/samples/{shade:06}.png", np.full((3, 48, 48), shade, np.uint8))
    board = Board({}, lambda pane, step, image: image)
    replay(RunFolder("run", tmp_path), board)
    ((_, grid),) = board.pictures["samples"]
    assert [grid.getpixel((98 * (n % 8) + 50, 98 * (n // 8) + 50))[0] for n in range(10)] == list(range(10))


@pytest.mark.parametrize("hparams", ["- 3", "{steps_per_checkpoint: 1, sampler: [x]}"])
@pytest.mark.parametrize("newest", ["{", '{"histograms": {"a": 3}, "tables": {"a": {"columns": [1]}}, "texts": 3}'])
def test_what_is_damaged_is_passed_over(folder: RunFolder, newest: str, hparams: str) -> None:
    folder.newest.write_text(newest)
    with folder.metrics.open("a") as file:
        file.write('{"step": 40, "split": "train", "loss": "x", "l1": []}\n{\n')
    folder.hparams.write_text(hparams)
    assert shown(folder.path).curves["loss"]["train"].x == [10, 20, 30]
