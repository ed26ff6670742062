"""Which panes a run has."""

from __future__ import annotations

from typing import Any

import pytest

from hparams.resolve import resolve
from hparams.settings import VQGANStage
from utils.training_panes import panes_of


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
