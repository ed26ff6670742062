"""Where a training run begins, and what refuses to begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from hparams.errors import UserError
from hparams.resolve import resolve
from hparams.settings.stages import VQGANStage
from utils.runs.run_folder import save_settings
from utils.training.training_start import first_step, is_complete


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def settings(logs: Path, **typed: object) -> VQGANStage:
    return resolve(VQGANStage, {"dataset": "toy_churches", **typed}, logs=logs)


def start(logs: Path, **typed: object) -> int:
    return first_step(settings(logs, **typed), "vqgan", logs)


def run(logs: Path, name: str, *files: str, published: bool = False, **typed: object) -> None:
    """A run folder with empty files and, unless it is `published`, the settings of a command."""
    asked = settings(logs, log_dir=name, **typed)
    (logs / name / "saved_models").mkdir(parents=True)
    for file in files:
        (logs / name / "saved_models" / file).touch()
    if not published:
        save_settings(asked, logs / name / "hparams.yaml")


def step(number: int) -> tuple[str, str]:
    return f"vqgan_{number}.th", f"vqgan_state_{number}.th"


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_goes_on_after_its_newest_training_state(logs: Path, resume: bool) -> None:
    assert start(logs, log_dir="a") == 0
    run(logs, "a", *step(5), *step(10), "vqgan_15.th")
    assert start(logs, log_dir="a", resume=resume) == 10


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(("loaded", "first"), [({}, 0), ({"load_dir": "a", "load_step": 5}, 5)])
def test_a_run_that_saved_no_step_begins_again_where_it_did(
    logs: Path, loaded: dict[str, object], first: int, resume: bool
) -> None:
    run(logs, "a", *step(5))
    run(logs, "b", ".vqgan_saving_7", "vqgan_7.th", **loaded)
    assert start(logs, log_dir="b", **({"resume": True} if resume else loaded)) == first


def test_a_run_from_weights_goes_on_from_its_own_steps(logs: Path) -> None:
    run(logs, "a", *step(5), *step(20))
    loaded = {"load_dir": "a", "load_step": 5}
    assert start(logs, log_dir="b", **loaded) == 5
    run(logs, "b", *step(8), **loaded)
    assert start(logs, log_dir="b", **loaded) == start(logs, log_dir="b", resume=True) == 8


def test_weights_of_the_runs_own_folder_are_a_start_until_there_is_a_newer_step(logs: Path) -> None:
    run(logs, "a", *step(5))
    assert start(logs, log_dir="a", load_step=5) == 5
    save_settings(settings(logs, log_dir="a", load_step=5), logs / "a/hparams.yaml")
    assert start(logs, log_dir="a", load_step=5) == 5
    with pytest.raises(UserError, match=r"--resume: .*a holds no saved step .*--load_step 5"):
        start(logs, log_dir="a", resume=True)  # the state of step 5 is of another run
    for file in step(8):
        (logs / "a/saved_models" / file).touch()
    assert start(logs, log_dir="a", load_step=5) == start(logs, log_dir="a", resume=True) == 8


@pytest.mark.parametrize(("published", "steps"), [(False, 5), (False, 4), (True, 6)])
def test_a_loaded_step_must_leave_something_to_do(logs: Path, published: bool, steps: int) -> None:
    """Published files count from 0."""
    run(logs, "a", *step(5)[: 1 if published else 2], published=published)
    loaded, done = {"log_dir": "b", "load_dir": "a", "load_step": 5}, 6 if published else 5
    with pytest.raises(UserError, match=rf"--train_steps {steps}: .*a has reached step {done} already"):
        start(logs, **loaded, train_steps=steps)
    assert start(logs, **loaded, train_steps=7) == done


def test_a_published_step_stays_one_in_a_folder_that_was_trained_on(logs: Path) -> None:
    """The first run on their folder leaves settings there, also where it was interrupted before it saved a step."""
    run(logs, "theirs", "vqgan_5.th", "ae_optim_5.th", "disc_optim_5.th")
    assert start(logs, log_dir="theirs", load_step=5) == 6
    run(logs, "weights", "vqgan_5.th", published=True)
    for _ in range(2):
        assert start(logs, log_dir="weights", load_step=5) == 6
        save_settings(settings(logs, log_dir="weights", load_step=5), logs / "weights/hparams.yaml")


def test_an_average_alone_can_be_trained_on_from(logs: Path) -> None:
    run(logs, "theirs", "vqgan_ema_7.th", published=True)
    assert start(logs, log_dir="b", load_dir="theirs", load_step=7) == 8


def test_an_older_step_of_the_same_folder_is_refused(logs: Path) -> None:
    run(logs, "a", *step(5), *step(10))
    with pytest.raises(UserError, match=r"--load_step: the run in .*a has 0, this command 5.*--log_dir"):
        start(logs, log_dir="a", load_step=5)
    run(logs, "theirs", "vqgan_5.th", "vqgan_10.th", published=True)
    with pytest.raises(UserError, match=r"--load_step 5: .*goes on to step 10.*--log_dir"):
        start(logs, log_dir="theirs", load_step=5)


def test_a_run_is_not_written_over_and_the_way_to_go_on_is_named(logs: Path) -> None:
    """A folder without training states, as the authors', cannot be resumed, and its weights can be loaded."""
    run(logs, "a", *step(5))
    run(logs, "b", "absorbing_5.th", "absorbing_state_5.th")
    for loaded in ({}, {"load_dir": "a", "load_step": 5}):
        with pytest.raises(UserError, match=r"b already holds an absorbing run: use another --log_dir"):
            start(logs, log_dir="b", **loaded)
    run(logs, "theirs", "vqgan_5.th", published=True)
    with pytest.raises(UserError, match=r"already holds a vqgan run: use --load_step 5"):
        start(logs, log_dir="theirs")
    with pytest.raises(UserError, match=r"--resume: .*holds no saved step.*--load_step 5"):
        start(logs, log_dir="theirs", resume=True)


