"""Model files and training states: whole, strict, and never run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hparams.errors import UserError
from malice import Malice
from utils.runs.checkpoints import load_file, load_into, load_state, load_state_dict, part_of, save_step
from utils.runs.run_folder import VQGAN, RunFolder


def network(width: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder("run", tmp_path)


def save(folder: RunFolder, step: int = 5) -> None:
    save_step(folder, VQGAN, step, {False: network(), True: network()}, {"trainer": {"usage": torch.arange(3)}})


# --- what is saved ------------------------------------------------------------------------------------------------


def test_a_saved_step_comes_back(folder: RunFolder) -> None:
    save(folder)
    names = sorted(file.name for file in folder.saved_models.iterdir())
    assert names == ["vqgan_5.th", "vqgan_ema_5.th", "vqgan_state_5.th"]
    assert folder.state_steps(VQGAN) == folder.model_steps(VQGAN) == [5]
    state = load_state(folder, VQGAN, 5)
    assert state["step"] == 5
    assert state["trainer"]["usage"].tolist() == [0, 1, 2]
    content = load_state_dict(folder.model_file(VQGAN, 5))
    for name, value in network().state_dict().items():
        assert torch.equal(content[name], value)


def test_a_model_file_is_a_plain_state_dict(folder: RunFolder) -> None:
    save(folder)
    content = torch.load(folder.model_file(VQGAN, 5, ema=True), weights_only=True)
    assert type(content) is dict
    assert content.keys() == network().state_dict().keys()


def test_views_are_saved_without_what_they_view(folder: RunFolder) -> None:
    model = nn.Linear(2, 2, bias=False)
    model.weight = nn.Parameter(torch.zeros(1000, 1000)[::500, ::500])
    save_step(folder, VQGAN, 1, {False: model}, {})
    assert folder.model_file(VQGAN, 1).stat().st_size < 10_000


def test_the_state_vouches_for_its_siblings(folder: RunFolder) -> None:
    save(folder)
    siblings = load_state(folder, VQGAN, 5)["siblings"]
    assert set(siblings) == {"vqgan_5.th", "vqgan_ema_5.th"}
    for name, noted in siblings.items():
        assert noted["size"] == (folder.saved_models / name).stat().st_size


def test_a_changed_sibling_is_refused(folder: RunFolder) -> None:
    save(folder)
    file = folder.model_file(VQGAN, 5, ema=True)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"vqgan_ema_5\.th is damaged \(checksum differs\)"):
        load_state(folder, VQGAN, 5)


def test_a_changed_state_is_refused(folder: RunFolder) -> None:
    """PyTorch would load other numbers, without a word."""
    save(folder)
    file = folder.state_file(VQGAN, 5)
    content = bytearray(file.read_bytes())
    content[content.index(torch.arange(3).numpy().tobytes())] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"vqgan_state_5\.th is damaged \(checksum of "):
        load_state(folder, VQGAN, 5)


def test_a_missing_sibling_is_refused(folder: RunFolder) -> None:
    save(folder)
    folder.model_file(VQGAN, 5).unlink()
    with pytest.raises(UserError, match=r"vqgan_5\.th is missing"):
        load_state(folder, VQGAN, 5)


def test_a_step_without_its_state_is_not_seen(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder, 5)
    real = torch.save

    def fail_at_the_state(content: Any, out: Any) -> None:
        if "siblings" in content:
            out.write(b"half")
            raise OSError("disk full")
        real(content, out)

    monkeypatch.setattr(torch, "save", fail_at_the_state)
    with pytest.raises(OSError, match="disk full"):
        save(folder, 10)
    assert folder.model_file(VQGAN, 10).exists()
    assert folder.state_steps(VQGAN) == folder.model_steps(VQGAN) == [5]
    hidden = [file.name for file in folder.saved_models.iterdir() if file.name.startswith(".")]
    assert hidden == [".vqgan_saving_10"]  # the mark of an unfinished step, and no half-written file
    assert folder.unfinished_steps(VQGAN) == [10]


def test_an_interrupted_model_file_leaves_the_old_one(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder)
    before = folder.model_file(VQGAN, 5).read_bytes()

    def half(content: Any, out: Any) -> None:
        out.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save(folder)
    assert folder.model_file(VQGAN, 5).read_bytes() == before


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    file, victim = tmp_path / "model.th", tmp_path / "victim"
    torch.save({"weight": Malice(victim)}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"model\.th holds more than tensors"):
        load_file(file)
    assert not victim.exists()
    torch.load(file, weights_only=False)  # it would have worked
    assert victim.exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    file, victim = tmp_path / "model.th", tmp_path / "victim"
    file.write_bytes(pickle.dumps(Malice(victim)))
    with pytest.raises(UserError, match=r"model\.th"):
        load_file(file)
    assert not victim.exists()
    assert not recwarn.list  # one line of error is enough


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_files_are_refused_wherever_they_end(tmp_path: Path, legacy: bool) -> None:
    whole, file = tmp_path / "whole.th", tmp_path / "cut.th"
    torch.save(network().state_dict(), whole, _use_new_zipfile_serialization=not legacy)
    content = whole.read_bytes()
    for length in [*range(0, len(content) - 1, 37), len(content) - 1]:
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cut\.th"):
            load_state_dict(file)


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_files_are_loaded_or_refused_but_never_crash(tmp_path: Path, legacy: bool) -> None:
    whole, file = tmp_path / "whole.th", tmp_path / "damaged.th"
    torch.save(network().state_dict(), whole, _use_new_zipfile_serialization=not legacy)
    content = whole.read_bytes()
    refused = 0
    for place in range(0, len(content), 11):
        damaged = bytearray(content)
        damaged[place] ^= 0xA5
        file.write_bytes(damaged)
        try:
            load_into(network(), load_state_dict(file), file)
        except UserError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("content", [b"", b"not a model at all\n" * 50, b"PK\x03\x04" + bytes(100), b"\x80\x02."])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "odd.th"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"odd\.th") as refusal:
        load_file(file)
    assert "\n" not in str(refusal.value)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.th does not exist"):
        load_file(tmp_path / "none.th")
    with pytest.raises(UserError, match="cannot be read"):
        load_file(tmp_path)


@pytest.mark.parametrize(
    "content", [[1, 2], {"weight": "text"}, {"epoch": 3, "weight": torch.zeros(2)}, torch.zeros(2)]
)
def test_a_model_file_holds_names_and_tensors_only(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "odd.th")
    with pytest.raises(UserError, match="no model file"):
        load_state_dict(tmp_path / "odd.th")


@pytest.mark.parametrize("content", [{"step": 3}, [1], {"siblings": 3}])
def test_a_state_of_another_program_is_refused(folder: RunFolder, content: Any) -> None:
    folder.saved_models.mkdir(parents=True)
    torch.save(content, folder.state_file(VQGAN, 3))
    with pytest.raises(UserError, match="not a training state"):
        load_state(folder, VQGAN, 3)


# --- loading strictly ---------------------------------------------------------------------------------------------

SOURCE = Path("model.th")


def test_loading_copies_every_entry() -> None:
    source, target = network(), network()
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    source(torch.randn(5, 3))
    load_into(target, source.state_dict(), SOURCE)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)


def test_missing_and_unknown_names_are_listed() -> None:
    content = dict(network().state_dict())
    content["2.weight"] = content.pop("0.weight")
    with pytest.raises(UserError, match=r"model\.th does not fit .*missing: 0\.weight; unknown: 2\.weight"):
        load_into(network(), content, SOURCE)


def test_differing_shapes_are_listed() -> None:
    with pytest.raises(UserError, match=r"0\.weight is \[5, 3\] there and \[4, 3\] here") as refusal:
        load_into(network(4), network(5).state_dict(), SOURCE)
    assert "missing" not in str(refusal.value)


def test_long_lists_are_cut() -> None:
    content = network().state_dict() | {f"extra.{i}": torch.zeros(1) for i in range(20)}
    with pytest.raises(UserError, match=r"extra\.5 and 14 more"):
        load_into(network(), content, SOURCE)


def test_a_refused_file_changes_nothing() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    content = {name: value + 1 for name, value in before.items()}
    del content["1.bias"]
    with pytest.raises(UserError):
        load_into(model, content, SOURCE)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_perceptual_weights_are_read_over() -> None:
    load_into(network(), network().state_dict() | {"perceptual.lin0.model.1.weight": torch.zeros(1)}, SOURCE)


def test_named_parts_may_be_missing() -> None:
    content = {name: value for name, value in network().state_dict().items() if not name.startswith("1.")}
    load_into(network(), content, SOURCE, may_lack=("1.",))
    with pytest.raises(UserError, match=r"missing: 1\.weight"):
        load_into(network(), content, SOURCE)
    with pytest.raises(UserError, match=r"missing: 0\.weight"):
        load_into(network(), {}, SOURCE, may_lack=("1.",))


def test_a_part_is_loaded_by_the_names_of_the_file() -> None:
    content = {f"ae.{name}": value + 1 for name, value in network().state_dict().items()}
    model = network()
    load_into(model, content | {"disc.weight": torch.zeros(1)}, SOURCE, prefix="ae.", beside=("disc.",))
    assert torch.equal(model[0].weight, content["ae.0.weight"])
    content["aero.weight"] = content.pop("ae.0.weight")
    with pytest.raises(UserError, match=r"missing: ae\.0\.weight; unknown: aero\.weight"):
        load_into(network(), content, SOURCE, prefix="ae.", beside=("disc.",))


def test_parts_lose_their_prefix() -> None:
    content = {"ae.weight": torch.zeros(1), "aero": torch.ones(1), "disc.weight": torch.ones(1)}
    assert part_of(content, "ae.") == {"weight": content["ae.weight"]}


# --- what is not finite -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_values_that_are_not_finite_are_refused_by_file_and_name(tmp_path: Path, name: str, value: float) -> None:
    content = dict(network().state_dict())
    content[name].flatten()[1] = value
    with pytest.raises(UserError, match=rf"weights\.th holds values that are not finite \(in ae\.{name}\)"):
        load_into(
            network(), {f"ae.{key}": value for key, value in content.items()}, tmp_path / "weights.th", prefix="ae."
        )


def test_values_too_large_for_the_networks_type_are_not_finite(tmp_path: Path) -> None:
    content = {name: value.double() for name, value in network().state_dict().items()}
    content["0.bias"][0] = 1e300
    with pytest.raises(UserError, match=r"not finite \(in 0\.bias\)"):
        load_into(network(), content, tmp_path / "weights.th")


def test_parts_that_are_not_loaded_and_loss_histories_may_hold_anything(tmp_path: Path) -> None:
    """The published code enters a loss of NaN into its histories, and nothing depends on these."""
    model = network()
    model.register_buffer("loss_history", torch.zeros(3))
    content = {
        **model.state_dict(),
        "loss_history": torch.full((3,), torch.nan),
        "disc.weight": torch.tensor(torch.nan),
    }
    load_into(model, content, tmp_path / "weights.th", beside=("disc.",))
    assert model.loss_history.isnan().all()
