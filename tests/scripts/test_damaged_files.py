"""Files that were cut off, changed, or made to do harm: each is told of in one line, and none runs anything."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from malice import as_array, as_checkpoint, as_legacy_checkpoint, as_pickle, as_yaml

STAGE_1 = "train_vqgan.py --resume --log_dir ae --train_steps 9"
STAGE_2 = "train_sampler.py --resume --log_dir prior --train_steps 9"
PRIOR = "--batch_size 4 --device cpu --num_workers 0 --visdom_port 9 --log_dir drawn --load_dir prior --ae_load_dir ae"
SAMPLES = f"experiments/get_samples.py {PRIOR} --n_samples 2"
LARGER = f"experiments/generate_big_samples.py {PRIOR} --n_samples 1"
ELBO = f"experiments/calc_approximate_ELBO.py {PRIOR} --train_steps 2"
FID = f"experiments/calc_FID.py {PRIOR} --features r64 --split val --n_samples 3 --kid_subsets 0"
PRDC = "experiments/calc_PRDC.py --dataset custom --log_dir drawn --nearest_k 1"

# What may happen: "older" step used, "refused" with status 2, "mended" or passed over with status 0, or "either".
KINDS = {
    "weights": ("logs/ae/saved_models/vqgan_8.th", STAGE_1, "older"),
    "average": ("logs/ae/saved_models/vqgan_ema_8.th", STAGE_1, "older"),
    "state": ("logs/ae/saved_models/vqgan_state_8.th", STAGE_1, "older"),
    "prior's weights": ("logs/prior/saved_models/absorbing_8.th", STAGE_2, "older"),
    "prior's state": ("logs/prior/saved_models/absorbing_state_8.th", STAGE_2, "older"),
    "autoencoder of a prior": ("logs/ae/saved_models/vqgan_ema_8.th", STAGE_2, "refused"),
    "prior of an experiment": ("logs/prior/saved_models/absorbing_ema_8.th", SAMPLES, "refused"),
    "settings": ("logs/ae/hparams.yaml", STAGE_1, "refused"),
    "metrics": ("logs/ae/metrics.jsonl", STAGE_1, "mended"),
    "newest": ("logs/ae/newest.json", STAGE_1, "mended"),
    "log": ("logs/ae/log.txt", STAGE_1, "mended"),
    "data sets": ("datasets.yaml", STAGE_1, "either"),
    "optimiser": ("logs/theirs/saved_models/ae_optim_8.th", "optimiser", "refused"),
    "perceptual weights": ("lpips.th", "perceptual", "refused"),
    "codes": ("logs/ae/latents/*/*.npy", STAGE_2, "mended"),
    "features of real images": ("logs/features/*/*.npy", FID, "mended"),
    "results": ("logs/drawn/results.json", f"{PRDC} --fake_feats a.npy --real_feats b.safetensors", "either"),
    "given features": ("a.npy", f"{PRDC} --fake_feats a.npy --real_feats b.safetensors", "refused"),
    "given safetensors": ("b.safetensors", f"{PRDC} --fake_feats a.npy --real_feats b.safetensors", "refused"),
    "given codes": ("codes.pt", f"{FID} --latents_path codes.pt", "refused"),
    "head of a likelihood": ("logs/drawn/logsigma.th", ELBO, "mended"),
    "larger codes": ("logs/drawn/samples/*/*.npy", LARGER, "mended"),
}
# Of those that are mended, the ones whose loss costs work, and that no cut leaves whole.
COMPUTED_ANEW = ("codes", "features of real images", "head of a likelihood", "larger codes")


def command_of(tiny: Any, kind: str) -> str:
    """The command that reads a kind of file; prepares what it needs."""
    command = KINDS[kind][1]
    if command == "optimiser":
        theirs = tiny.folder / "logs/theirs/saved_models"
        theirs.mkdir(parents=True)
        shutil.copy(tiny.folder / "logs/ae/saved_models/vqgan_8.th", theirs)
        state = torch.load(tiny.folder / "logs/ae/saved_models/vqgan_state_8.th", weights_only=True)
        for name, adam in state["trainer"]["optimisers"].items():
            torch.save(adam, theirs / f"{name}_optim_8.th")
        load = "--load_dir theirs --load_step 8 --load_optim"
        return f"{tiny.stage_1} --dataset custom --no_ema --log_dir new --train_steps 10 {load}"
    if command == "perceptual":
        torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tiny.folder / "lpips.th")
        perceptual = "--img_size 16 --perceptual lpips --perceptual_weights_file lpips.th"
        return f"{tiny.stage_1} --dataset custom --log_dir new --train_steps 1 {perceptual}"
    if command.startswith("experiments/") and command != SAMPLES:
        features = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
        np.save(tiny.folder / "a.npy", features)
        header = json.dumps({"x": {"dtype": "F32", "shape": [8, 4], "data_offsets": [0, 128]}}).encode()
        (tiny.folder / "b.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + features.tobytes())
        torch.save(torch.zeros((3, 16), dtype=torch.int64), tiny.folder / "codes.pt")
        if "drawn" in KINDS[kind][0] or "features/" in KINDS[kind][0]:
            tiny.ok(command)
    if command == STAGE_2:
        tiny.ok("train_sampler.py --resume --log_dir prior --train_steps 8")  # makes the codes of the photos here
    return command


def file_of(tiny: Any, kind: str) -> Path:
    """The file of a kind; of several codes those that were made last."""
    return max(tiny.folder.glob(KINDS[kind][0]), key=lambda file: file.stat().st_mtime_ns)


def told(ended: Any) -> str:
    """What a script says that may succeed or refuse, but must not crash."""
    assert ended.code in (0, 1, 2), ended
    assert "Traceback" not in ended.err, ended.err
    if ended.code:
        assert sum(": error: " in line for line in ended.err.splitlines()) == 1, ended.err
    return ended.out + ended.err


def check(ended: Any, kind: str, file: Path) -> None:
    said, expected = told(ended), KINDS[kind][2]
    if expected == "refused":
        assert ended.code == 2, said
        assert file.name in said
    elif expected == "older":
        assert ended.code == 0, said
        assert file.name in said
        assert "trying an older step" in said
        assert "continuing after step 4" in said
    elif expected == "mended":
        assert ended.code == 0, said
        if kind in COMPUTED_ANEW:
            assert re.search(rf"^WARNING: \S*{file.stem}\S* is damaged", said, re.MULTILINE), said


@pytest.mark.parametrize("kind", list(KINDS))
def test_files_cut_off_anywhere(tiny, kind: str) -> None:
    command = command_of(tiny, kind)
    file = file_of(tiny, kind)
    content = file.read_bytes()
    backup = tiny.folder.parent / "backup"
    shutil.copytree(tiny.folder, backup)
    dice = random.Random(kind)
    for length in (dice.randrange(1, len(content) - 1), dice.choice([0, len(content) - 1])):
        file.write_bytes(content[:length])
        check(tiny.run(command), kind, file)
        shutil.rmtree(tiny.folder)
        shutil.copytree(backup, tiny.folder)


def inside_a_record(file: Path, dice: random.Random) -> int:
    """Where a byte of data lies: other bytes of a zip archive, such as its padding, mean nothing."""
    with zipfile.ZipFile(file) as archive:
        record = dice.choice([info for info in archive.infolist() if info.file_size > 8])
    content = file.read_bytes()
    name, extra = (int.from_bytes(content[record.header_offset + at :][:2], "little") for at in (26, 28))
    return record.header_offset + 30 + name + extra + dice.randrange(record.file_size)


@pytest.mark.parametrize(
    "kind",
    ["weights", "average", "state", "prior's state", "autoencoder of a prior", "prior of an experiment", "codes"],
)
def test_a_flipped_bit_is_found(tiny, kind: str) -> None:
    command = command_of(tiny, kind)
    file = file_of(tiny, kind)
    dice = random.Random(kind)
    content = bytearray(file.read_bytes())
    content[inside_a_record(file, dice) if kind != "codes" else len(content) - 5] ^= 1 << dice.randrange(8)
    file.write_bytes(content)
    ended = tiny.run(command)
    check(ended, kind, file)
    if kind == "codes":
        assert f"WARNING: {file.relative_to(tiny.folder)} is damaged" in ended.out + ended.err


def test_no_unharmed_step_left(tiny) -> None:
    for step in (4, 8):
        (tiny.folder / f"logs/ae/saved_models/vqgan_{step}.th").write_bytes(b"")
    ended = tiny.run(STAGE_1)
    assert ended.code == 2
    assert "vqgan_8.th is damaged" in told(ended)


def test_a_truncated_or_damaged_lmdb_is_one_line(tiny) -> None:
    tiny.ok(f"{tiny.stage_1} --dataset toy_churches --toy_images 64 --log_dir toys --train_steps 2")
    (file,) = tiny.folder.glob("data/**/toy_churches_train_lmdb/data.mdb")
    content = bytearray(file.read_bytes())
    os.truncate(file, len(content) - 1)
    ended = tiny.run("train_vqgan.py --log_dir toys --resume --train_steps 9")
    assert ended.code == 2
    assert "toy_churches_train_lmdb is truncated" in told(ended)
    for page in range(2 * 4096, len(content), 4096):
        content[page + 12] ^= 0x40  # where the list of its entries ends
    file.write_bytes(content)
    ended = tiny.run("train_vqgan.py --log_dir toys --resume --train_steps 9 --num_workers 1")
    assert ended.code == 2
    assert "toy_churches_train_lmdb is damaged (" in told(ended)


HARM = [
    *((kind, make) for kind in ("state", "weights", "average", "prior's state") for make in (as_checkpoint, as_pickle)),
    *((kind, as_checkpoint) for kind in ("autoencoder of a prior", "prior of an experiment", "optimiser")),
    ("perceptual weights", as_checkpoint),
    ("perceptual weights", as_legacy_checkpoint),
    ("optimiser", as_legacy_checkpoint),
    ("codes", as_array),
    ("codes", as_pickle),
    ("metrics", as_pickle),
    ("newest", as_pickle),
    ("features of real images", as_array),
    ("given features", as_array),
    ("given safetensors", as_pickle),
    ("given codes", as_checkpoint),
    ("head of a likelihood", as_checkpoint),
    ("larger codes", as_checkpoint),
    ("results", as_pickle),
    ("settings", as_pickle),
    ("settings", as_yaml),
    ("data sets", as_yaml),
]


@pytest.mark.parametrize(("kind", "make"), HARM, ids=[f"{kind} {make.__name__}" for kind, make in HARM])
def test_a_pickle_in_any_place_is_not_run(tiny, tmp_path: Path, kind: str, make: Callable[[Path], bytes]) -> None:
    command = command_of(tiny, kind)
    file = file_of(tiny, kind)
    victim = tmp_path / "victim"
    file.write_bytes(make(victim))
    check(tiny.run(command), kind, file)
    assert not victim.exists()


@pytest.mark.parametrize("name", ["../../hparams.yaml", "/etc/hostname", "../saved_models/vqgan_8.th"])
def test_a_state_cannot_name_files_elsewhere(tiny, name: str) -> None:
    file = tiny.folder / "logs/ae/saved_models/vqgan_state_8.th"
    state = torch.load(file, weights_only=True)
    state["siblings"][name] = state["siblings"]["vqgan_8.th"]
    torch.save(state, file)
    said = told(tiny.run(STAGE_1))
    assert "vqgan_state_8.th is not a training state of this project; trying an older step" in said
    assert name not in said


@pytest.mark.parametrize("key", ["trainer", "averages", "skipped"])
def test_a_state_without_a_part_is_refused(tiny, key: str) -> None:
    file = tiny.folder / "logs/ae/saved_models/vqgan_state_8.th"
    state = torch.load(file, weights_only=True)
    del state[key]
    torch.save(state, file)
    ended = tiny.run(STAGE_1)
    assert ended.code == 2
    assert "vqgan_state_8.th does not fit these settings" in told(ended)


def test_settings_cannot_name_runs_elsewhere(tiny) -> None:
    file = tiny.folder / "logs/prior/hparams.yaml"
    file.write_text(file.read_text().replace("ae_load_dir: ae\n", "ae_load_dir: ../../ae\n"))
    for command in (STAGE_2, SAMPLES.replace("--ae_load_dir ae", "")):
        ended = tiny.run(command)
        assert ended.code == 2
        assert "--ae_load_dir '../../ae': give a name below logs/" in told(ended)


def rewritten(file: Path, change: Callable[[Any], None]) -> None:
    """Change what a file holds, and the checksum that its training state notes, as a run that diverged would write."""
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)
    state_file = file.with_name(re.sub(r"_(ema_)?(\d+\.th)", r"_state_\2", file.name))
    if state_file.exists() and state_file != file:
        state = torch.load(state_file, weights_only=True)
        noted = {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        state["siblings"][file.name] = noted
        torch.save(state, state_file)


def spoil(content: Any) -> bool:
    """Make the first weight or moment NaN; whether there was one."""
    if isinstance(content, torch.Tensor) and content.is_floating_point() and content.dim() > 1:
        content.flatten()[0] = torch.nan
        return True
    return isinstance(content, dict) and any(map(spoil, content.values()))


@pytest.mark.parametrize(
    "kind",
    [
        "weights", "average", "state", "prior's state", "autoencoder of a prior", "prior of an experiment", "optimiser",
        "head of a likelihood",
    ],
)  # fmt: skip
def test_values_that_are_not_finite_are_refused(tiny, kind: str) -> None:
    command = command_of(tiny, kind)
    file = file_of(tiny, kind)
    if kind == "head of a likelihood":
        command = command.replace("--train_steps 2", "--train_steps 3")
    rewritten(file, lambda content: spoil(content["trainer"]["head"]) if "key" in content else spoil(content))
    before = {path: path.read_bytes() for path in tiny.folder.rglob("saved_models/*")}
    ended = tiny.run(command)
    assert ended.code == 2, told(ended)
    assert f"{file.relative_to(tiny.folder)} holds values that are not finite (in " in told(ended)
    assert {path: path.read_bytes() for path in tiny.folder.rglob("saved_models/*")} == before


def test_predictions_that_overflow_cost_training_its_pictures_and_end_an_experiment(tiny) -> None:
    """The average's are too large here, and the trained weights are as they should be."""
    average = tiny.folder / "logs/prior/saved_models/absorbing_ema_8.th"
    rewritten(average, lambda content: [value.fill_(3e38) for value in content.values() if value.dim() > 1])
    pictures = "--steps_per_save_output 1 --steps_per_display_output 0"
    said = told(tiny.run(f"train_sampler.py --resume --log_dir prior --train_steps 10 {pictures}"))
    assert said.count("WARNING: no picture of samples after step") == 2
    assert "after step 9: the prior's predictions are not finite in float32: take the weights of another step" in said
    assert not list((tiny.folder / "logs/prior/images").glob("samples*10*"))
    assert (tiny.folder / "logs/prior/saved_models/absorbing_state_10.th").exists()
    for command in (SAMPLES, LARGER, SAMPLES.replace("n_samples 2", "n_samples 2 --sample_type mlm")):
        ended = tiny.run(command)
        assert ended.code == 1
        assert "error: the prior's predictions are not finite in float32" in told(ended)
    assert tiny.run(f"{SAMPLES} --no_ema").code == 0
