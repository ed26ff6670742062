"""Settings, whatever they are: what was typed wins, what was saved comes back, what is refused is one line."""

from __future__ import annotations

import string
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hparams import saved
from hparams.cli import parse
from hparams.errors import UserError
from hparams.fields import Setting, groups_of, settings_of, values_of
from hparams.presets import DATASETS
from hparams.resolve import resolve
from hparams.settings.stages import PriorStage, Stage, VQGANStage
from utils.runs.run_folder import save_settings

STAGES = {"vqgan": (VQGANStage, {}), "prior": (PriorStage, {"ae_load_dir": "vqgan"})}
# Those that must fit to each other are drawn by other tests.
TIED = {
    *("dataset", "log_dir", "load_dir", "load_step", "load_optim", "resume", "ae_load_dir", "ae_load_step", "device"),
    *("img_size", "ch_mult", "latent_shape", "block_size", "nf", "n_channels", "bert_n_emb", "bert_n_head", "ndf"),
    *("disc_layers", "perceptual", "perceptual_weights_file", "total_steps", "sample_steps", "keep_checkpoints"),
    *("max_bad_images", "sampler", "custom_dataset_path", "datasets_file", "dry_run", "sinks", "visdom_server"),
    *("accumulate_steps", "global_batch", "num_workers"),
}
ROBUST = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LETTERS = st.text(string.ascii_letters, min_size=1, max_size=10)


def allowed(setting: Setting, texts: st.SearchStrategy[str] = LETTERS) -> st.SearchStrategy[Any]:
    """Allowed values of a setting."""
    if setting.kind is bool:
        one: st.SearchStrategy[Any] = st.booleans()
    elif setting.choices:
        one = st.sampled_from(setting.choices)
    elif setting.kind is int:
        one = st.integers(int(setting.minimum or 0), min(int(setting.maximum or 10**6), 10**6))
    elif setting.kind is float:
        low = setting.minimum if setting.minimum is not None else setting.above or 0.0
        high = setting.maximum if setting.maximum is not None else setting.below or 1e6
        ends = {"exclude_min": setting.above is not None, "exclude_max": setting.below is not None}
        one = st.floats(low, high, allow_subnormal=False, **ends)
    else:
        one = texts
    return st.lists(one, min_size=1, max_size=3).map(tuple) if setting.many else one


@st.composite
def typed(draw: st.DrawFn, stage: type[Stage], **always: Any) -> dict[str, Any]:
    """Some flags with allowed values."""
    free = {name: setting for name, setting in settings_of(stage).items() if name not in TIED and name not in always}
    names = draw(st.lists(st.sampled_from(sorted(free)), unique=True, max_size=8))
    return {name: draw(allowed(free[name])) for name in names} | always


def words_of(values: dict[str, Any], stage: type[Stage]) -> list[str]:
    words = []
    for name, value in values.items():
        setting = settings_of(stage)[name]
        if setting.kind is bool:
            words.append(f"--{name}" if value else f"--no_{name}")
        else:
            items = value if setting.many else [value]
            words += [f"--{name}", *(repr(item) if setting.kind is float else str(item) for item in items)]
    return words


@pytest.mark.parametrize("kind", list(STAGES))
@ROBUST
@given(data=st.data(), dataset=st.sampled_from(DATASETS))
def test_what_was_typed_wins_and_the_rest_stays(tmp_path_factory, kind: str, dataset: str, data: st.DataObject) -> None:
    stage, required = STAGES[kind]
    values = data.draw(typed(stage, dataset=dataset, log_dir="run", **required))
    logs = tmp_path_factory.mktemp("logs")
    resolved = resolve(stage, values, logs=logs)
    assert resolved == parse(stage, words_of(values, stage), description="", example="", logs=logs)
    plain = values_of(resolve(stage, {"dataset": dataset, "log_dir": "run"} | required, logs=logs))
    follow = {"lr", "global_batch"} - values.keys()  # from the batch size
    assert {**values_of(resolved), **dict.fromkeys(follow)} == {**plain, **values, **dict.fromkeys(follow)}


@pytest.mark.parametrize("kind", list(STAGES))
@ROBUST
@given(data=st.data())
def test_saved_settings_come_back_and_typed_ones_win(tmp_path_factory, kind: str, data: st.DataObject) -> None:
    stage, required = STAGES[kind]
    logs = tmp_path_factory.mktemp("logs")
    first = resolve(stage, data.draw(typed(stage, dataset="churches", log_dir="run", **required)), logs=logs)
    save_settings(first, logs / "run/hparams.yaml")
    resumed = resolve(stage, {"resume": True, "log_dir": "run"}, logs=logs)
    assert saved.to_flat(resumed) == saved.to_flat(first)
    again = data.draw(typed(stage))
    again.pop("batch_size", None)  # the updates of a run keep their size
    changed = values_of(resolve(stage, {"resume": True, "log_dir": "run"} | again, logs=logs))
    for name in saved.to_flat(first):
        assert changed[name] == again.get(name, values_of(first)[name]), name


@ROBUST
@given(data=st.data())
def test_any_allowed_value_survives_the_file(tmp_path_factory, data: st.DataObject) -> None:
    texts = st.text(st.characters(exclude_categories=["Cs"]))
    known = {name: setting for name, setting in settings_of(PriorStage).items() if setting.saved}
    values = {name: data.draw(allowed(setting, texts), label=name) for name, setting in known.items()}
    groups = {
        group: made(**{name: values[name] for name, setting in known.items() if setting.group == group})
        for group, made in groups_of(PriorStage).items()
    }
    file = tmp_path_factory.mktemp("run") / "hparams.yaml"
    save_settings(PriorStage(**groups), file)
    assert saved.load(file, PriorStage) == values


@ROBUST
@given(name=st.text(max_size=30))
def test_run_names_stay_below_logs(tmp_path_factory, name: str) -> None:
    logs = tmp_path_factory.mktemp("logs")
    with suppress(UserError):
        stage = resolve(VQGANStage, {"dataset": "churches", "log_dir": name}, logs=logs)
        assert logs.resolve() in (logs / stage.run.log_dir).resolve().parents


@ROBUST
@given(name=st.sampled_from(sorted(settings_of(VQGANStage))), text=st.text(string.printable, max_size=12))
def test_any_text_as_a_value_is_taken_or_refused(tmp_path_factory, name: str, text: str) -> None:
    assume(settings_of(VQGANStage)[name].kind is not bool)
    words = ["--dataset", "churches", f"--{name}", text]
    with suppress(UserError):
        parse(VQGANStage, words, description="", example="", logs=tmp_path_factory.mktemp("logs"))