def test_missing_files_are_refused_before_anything_is_built(logs: Path) -> None:
    optimisers = "ae_optim_5.th", "ae_optim_6.th", "disc_optim_6.th"
    run(logs, "theirs", "vqgan_5.th", "vqgan_6.th", "vqgan_ema_7.th", *optimisers, published=True)
    assert start(logs, log_dir="b", load_dir="theirs", load_step=6, load_optim=True) == 7
    with pytest.raises(UserError, match=r"--load_optim: .*theirs has no optimiser state of step 5; steps with one: 6$"):
        start(logs, log_dir="b", load_dir="theirs", load_step=5, load_optim=True)


def test_a_run_is_not_resumed_towards_an_earlier_step(logs: Path) -> None:
    run(logs, "a", *step(5))
    assert start(logs, log_dir="a", resume=True, train_steps=5) == 5
    with pytest.raises(UserError, match=r"--train_steps 4: .* has reached step 5"):
        start(logs, log_dir="a", resume=True, train_steps=4)


def test_a_run_that_is_complete_says_so_and_is_tidied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was killed when its last step was whole, before it had deleted what that made useless."""
    monkeypatch.chdir(tmp_path)
    logs = Path("logs")
    run(logs, "a", *step(3), *step(4), *step(5), ".vqgan_saving_5", ".vqgan_state_5.th.123", train_steps=5)
    again = settings(logs, log_dir="a", train_steps=5)
    assert not is_complete(again, "vqgan", 4)
    assert not is_complete(settings(logs, log_dir="a", resume=True), "vqgan", 5)
    assert capsys.readouterr().out == ""
    assert is_complete(again, "vqgan", first_step(again, "vqgan"))
    assert "logs/a is complete: vqgan_5.th is its last step; --resume with a larger" in capsys.readouterr().out
    left = {file.name for file in (logs / "a/saved_models").iterdir()}
    assert left == {"vqgan_3.th", *step(4), *step(5)}
