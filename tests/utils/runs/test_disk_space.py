"""Space for checkpoints, estimated before it is missed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hparams.errors import UserError
from hparams.settings.training import TrainingSettings
from utils.runs import disk_space
from utils.runs.disk_space import space_notes


def test_space_for_a_run_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 weights of 4 bytes, twice with the average, and two moments of each."""
    model = torch.nn.Linear(999, 1)
    models = {False: model, True: model}
    training = replace(TrainingSettings(), steps_per_checkpoint=10)

    def note(free: int, steps: int = 100, **changes: object) -> str:
        monkeypatch.setattr(disk_space, "free_space", lambda folder: free)
        (line,) = space_notes(tmp_path, models, replace(training, **changes), steps)
        return line

    assert note(10**6) == "disk        checkpoints to come take 104 kB, 1 MB is free"  # 10 of 8 kB, 3 states of 8 kB
    assert "take 16 kB" in note(10**6, steps=3)
    assert "take 32 kB" in note(10**6, keep_checkpoints="1", keep_states=1)
    assert note(50_000).startswith("WARNING: checkpoints to come take 104 kB, 50 kB is free: make room, or use --keep")
    with pytest.raises(UserError, match="a checkpoint takes 16 kB, and 15 kB is free: make room"):
        note(15_000)
    assert "take 0 B" in note(0, steps=0)
