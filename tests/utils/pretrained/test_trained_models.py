"""What an experiment says of its trained models; what it loads is tried by the scripts' tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hparams.resolve import resolve
from hparams.settings.stages import PriorStage, VQGANStage
from utils.pretrained.loading import note_of_average
from utils.pretrained.trained_models import note_if_seen
from utils.runs.run_folder import save_settings


@pytest.mark.parametrize(
    ("held_out", "said"), [((), ("ae", "prior")), (("ae",), ("prior",)), (("prior",), ("ae",)), (("ae", "prior"), ())]
)
def test_models_that_learnt_from_what_is_evaluated(
    held_out: tuple[str, ...],
    said: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folder: dict[str, Any] = {"dataset": "custom", "custom_dataset_path": "photos"}

    def train(stage: type[VQGANStage | PriorStage], name: str, **changes: Any) -> None:
        settings = folder | {"log_dir": name, "steps_per_eval": 5 if name in held_out else 0} | changes
        save_settings(resolve(stage, settings), Path("logs", name, "hparams.yaml"))

    files = Path("logs/ae/saved_models/vqgan_1.th"), Path("logs/prior/saved_models/absorbing_1.th")

    def told(dataset: str = "custom", path: str | None = "photos") -> str:
        note_if_seen(dataset, path, *files)
        return capsys.readouterr().err

    train(VQGANStage, "ae")
    train(PriorStage, "prior", ae_load_dir="ae")
    line = told()
    assert {name for name in ("ae", "prior") if f"logs/{name}" in line} == set(said)
    assert line.count("\n") == bool(said)
    assert told("custom", "others") == told("churches", None) == ""
    for name, value in {"RANK": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert told() == ""


@pytest.mark.parametrize(
    ("step", "changes", "share"),
    [
        (1000, {}, "61%"),  # 0.995 to the power of 99
        (6000, {}, None),
        (1000, {"ema_beta": 0.9}, None),
        (1000, {"ema_warmup": True}, None),
        (11, {"ema_warmup": True}, "10%"),  # the first update's decay
        (1000, {"load_step": 5, "load_dir": "other"}, None),  # the start was trained
        (1000, {"ema": False}, None),
    ],
)
def test_an_average_that_still_holds_much_of_its_start(
    step: int, changes: dict[str, Any], share: str | None, tmp_path: Path
) -> None:
    settings = resolve(VQGANStage, {"dataset": "churches", "ema": True, **changes}, logs=tmp_path)
    save_settings(settings, tmp_path / "run/hparams.yaml")
    average = tmp_path / f"run/saved_models/vqgan_ema_{step}.th"
    said = note_of_average(average)
    assert said == (
        share
        and f"{share} of {average} is still the random start of its moving average, as it was trained for too few steps"
    )
    assert note_of_average(average.with_name(f"vqgan_{step}.th")) is None  # raw weights
    assert note_of_average(tmp_path / "published/saved_models/absorbing_ema_20.th") is None  # nothing says how it grew
