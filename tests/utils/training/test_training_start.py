"""Where a training run begins, and what refuses to begin."""

from __future__ import annotations

from pathlib import Path

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


def settings(**typed: object) -> VQGANStage:
    return resolve(VQGANStage, {"dataset": "toy_churches", **typed})


def start(log_dir: str, **typed: object) -> int:
    return TrainingStart(settings(log_dir=log_dir, **typed), VQGAN).step


def run(name: str, *files: str, published: bool = False, **typed: object) -> None:
    """A run folder with empty files and, unless it is `published`, the settings of a command."""
    asked = settings(log_dir=name, **typed)
    (LOGS / name / "saved_models").mkdir(parents=True)
    for file in files:
        (LOGS / name / "saved_models" / file).touch()
    if not published:
        save_settings(asked, LOGS / name / "hparams.yaml")


def step(number: int) -> tuple[str, str]:
    return f"vqgan_{number}.th", f"vqgan_state_{number}.th"


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_goes_on_after_its_newest_training_state(resume: bool) -> None:
    assert start("a") == 0
    run("a", *step(5), *step(10), "vqgan_15.th")
    assert start("a", resume=resume) == 10


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(("loaded", "first"), [({}, 0), ({"load_dir": "a", "load_step": 5}, 5)])
def test_a_run_that_saved_no_step_begins_again_where_it_did(
    loaded: dict[str, object], first: int, resume: bool
) -> None:
    run("a", *step(5))
    run("b", ".vqgan_saving_7", "vqgan_7.th", **loaded)
    assert start("b", **({"resume": True} if resume else loaded)) == first


def test_a_run_from_weights_goes_on_from_its_own_steps() -> None:
    run("a", *step(5), *step(20))
    loaded = {"load_dir": "a", "load_step": 5}
    assert start("b", **loaded) == 5
    run("b", *step(8), **loaded)
    assert start("b", **loaded) == start("b", resume=True) == 8


def test_weights_of_the_runs_own_folder_are_a_start_until_there_is_a_newer_step() -> None:
    run("a", *step(5))
    assert start("a", load_step=5) == 5
    save_settings(settings(log_dir="a", load_step=5), LOGS / "a/hparams.yaml")
    assert start("a", load_step=5) == 5
    with pytest.raises(UserError, match=r"--resume: .*a holds no saved step .*--load_step 5"):
        start("a", resume=True)  # the state of step 5 is of another run
    for file in step(8):
        (LOGS / "a/saved_models" / file).touch()
    assert start("a", load_step=5) == start("a", resume=True) == 8


@pytest.mark.parametrize(("published", "steps"), [(False, 5), (False, 4), (True, 6)])
def test_a_loaded_step_must_leave_something_to_do(published: bool, steps: int) -> None:
    """Published files count from 0."""
    run("a", *step(5)[: 1 if published else 2], published=published)
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
        save_settings(settings(log_dir="weights", load_step=5), LOGS / "weights/hparams.yaml")


def test_an_older_step_of_the_same_folder_is_refused() -> None:
    run("a", *step(5), *step(10))
    with pytest.raises(UserError, match=r"--load_step: the run in .*a has 0, this command 5.*--log_dir"):
        start("a", load_step=5)
    run("theirs", "vqgan_5.th", "vqgan_10.th", published=True)
    with pytest.raises(UserError, match=r"--load_step 5: .*goes on to step 10.*--log_dir"):
        start("theirs", load_step=5)


def test_a_run_is_not_written_over_and_the_way_to_go_on_is_named() -> None:
    """A folder without training states, as the authors', cannot be resumed, and its weights can be loaded."""
    run("a", *step(5))
    run("b", "absorbing_5.th", "absorbing_state_5.th")
    for loaded in ({}, {"load_dir": "a", "load_step": 5}):
        with pytest.raises(UserError, match=r"b already holds an absorbing run: use another --log_dir"):
            start("b", **loaded)
    run("theirs", "vqgan_5.th", published=True)
    with pytest.raises(UserError, match=r"already holds a vqgan run: use --load_step 5"):
        start("theirs")
    with pytest.raises(UserError, match=r"--resume: .*holds no saved step.*--load_step 5"):
        start("theirs", resume=True)


def test_an_average_alone_will_do_and_missing_optimisers_are_refused_before_anything_is_built() -> None:
    optimisers = "ae_optim_5.th", "ae_optim_6.th", "disc_optim_6.th"
    run("theirs", "vqgan_5.th", "vqgan_6.th", "vqgan_ema_7.th", *optimisers, published=True)
    assert start("b", load_dir="theirs", load_step=7) == 8
    assert start("b", load_dir="theirs", load_step=6, load_optim=True) == 7
    with pytest.raises(UserError, match=r"--load_optim: .*theirs has no optimiser state of step 5; steps with one: 6$"):
        start("b", load_dir="theirs", load_step=5, load_optim=True)


def test_a_run_is_not_resumed_towards_an_earlier_step() -> None:
    run("a", *step(5))
    assert start("a", resume=True, train_steps=5) == 5
    with pytest.raises(UserError, match=r"--train_steps 4: .* has reached step 5"):
        start("a", resume=True, train_steps=4)


def test_a_run_that_is_complete_says_so_and_is_tidied(capsys: pytest.CaptureFixture[str]) -> None:
    """It was killed when its last step was whole, before it had deleted what that made useless."""
    run("a", *step(3), *step(4), train_steps=5)
    again = settings(log_dir="a", train_steps=5)
    assert TrainingStart(again, VQGAN).has_work()
    for file in (*step(5), ".vqgan_saving_5", ".vqgan_state_5.th.123"):
        (LOGS / "a/saved_models" / file).touch()
    assert TrainingStart(settings(log_dir="a", resume=True), VQGAN).has_work()
    assert capsys.readouterr().out == ""
    assert not TrainingStart(again, VQGAN).has_work()
    assert "logs/a is complete: vqgan_5.th is its last step; --resume with a larger" in capsys.readouterr().out
    left = {file.name for file in (LOGS / "a/saved_models").iterdir()}
    assert left == {"vqgan_3.th", *step(4), *step(5)}
