"""Loaders on mutated files, and on such as do harm: they load or refuse in one line, run nothing, and never crash."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file as save_safetensors

from hparams import saved
from hparams.errors import UserError
from hparams.resolve import resolve
from hparams.settings.stages import VQGANStage
from jobs import a_job
from malice import FORMS, as_array, as_arrays, as_checkpoint, as_legacy_checkpoint, as_pickle, as_yaml
from shown import shown
from utils.data.bad_images import BadImages
from utils.data.datasets import find_paths
from utils.data.images import decode_rgb
from utils.data.lmdb_images import LMDBImages, write_lmdb
from utils.metrics.features import build_features
from utils.metrics.given_files import read_features, read_latents
from utils.pretrained.perceptual import load_lpips
from utils.runs.checkpoints import load_file, load_state, load_state_dict, save_step
from utils.runs.logged import read_metrics
from utils.runs.record import Record
from utils.runs.results import read_results, record_result
from utils.runs.run_folder import VQGAN, RunFolder, save_settings
from utils.runs.shards import Shards


def write_checkpoint(file: Path) -> None:
    torch.save({"weight": torch.arange(20.0), "bias": torch.ones(3)}, file)


def write_state(file: Path) -> None:
    models, state = {False: torch.nn.Linear(2, 2)}, {"trainer": {"usage": torch.arange(3)}}
    save_step(RunFolder("run", file.parents[2]), VQGAN, 5, models, state)


def write_record(file: Path) -> None:
    record = Record(RunFolder("run", file.parents[1]), resume_step=None)
    for step in range(5):
        record.scalars(step, "train", {"loss": 1.5, "l1": float("nan")})
    record.histogram(4, "codes", [1.0, 2.0])
    record.table("more", ["FID"], [[4.0]])
    record.text("run", "4 of 4")
    record.close()


def write_image(file: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)).save(file)


def write_part(file: Path) -> None:
    rows = torch.full((6, 4), 7)
    with a_job() as job:
        Shards(file.parent).fill(job, 6, np.empty(4, np.uint8), lambda *_: iter([rows]), what="codes")


def read_lmdb(file: Path) -> int:
    images = LMDBImages(file.parent)
    return sum(len(images.read(i)) for i in range(len(images)))


read_codes = partial(read_latents, "--latents_path", tokens=4, codebook_size=8)
read_given = partial(read_features, "--real_feats")
CHURCHES = resolve(VQGANStage, {"dataset": "churches"})
IMAGES = [(b"%02d" % number, bytes(number * 400)) for number in range(12)]

# By kind: the file's name, what writes it, and what loads it.
LOADERS: dict[str, tuple[str, Callable[[Path], object], Callable[[Path], object]]] = {
    "checkpoint": ("model.th", write_checkpoint, load_state_dict),
    "any torch file": ("model.th", write_checkpoint, load_file),
    "state": (
        "run/saved_models/vqgan_state_5.th",
        write_state,
        lambda file: load_state(RunFolder("run", file.parents[2]), VQGAN, 5),
    ),
    "settings": ("hparams.yaml", partial(save_settings, CHURCHES), partial(saved.load, stage_class=VQGANStage)),
    "metrics": ("run/metrics.jsonl", write_record, lambda file: [line["step"] + 1 for line in read_metrics(file)]),
    "what is shown": ("run/metrics.jsonl", write_record, lambda file: shown(file.parent)),
    "newest": ("run/newest.json", write_record, lambda file: shown(file.parent)),
    "results": ("results.json", lambda file: record_result(file, {"n": 3, "on": "R64"}, {"fid": 1.5}), read_results),
    "data sets": (
        "datasets.yaml",
        lambda file: file.write_text("churches: {paths: {train: a, val: b}}\nffhq: {path: photos}\n"),
        lambda file: [find_paths(name, file) for name in ("churches", "ffhq")],
    ),
    **{kind: (f"image.{kind}", write_image, decode_rgb) for kind in ("png", "jpg", "webp")},
    "codes": ("codes/*.npy", write_part, lambda file: Shards(file.parent).read(6)),
    "given latents": ("given.npy", lambda file: np.save(file, np.ones((3, 4), np.int64)), read_codes),
    "given latents, a tensor": ("given.pt", lambda file: torch.save(torch.ones(3, 4).byte(), file), read_codes),
    "given features": ("given.npy", lambda file: np.save(file, np.ones((3, 4), np.float32)), read_given),
    "safetensors": ("given.safetensors", lambda file: save_safetensors({"a": torch.ones(2, 3)}, file), read_given),
    "LMDB": ("a_lmdb/data.mdb", lambda file: write_lmdb(file.parent, IMAGES), read_lmdb),
    "list of bad images": (
        "bad.txt",
        lambda file: BadImages(file, 0.9, print, keep=False).report({"a.png": "broken", "b.png": "broken"}, 10),
        lambda file: len(BadImages(file, 0.5, print, keep=True)),
    ),
}


def made(kind: str, folder: Path) -> Path:
    name, write, _ = LOADERS[kind]
    write(folder / name)
    (file,) = folder.glob(name)
    return file


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Cut, change, insert, repeat or replace some bytes."""
    where, length = draw(st.floats(0, 1)), draw(st.integers(1, 40))
    kind, new = draw(st.sampled_from(["cut", "flip", "insert", "repeat", "lose", "all"])), draw(st.binary(max_size=40))

    def mutate(content: bytes) -> bytes:
        at = int(where * max(0, len(content) - 1))
        before, after = content[:at], content[at:]
        return {
            "cut": before,
            "flip": before + bytes(byte ^ 0x55 for byte in after[:length]) + after[length:],
            "insert": before + new + after,
            "repeat": before + after[:length] + after,
            "lose": before + after[length:],
            "all": new,
        }[kind]

    return mutate


