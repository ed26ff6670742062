"""Where a training run begins, and what refuses to begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hparams.errors import UserError
from hparams.resolve import resolve
from hparams.settings.stages import VQGANStage
from utils.runs.run_folder import VQGAN, save_settings
from utils.training.training_start import TrainingStart

LOGS = Path("logs")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def settings(**typed: Any) -> VQGANStage:
    return resolve(VQGANStage, {"dataset": "toy_churches", **typed})


def start(log_dir: str, **typed: Any) -> int:
    return TrainingStart(settings(log_dir=log_dir, **typed), VQGAN).step


def run(name: str, *files: str | int, published: bool = False, **typed: Any) -> None:
    """A run folder with empty files, two for each step, and, unless it is `published`, the settings of a command."""
    asked, folder = None if published else settings(log_dir=name, **typed), LOGS / name / "saved_models"
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        for one in (file,) if isinstance(file, str) else (f"vqgan_{file}.th", f"vqgan_state_{file}.th"):
            (folder / one).touch()
    if asked:
        save_settings(asked, LOGS / name / "hparams.yaml")


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_goes_on_after_its_newest_training_state(resume: bool) -> None:
    assert start("a") == 0
    run("a", 5, 10, "vqgan_15.th")
    assert start("a", resume=resume) == 10


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(("loaded", "first"), [({}, 0), ({"load_dir": "a", "load_step": 5}, 5)])
def test_a_run_begins_again_where_it_did_until_it_has_steps_of_its_own(
    loaded: dict[str, Any], first: int, resume: bool
) -> None:
    run("a", 5, 20)
    assert start("b", **loaded) == first
    run("b", ".vqgan_saving_7", "vqgan_7.th", **loaded)
    typed = {"resume": True} if resume else loaded
    assert start("b", **typed) == first
    run("b", 8, **loaded)
    assert start("b", **typed) == 8


def test_weights_of_the_runs_own_folder_are_a_start_until_there_is_a_newer_step() -> None:
    run("a", 5)
    assert start("a", load_step=5) == 5
    run("a", load_step=5)
    assert start("a", load_step=5) == 5
    with pytest.raises(UserError, match=r"--resume: .*a holds no saved step .*--load_step 5"):
        start("a", resume=True)  # the state of step 5 is of another run
    run("a", 8, load_step=5)
    assert start("a", load_step=5) == start("a", resume=True) == 8


@pytest.mark.parametrize(("published", "steps"), [(False, 5), (False, 4), (True, 6)])
def test_a_loaded_step_must_leave_something_to_do(published: bool, steps: int) -> None:
    """Published files count from 0."""
    run("a", "vqgan_5.th" if published else 5, published=published)
    loaded, done = {"load_dir": "a", "load_step": 5}, 6 if published else 5
    with pytest.raises(UserError, match=rf"--train_steps {steps}: .*a has reached step {done} already"):
        start("b", **loaded, train_steps=steps)
    assert start("b", **loaded, train_steps=7) == done


def test_a_published_step_stays_one_in_a_folder_that_was_trained_on() -> None:
    """The first run on their folder leaves settings there, also where it was interrupted before it saved a step."""
    run("theirs", "vqgan_5.th", "ae_optim_5.th", "disc_optim_5.th")
    assert start("theirs", load_step=5) == 6
    run("weights", "vqgan_5.th", published=True)
    for _ in range(2):
        assert start("weights", load_step=5) == 6
        run("weights", load_step=5)


OF_A = {"load_dir": "a", "load_step": 5}
LATE = {"load_dir": "optimisers", "load_optim": True}


@pytest.mark.parametrize(
    ("log_dir", "typed", "line"),
    [
        ("a", {"load_step": 5}, r"--load_step: the run in .*a has 0, this command 5.*--log_dir"),
        ("theirs", {"load_step": 5}, r"--load_step 5: .*goes on to step 10.*--log_dir"),
        ("theirs", {}, r"already holds a vqgan run: use --load_step 10"),
        ("theirs", {"resume": True}, r"--resume: .*holds no saved step.*--load_step 10"),
        ("prior", {}, r"prior already holds an absorbing run: use another --log_dir"),
        ("prior", OF_A, r"prior already holds an absorbing run: use another --log_dir"),
        ("new", LATE | {"load_step": 5}, r"--load_optim: .*has no optimiser state of step 5; steps with one: 6$"),
        ("a", {"resume": True, "train_steps": 9}, r"--train_steps 9: .* has reached step 10"),
    ],
)
def test_a_start_is_refused_and_the_way_to_go_on_is_named(log_dir: str, typed: dict[str, Any], line: str) -> None:
    """A folder without training states, as the authors', cannot be resumed, and its weights can be loaded."""
    run("a", 5, 10)
    run("theirs", "vqgan_5.th", "vqgan_10.th", published=True)
    run("prior", "absorbing_5.th", "absorbing_state_5.th")
    optimisers = "ae_optim_5.th", "ae_optim_6.th", "disc_optim_6.th"
    run("optimisers", "vqgan_5.th", "vqgan_6.th", "vqgan_ema_7.th", *optimisers, published=True)
    with pytest.raises(UserError, match=line):
        start(log_dir, **typed)
    assert start("new", **LATE, load_step=6) == 7
    assert start("new", load_dir="optimisers", load_step=7) == 8  # an average alone will do
    assert start("a", resume=True, train_steps=10) == 10


def test_a_run_that_is_complete_says_so_and_is_tidied(capsys: pytest.CaptureFixture[str]) -> None:
    """It was killed when its last step was whole, before it had deleted what that made useless."""
    run("a", 3, 4, train_steps=5)
    again = settings(log_dir="a", train_steps=5)
    assert TrainingStart(again, VQGAN).has_work()
    run("a", 5, ".vqgan_saving_5", ".vqgan_state_5.th.123", published=True)
    assert TrainingStart(settings(log_dir="a", resume=True), VQGAN).has_work()
    assert capsys.readouterr().out == ""
    assert not TrainingStart(again, VQGAN).has_work()
    assert "logs/a is complete: vqgan_5.th is its last step; --resume with a larger" in capsys.readouterr().out
    left = {file.name for file in (LOGS / "a/saved_models").iterdir()}
    assert left == {"vqgan_3.th", "vqgan_4.th", "vqgan_state_4.th", "vqgan_5.th", "vqgan_state_5.th"}
