"""Where a training run begins, and what refuses to begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from hparams.errors import UserError
from hparams.resolve import resolve
from hparams.saved import save
from hparams.settings.stages import VQGANStage
from utils.training.training_start import first_step


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def run(logs: Path, name: str, *files: str, settings: bool = True) -> None:
    folder = logs / name
    (folder / "saved_models").mkdir(parents=True)
    for file in files:
        (folder / "saved_models" / file).touch()
    if settings:
        (folder / "hparams.yaml").write_text("{}\n")


def start(logs: Path, **typed: object) -> int:
    return first_step(resolve(VQGANStage, {"dataset": "toy_churches", **typed}, logs=logs), "vqgan", logs)


def test_a_fresh_run_begins_at_0(logs: Path) -> None:
    assert start(logs, log_dir="new") == 0


def test_resume_begins_after_the_newest_training_state(logs: Path) -> None:
    run(logs, "a", "vqgan_5.th", "vqgan_state_5.th", "vqgan_10.th", "vqgan_state_10.th", "vqgan_15.th")
    assert start(logs, log_dir="a", resume=True) == 10


def test_a_run_that_saved_no_step_begins_again_where_it_did(logs: Path) -> None:
    run(logs, "a", "vqgan_5.th", "vqgan_state_5.th")
    run(logs, "b", ".vqgan_saving_7", "vqgan_7.th")
    for loaded, step in (({}, 0), ({"load_dir": "a", "load_step": 5}, 5)):
        save(
            resolve(VQGANStage, {"dataset": "toy_churches", "log_dir": "b", **loaded}, logs=logs),
            logs / "b/hparams.yaml",
        )
        assert start(logs, log_dir="b", resume=True) == step


def test_weights_of_this_project_count_updates(logs: Path) -> None:
    run(logs, "a", "vqgan_5.th", "vqgan_state_5.th")
    assert start(logs, log_dir="b", load_dir="a", load_step=5) == 5
    assert start(logs, log_dir="a", load_step=5) == 5


def test_published_files_count_from_0(logs: Path) -> None:
    run(logs, "theirs", "vqgan_5.th", settings=False)
    assert start(logs, log_dir="b", load_dir="theirs", load_step=5) == 6


@pytest.mark.parametrize(("settings", "steps"), [(True, 5), (True, 4), (False, 6)])
def test_a_loaded_step_must_leave_something_to_do(logs: Path, settings: bool, steps: int) -> None:
    run(logs, "a", "vqgan_5.th", *(["vqgan_state_5.th"] if settings else []), settings=settings)
    loaded = {"log_dir": "b", "load_dir": "a", "load_step": 5}
    with pytest.raises(UserError, match=rf"--train_steps {steps}: .*a has reached step {5 if settings else 6} already"):
        start(logs, **loaded, train_steps=steps)
    assert start(logs, **loaded, train_steps=7) == (5 if settings else 6)


def test_a_published_step_stays_one_in_a_folder_that_was_trained_on(logs: Path) -> None:
    """The first run on their folder leaves settings there; the step is theirs all the same."""
    run(logs, "theirs", "vqgan_5.th", "ae_optim_5.th", "disc_optim_5.th")
    assert start(logs, log_dir="theirs", load_step=5) == 6


def test_a_published_step_stays_one_when_the_run_that_goes_on_from_it_was_interrupted(logs: Path) -> None:
    run(logs, "theirs", "vqgan_5.th", settings=False)
    settings = resolve(VQGANStage, {"dataset": "toy_churches", "log_dir": "theirs", "load_step": 5}, logs=logs)
    for _ in range(2):
        assert first_step(settings, "vqgan", logs) == 6
        save(settings, logs / "theirs/hparams.yaml")


def test_an_average_alone_can_be_trained_on_from(logs: Path) -> None:
    run(logs, "theirs", "vqgan_ema_7.th", settings=False)
    assert start(logs, log_dir="b", load_dir="theirs", load_step=7) == 8


def test_an_older_step_of_the_same_folder_is_refused(logs: Path) -> None:
    run(logs, "a", "vqgan_5.th", "vqgan_state_5.th", "vqgan_10.th", "vqgan_state_10.th")
    with pytest.raises(UserError, match=r"--load_step 5: .*goes on to step 10.*--log_dir"):
        start(logs, log_dir="a", load_step=5)


def test_a_run_is_not_written_over(logs: Path) -> None:
    run(logs, "a", "vqgan_5.th", "vqgan_state_5.th")
    with pytest.raises(UserError, match="--resume"):
        start(logs, log_dir="a")
    run(logs, "b", "absorbing_5.th")
    with pytest.raises(UserError, match="already holds an absorbing run"):
        start(logs, log_dir="b", load_dir="a", load_step=5)


def test_the_way_to_go_on_is_named(logs: Path) -> None:
    """A folder without training states, as the authors', cannot be resumed, and its weights can be loaded."""
    run(logs, "theirs", "vqgan_5.th", settings=False)
    with pytest.raises(UserError, match=r"already holds a vqgan run: use --load_step 5"):
        start(logs, log_dir="theirs")
    with pytest.raises(UserError, match=r"--resume: .*--load_step 5"):
        start(logs, log_dir="theirs", resume=True)
    run(logs, "other", "absorbing_5.th", "absorbing_state_5.th")
    with pytest.raises(UserError, match=r"already holds an absorbing run: use another --log_dir"):
        start(logs, log_dir="other")


def test_missing_files_are_refused_before_anything_is_built(logs: Path) -> None:
    run(logs, "theirs", "vqgan_5.th", "vqgan_6.th", "vqgan_ema_7.th", "ae_optim_5.th", "ae_optim_6.th", settings=False)
    (logs / "theirs/saved_models/disc_optim_6.th").touch()
    assert start(logs, log_dir="b", load_dir="theirs", load_step=6, load_optim=True) == 7
    with pytest.raises(UserError, match=r"--load_optim: .*theirs has no optimiser state of step 5; steps with one: 6$"):
        start(logs, log_dir="b", load_dir="theirs", load_step=5, load_optim=True)


def test_nothing_to_resume(logs: Path) -> None:
    run(logs, "a", "vqgan_5.th")
    with pytest.raises(UserError, match=r"--resume: .*a holds no saved step"):
        start(logs, log_dir="a", resume=True)


def test_a_run_is_not_resumed_towards_an_earlier_step(logs: Path) -> None:
    run(logs, "a", "vqgan_5.th", "vqgan_state_5.th")
    assert start(logs, log_dir="a", resume=True, train_steps=5) == 5
    with pytest.raises(UserError, match=r"--train_steps 4: .* has reached step 5"):
        start(logs, log_dir="a", resume=True, train_steps=4)
