"""Model files and training states: whole, strict, and never run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from hparams.errors import UserError
from malice import as_checkpoint, as_legacy_checkpoint, as_pickle
from utils.runs.checkpoints import load_file, load_into, load_state, load_state_dict, save_step
from utils.runs.run_folder import VQGAN, RunFolder


def network(width: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder("run", tmp_path)


def save(folder: RunFolder, step: int = 5) -> None:
    save_step(folder, VQGAN, step, {False: network(), True: network()}, {"trainer": {"usage": torch.arange(3)}})


def test_a_saved_step_comes_back(folder: RunFolder) -> None:
    save(folder)
    files = {"vqgan_5.th", "vqgan_ema_5.th"}
    assert {file.name for file in folder.saved_models.iterdir()} == {*files, "vqgan_state_5.th"}
    assert folder.state_steps(VQGAN) == folder.model_steps(VQGAN) == [5]
    state = load_state(folder, VQGAN, 5)
    assert (state["step"], state["trainer"]["usage"].tolist()) == (5, [0, 1, 2])
    assert state["siblings"].keys() == files
    for ema in (False, True):
        content = torch.load(folder.model_file(VQGAN, 5, ema=ema), weights_only=True)
        assert type(content) is dict  # a plain state dict
        assert same(content, network().state_dict())


def test_views_are_saved_without_what_they_view(folder: RunFolder) -> None:
    model = nn.Linear(2, 2, bias=False)
    model.weight = nn.Parameter(torch.zeros(1000, 1000)[::500, ::500])
    save_step(folder, VQGAN, 1, {False: model}, {})
    assert folder.model_file(VQGAN, 1).stat().st_size < 10_000


def test_a_step_with_a_file_that_is_changed_or_missing_is_refused(folder: RunFolder) -> None:
    save(folder)
    model, state = folder.model_file(VQGAN, 5, ema=True), folder.state_file(VQGAN, 5)
    for file, told in ((model, r"ema_5\.th is damaged \(checksum differs\)"), (state, r"is damaged \(checksum of ")):
        content = file.read_bytes()
        place = content.index(torch.arange(3).numpy().tobytes()) if file == state else len(content) // 2
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(UserError, match=told):  # of the state PyTorch would load other numbers
            load_state(folder, VQGAN, 5)
        file.write_bytes(content)
    model.unlink()
    with pytest.raises(UserError, match=r"vqgan_ema_5\.th is missing"):
        load_state(folder, VQGAN, 5)


@pytest.mark.parametrize("form", [as_checkpoint, as_legacy_checkpoint, as_pickle])
def test_a_malicious_file_is_refused_and_not_run(tmp_path: Path, form: Callable[[Path], bytes], recwarn) -> None:
    file, victim = tmp_path / "model.th", tmp_path / "victim"
    file.write_bytes(form(victim))
    with pytest.raises(UserError, match=r"model\.th holds more than tensors" if form != as_pickle else r"model\.th"):
        load_file(file)
    assert not victim.exists()
    assert not recwarn.list  # one line of error is enough


def test_truncated_and_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "odd.th"
    contents = [b"", b"not a model at all\n" * 50, b"PK\x03\x04" + bytes(100), b"\x80\x02."]
    for legacy in (False, True):
        torch.save(network().state_dict(), file, _use_new_zipfile_serialization=not legacy)
        whole = file.read_bytes()
        contents += [whole[:length] for length in (*range(0, len(whole) - 1, 37), len(whole) - 1)]
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"odd\.th[^\n]*$"):
            load_file(file)
    with pytest.raises(UserError, match=r"none\.th does not exist"):
        load_file(tmp_path / "none.th")
    with pytest.raises(UserError, match="cannot be read"):
        load_file(tmp_path)


def test_a_model_file_holds_names_and_tensors_only_and_a_state_what_was_written(folder: RunFolder) -> None:
    file = folder.state_file(VQGAN, 3)
    file.parent.mkdir(parents=True)
    for content in ([1, 2], {"siblings": 3}, {"epoch": 3, "weight": torch.zeros(2)}, torch.zeros(2)):
        torch.save(content, file)
        with pytest.raises(UserError, match="no model file"):
            load_state_dict(file)
        with pytest.raises(UserError, match="not a training state"):
            load_state(folder, VQGAN, 3)


SOURCE = Path("model.th")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_loading_copies_every_entry_or_none() -> None:
    model, content = network(), {name: value + 1 for name, value in network().state_dict().items()}
    with pytest.raises(UserError):
        load_into(model, {name: value for name, value in content.items() if name != "1.bias"}, SOURCE)
    assert same(model.state_dict(), network().state_dict())
    load_into(model, content, SOURCE)
    assert same(model.state_dict(), content)


WHOLE = network().state_dict()


PART = {name: value for name, value in WHOLE.items() if not name.startswith("1.")}


@pytest.mark.parametrize(
    ("content", "may_lack", "told"),
    [
        (WHOLE | {"2.bias": torch.zeros(1)}, (), r"^model\.th does not fit these settings \(unknown: 2\.bias\): "),
        (network(5).state_dict(), (), r"\(shapes differ: 0\.weight is \[5, 3\] there and \[4, 3\] here"),
        ({f"extra.{i}": torch.zeros(1) for i in range(20)} | WHOLE, (), r"extra\.5 and 14 more"),
        *[(PART, (), r"missing: 1\.weight"), ({}, ("1.",), r"missing: 0\.weight")],
    ],
)
def test_names_and_shapes_that_do_not_fit_are_listed(content: dict[str, torch.Tensor], may_lack, told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_into(network(), content, SOURCE, may_lack=may_lack)


def test_perceptual_weights_are_read_over_and_named_parts_may_be_missing() -> None:
    load_into(network(), PART | {"perceptual.lin0.model.1.weight": torch.zeros(1)}, SOURCE, may_lack=("1.",))


def test_a_part_is_loaded_by_the_names_of_the_file() -> None:
    content = {f"ae.{name}": value + 1 for name, value in network().state_dict().items()}
    model = network()
    load_into(model, content | {"disc.weight": torch.zeros(1)}, SOURCE, prefix="ae.", beside=("disc.",))
    assert torch.equal(model[0].weight, content["ae.0.weight"])
    content["aero.weight"] = content.pop("ae.0.weight")
    with pytest.raises(UserError, match=r"missing: ae\.0\.weight; unknown: aero\.weight"):
        load_into(network(), content, SOURCE, prefix="ae.", beside=("disc.",))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e300])  # the last in the network's own type
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_values_that_are_not_finite_are_refused_by_file_and_name(name: str, value: float) -> None:
    content = {f"ae.{key}": value.double() for key, value in network().state_dict().items()}
    content[f"ae.{name}"].flatten()[1] = value
    with pytest.raises(UserError, match=rf"model\.th holds values that are not finite \(in ae\.{name}\)"):
        load_into(network(), content, SOURCE, prefix="ae.")


def test_parts_that_are_not_loaded_and_loss_histories_may_hold_anything() -> None:
    """The published code enters a loss of NaN into its histories, and nothing depends on these."""
    model = network()
    model.register_buffer("loss_history", torch.zeros(3))
    nan = {name: torch.full((3,), torch.nan) for name in ("loss_history", "disc.weight")}
    load_into(model, model.state_dict() | nan, SOURCE, beside=("disc.",))
    assert model.loss_history.isnan().all()
