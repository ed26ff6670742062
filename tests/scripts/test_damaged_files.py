"""Files that were cut off, changed, or made to do harm: each is told of in one line, and none runs anything."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from malice import as_array, as_checkpoint, as_pickle, as_yaml
from warm import Shell

STAGE_1 = "train_vqgan.py --resume --log_dir ae --train_steps 9"
STAGE_2 = "train_sampler.py --resume --log_dir prior --train_steps 9"
SAMPLES = "experiments/get_samples.py {MODELS} --log_dir drawn --n_samples 2"
LARGER = "experiments/generate_big_samples.py {MODELS} --log_dir drawn --n_samples 1 --shape 5 6"
ELBO = "experiments/calc_approximate_ELBO.py {MODELS} --log_dir drawn --train_steps 2"
FID = "experiments/calc_FID.py {MODELS} --log_dir drawn --features r64 --split val --n_samples 3 --kid_subsets 0"
PRDC = (
    "experiments/calc_PRDC.py --dataset custom --log_dir drawn --nearest_k 1 --fake_feats a.npy "
    "--real_feats b.safetensors"
)
NEW = f"{Shell.stage_1} --dataset custom --log_dir new"
OPTIMISER = f"{NEW} --no_ema --train_steps 10 --load_dir theirs --load_step 8 --load_optim"
PERCEPTUAL = f"{NEW} --train_steps 1 --img_size 16 --perceptual lpips --perceptual_weights_file lpips.th"

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
    "optimiser": ("logs/theirs/saved_models/ae_optim_8.th", OPTIMISER, "refused"),
    "perceptual weights": ("lpips.th", PERCEPTUAL, "refused"),
    "codes": ("logs/ae/latents/*/*.npy", STAGE_2, "mended"),
    "features of real images": ("logs/features/*/*.npy", FID, "mended"),
    "results": ("logs/drawn/results.json", PRDC, "either"),
    "given features": ("a.npy", PRDC, "refused"),
    "given safetensors": ("b.safetensors", PRDC, "refused"),
    "given codes": ("codes.pt", f"{FID} --latents_path codes.pt", "refused"),
    "head of a likelihood": ("logs/drawn/logsigma.th", ELBO, "mended"),
    "larger codes": ("logs/drawn/samples/*/*.npy", LARGER, "mended"),
}
# Of those that are mended, the ones whose loss costs work, and that no cut leaves whole.
COMPUTED_ANEW = ("codes", "features of real images", "head of a likelihood", "larger codes")
# Whose checksum is looked at.
CHECKED = ("weights", "average", "state", "prior's state", "autoencoder of a prior", "prior of an experiment", "codes")


@pytest.fixture
def command(tiny, kind: str) -> str:
    """The command that reads a kind of file; what it needs is there."""
    pattern, command, _ = KINDS[kind]
    if command == OPTIMISER:
        theirs = tiny.logs / "theirs/saved_models"
        theirs.mkdir(parents=True)
        shutil.copy(tiny.logs / "ae/saved_models/vqgan_8.th", theirs)
        state = torch.load(tiny.logs / "ae/saved_models/vqgan_state_8.th", weights_only=True)
        for name, adam in state["trainer"]["optimisers"].items():
            torch.save(adam, theirs / f"{name}_optim_8.th")
    elif command == PERCEPTUAL:
        torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tiny.folder / "lpips.th")
    elif command == STAGE_2:
        tiny.ok("train_sampler.py --resume --log_dir prior --train_steps 8")  # makes the codes of the photos here
    elif command.startswith("experiments/"):
        features = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
        np.save(tiny.folder / "a.npy", features)
        save_file({"x": features}, tiny.folder / "b.safetensors")
        torch.save(torch.zeros((3, 16), dtype=torch.int64), tiny.folder / "codes.pt")
        if not list(tiny.folder.glob(pattern)):
            tiny.ok(command)
    return command


@pytest.fixture
def file(tiny, kind: str, command: str) -> Path:
    """The file of a kind; of several codes those that were made last."""
    return max(tiny.folder.glob(KINDS[kind][0]), key=lambda file: file.stat().st_mtime_ns)


def told(ended: Any) -> str:
    """What a script says that may succeed or refuse, but must not crash."""
    assert ended.code in (0, 1, 2), ended
    assert "Traceback" not in ended.err, ended.err
    if ended.code:
        assert sum(": error: " in line for line in ended.err.splitlines()) == 1, ended.err
    return ended.out + ended.err


def refused(tiny: Any, command: str) -> str:
    """What a script says that must refuse."""
    ended = tiny.run(command)
    assert ended.code == 2, ended
    return told(ended)


def check(ended: Any, kind: str, file: Path) -> None:
    said, expected = told(ended), KINDS[kind][2]
    if expected != "either":
        assert ended.code == (2 if expected == "refused" else 0), said
    if expected in ("refused", "older"):
        assert file.name in said
    if expected == "older":
        assert "trying an older step" in said
        assert "continuing after step 4" in said
    if kind in COMPUTED_ANEW:
        assert re.search(rf"^WARNING: \S*{file.stem}\S* is damaged", said, re.MULTILINE), said


def with_a_flipped_bit(file: Path, dice: random.Random) -> bytes:
    """In the data of an array, or of a zip archive, where other bytes, such as its padding, mean nothing."""
    content = bytearray(file.read_bytes())
    place = len(content) - 5
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            data = archive.read(dice.choice([info for info in archive.infolist() if info.file_size > 8]))
        place = content.index(data) + dice.randrange(len(data))
    content[place] ^= 1 << dice.randrange(8)
    return bytes(content)


def damaged(kind: str, file: Path, victim: Path) -> Iterator[bytes]:
    """Cut off twice, with a flipped bit, and as a pickle that would make a folder `victim`."""
    content, dice = file.read_bytes(), random.Random(kind)
    yield content[: dice.randrange(1, len(content) - 1)]
    yield content[: dice.choice([0, len(content) - 1])]
    if kind in CHECKED:
        yield with_a_flipped_bit(file, dice)
    harm = {".th": as_checkpoint, ".pt": as_checkpoint, ".npy": as_array, ".yaml": as_yaml}
    yield harm.get(file.suffix, as_pickle)(victim)


@pytest.mark.parametrize("kind", list(KINDS))
def test_files_cut_off_anywhere_or_with_a_flipped_bit_or_with_a_pickle_in_their_place(
    tiny, kind: str, command: str, file: Path, tmp_path: Path
) -> None:
    backup = shutil.copytree(tiny.folder, tmp_path / "backup")
    for content in list(damaged(kind, file, tmp_path / "victim")):
        file.write_bytes(content)
        check(tiny.run(command), kind, file)
        shutil.rmtree(tiny.folder)
        shutil.copytree(backup, tiny.folder)
    assert not (tmp_path / "victim").exists()


def test_no_unharmed_step_left(tiny) -> None:
    for step in (4, 8):
        (tiny.folder / f"logs/ae/saved_models/vqgan_{step}.th").write_bytes(b"")
    assert "vqgan_8.th is damaged" in refused(tiny, STAGE_1)


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


@pytest.mark.parametrize("name", ["../../hparams.yaml", "/etc/hostname", "../saved_models/vqgan_8.th"])
def test_a_state_cannot_name_files_elsewhere(tiny, name: str) -> None:
    file = tiny.logs / "ae/saved_models/vqgan_state_8.th"
    rewritten(file, lambda state: state["siblings"].update({name: state["siblings"]["vqgan_8.th"]}))
    said = told(tiny.run(STAGE_1))
    assert "vqgan_state_8.th is not a training state of this project; trying an older step" in said
    assert name not in said


@pytest.mark.parametrize("key", ["trainer", "averages", "skipped"])
def test_a_state_without_a_part_is_refused(tiny, key: str) -> None:
    rewritten(tiny.logs / "ae/saved_models/vqgan_state_8.th", lambda state: state.pop(key))
    assert "vqgan_state_8.th does not fit these settings" in refused(tiny, STAGE_1)


def spoil(content: Any) -> bool:
    """Make the first weight or moment NaN; whether there was one."""
    if isinstance(content, torch.Tensor) and content.is_floating_point() and content.dim() > 1:
        content.flatten()[0] = torch.nan
        return True
    return isinstance(content, dict) and any(map(spoil, content.values()))


@pytest.mark.parametrize("kind", [*CHECKED[:-1], "optimiser", "head of a likelihood"])
def test_values_that_are_not_finite_are_refused(tiny, kind: str, command: str, file: Path) -> None:
    command = command.replace("--train_steps 2", "--train_steps 3")
    rewritten(file, lambda content: spoil(content["trainer"]["head"]) if "key" in content else spoil(content))
    before = {path: path.read_bytes() for path in tiny.folder.rglob("saved_models/*")}
    assert f"{file.relative_to(tiny.folder)} holds values that are not finite (in " in refused(tiny, command)
    assert {path: path.read_bytes() for path in tiny.folder.rglob("saved_models/*")} == before


def test_predictions_that_overflow_cost_training_its_pictures_and_end_an_experiment(tiny) -> None:
    """The average's are too large here, and the trained weights are as they should be."""
    average = tiny.logs / "prior/saved_models/absorbing_ema_8.th"
    rewritten(average, lambda content: [value.fill_(3e38) for value in content.values() if value.dim() > 1])
    pictures = "--steps_per_save_output 1 --steps_per_display_output 0"
    said = told(tiny.run(f"train_sampler.py --resume --log_dir prior --train_steps 10 {pictures}"))
    assert said.count("WARNING: no picture of samples after step") == 2
    assert "after step 9: the prior's predictions are not finite in float32: take the weights of another step" in said
    assert not list((tiny.logs / "prior/images").glob("samples*10*"))
    assert (tiny.logs / "prior/saved_models/absorbing_state_10.th").exists()
    for command in (SAMPLES, LARGER, SAMPLES.replace("n_samples 2", "n_samples 2 --sample_type mlm")):
        ended = tiny.run(command)
        assert ended.code == 1
        assert "error: the prior's predictions are not finite in float32" in told(ended)
    assert tiny.run(f"{SAMPLES} --no_ema").code == 0