@pytest.mark.parametrize("kind", list(LOADERS))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutate=mutations())
def test_mutated_files(tmp_path: Path, kind: str, mutate: Callable[[bytes], bytes]) -> None:
    name, _, load = LOADERS[kind]
    if not (tmp_path / "original").exists():  # the folder serves all examples
        (tmp_path / "original").write_bytes(made(kind, tmp_path).read_bytes())
    (file,), content = tmp_path.glob(name), (tmp_path / "original").read_bytes()
    file.write_bytes(mutate(content))
    try:
        loaded = load(file)
    except UserError as error:
        if "\n" in str(error):
            raise
    else:
        if kind == "codes" and mutate(content) != content:  # where a change of one byte must not go unnoticed
            assert loaded is None


# Weights of networks, which take too long to build to be mutated often.
WEIGHTS = {
    "LPIPS": lambda file: load_lpips("squeeze", str(file), what="it", instead="another"),
    "inception": lambda file: build_features("inception", str(file), torch.device("cpu")),
    "vgg16": lambda file: build_features("vgg16", str(file), torch.device("cpu")),
}


@pytest.mark.parametrize("form", FORMS, ids=[form.__name__ for form in FORMS])
@pytest.mark.parametrize("kind", [*LOADERS, *WEIGHTS])
def test_no_loader_runs_a_pickle(tmp_path: Path, kind: str, form: Callable[[Path], bytes]) -> None:
    load = WEIGHTS[kind] if kind in WEIGHTS else LOADERS[kind][2]
    file, victim = made("checkpoint" if kind in WEIGHTS else kind, tmp_path), tmp_path / "victim"
    file.write_bytes(form(victim))
    with contextlib.suppress(UserError):
        load(file)
    assert not victim.exists()


def test_these_pickles_would_do_harm(tmp_path: Path) -> None:
    for form in (as_checkpoint, as_legacy_checkpoint):
        torch.load(io.BytesIO(form(tmp_path / form.__name__)), weights_only=False)
    pickle.loads(as_pickle(tmp_path / "as_pickle"))
    np.load(io.BytesIO(as_array(tmp_path / "as_array")), allow_pickle=True)
    np.load(io.BytesIO(as_arrays(tmp_path / "as_arrays")), allow_pickle=True)["a"]
    yaml.unsafe_load(as_yaml(tmp_path / "as_yaml"))
    assert {folder.name for folder in tmp_path.iterdir()} == {form.__name__ for form in FORMS}


def test_lines_that_are_json_but_no_lines_of_ours(tmp_path: Path) -> None:
    lines = ["3", "[]", "null", '"text"', "[" * 5000, '["events", {}]']
    lines += [f'{{"step": {step}, "split": "train"}}' for step in ('"3"', "true")]
    file = made("metrics", tmp_path)
    whole = file.read_text()
    file.write_text("\n".join(f"{line}\n{whole}" for line in lines))
    assert [entry["step"] for entry in read_metrics(file)] == [0, 1, 2, 3, 4] * len(lines)


def test_pickled_arrays_are_no_rows(tmp_path: Path) -> None:
    file = made("codes", tmp_path)
    content = io.BytesIO()
    np.save(content, np.array([{}], dtype=object), allow_pickle=True)
    name = f"00000000-00000006-{hashlib.sha256(content.getvalue()).hexdigest()[:16]}.npy"
    file.rename(file.with_name(name)).write_bytes(content.getvalue())
    assert Shards(file.parent).read(6) is None
