"""The authors' logs folder, dropped in: full-size files in their names and types, through the published commands.

The values are random, since only names, shapes and types are published with the reference data. A command that reads
trained models is one row of `COMMANDS`.
"""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

AE_STEP, PRIOR_STEP = 2_200_000, 2_000_000
KINDS = ("vqgan", "absorbing", "autoregressive")
ENTRIES = {
    "vqgan": "vqgan (nearest, churches/bedrooms/ffhq)",
    "absorbing": "absorbing (churches/bedrooms/ffhq)",
    "autoregressive": "autoregressive",
    "gumbel": "vqgan gumbel: quantizer only",
}
LAST_CONV = "ae.generator.blocks.21"  # its bias makes the images of the averaged model brighter
# Large beside any gradient, so that the next update is known: 0.9 · lr / sqrt(0.999) downwards.
MOMENTS = {"exp_avg": 1e6, "exp_avg_sq": 1e12}
MOVED = 0.9 / math.sqrt(0.999)

AE = f"--ae_load_dir vqgan_churches --ae_load_step {AE_STEP}"
ABSORBING, AUTOREGRESSIVE = (f"--load_dir {kind}_churches --load_step {PRIOR_STEP} --ema" for kind in KINDS[1:])
SHRUNK = "--n_samples 1 --sample_steps 2 --batch_size 1"
FEW = "--split val --features r64 --kid_subsets 0"
SAMPLES = f"experiments/get_samples.py --sampler absorbing --dataset churches --log_dir samples {AE} {ABSORBING}"
# As published, and flags that only shrink the work.
COMMANDS = {
    "absorbing samples": (SAMPLES, SHRUNK),
    "autoregressive samples": (
        f"experiments/get_samples.py --sampler autoregressive --dataset ffhq --log_dir samples_ar {AE} "
        f"{AUTOREGRESSIVE}",
        SHRUNK,
    ),
    "likelihood": (
        f"experiments/calc_approximate_ELBO.py --sampler absorbing --dataset ffhq --log_dir nll_churches {AE} "
        f"{ABSORBING} --steps_per_eval 5000 --train_steps 10000",
        "--train_steps 1 --batch_size 1 --elbo_steps 2",
    ),
    "FID": (
        f"experiments/calc_FID.py --sampler absorbing --dataset churches --log_dir FID_log {AE} {ABSORBING} "
        "--n_samples 50000 --temp 0.9",
        f"{SHRUNK} --n_samples 2 {FEW}",
    ),
    "reconstructions": (f"experiments/calc_VQGAN_FID.py --dataset churches --log_dir recs {AE}", FEW),
    "stage 2": (
        f"train_sampler.py --sampler absorbing --dataset churches --log_dir new_prior {AE} --amp --ema",
        "--batch_size 1 --train_steps 1",
    ),
}
# Training that goes on from a published step for one update: command, learning rate, prefixes of what its optimisers
# move.
RESUMED: dict[str, tuple[str, float, dict[str, str]]] = {
    "vqgan": (
        "train_vqgan.py --dataset churches --log_dir vqgan_on --load_dir vqgan_churches --amp --ema --batch_size 1 "
        f"--perceptual_weights_file logs/vqgan_churches/saved_models/vqgan_{AE_STEP}.th",
        4.5e-6,
        {"ae": "ae.", "disc": "disc."},
    ),
    "absorbing": (
        f"train_sampler.py --sampler absorbing --dataset churches --log_dir absorbing_churches {AE} --amp --ema "
        "--batch_size 1",
        2e-4,
        {"absorbing": ""},
    ),
    "autoregressive": (
        f"train_sampler.py --sampler autoregressive --dataset churches --log_dir autoregressive_on {AE} --amp --ema "
        "--batch_size 1 --load_dir autoregressive_churches",
        2e-4,
        {"autoregressive": ""},
    ),
}


class Logs:
    """The authors' folder, and a shell beside it."""

    def __init__(self, shell: Any, published: dict[str, dict[str, Any]]) -> None:
        self.shell, self.published = shell, published
        self._printed: dict[str, str] = {}
        write_models(self)
        write_lsun(shell.folder / "lsun")
        write_faces(shell.folder / "faces")
        (shell.folder / "datasets.yaml").write_text("churches: {paths: lsun}\nffhq: {paths: faces}\n")

    def models(self, run: str) -> Path:
        return self.shell.logs / run / "saved_models"

    def file(self, kind: str, *, ema: bool) -> Path:
        """The file that a command should take."""
        return self.models(f"{kind}_churches") / f"{kind}{'_ema' if ema else ''}_{step_of(kind)}.th"

    def name(self, kind: str, *, ema: bool = True) -> str:
        """What a command should say of a model file."""
        return str(self.file(kind, ema=ema).relative_to(self.shell.folder))

    def run(self, name: str) -> str:
        """What a command of the table prints; it runs once."""
        if name not in self._printed:
            self._printed[name] = self.ok(" ".join(COMMANDS[name]))
        return self._printed[name]

    def ok(self, command: str) -> str:
        return self.shell.ok(f"{command} {{EVERYWHERE}}")


def step_of(kind: str) -> int:
    return AE_STEP if kind == "vqgan" else PRIOR_STEP


def random_value(name: str, shape: list[int], dtype: str, generator: torch.Generator) -> Tensor:
    """Of a size that keeps activations finite and lets codes differ."""
    if dtype != "float32":
        return torch.full(shape, 3, dtype=getattr(torch, dtype))
    if name.endswith("running_var"):
        return torch.rand(shape, generator=generator) + 0.5
    scale = math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.02
    gain = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0  # of a norm
    value = gain + scale * torch.randn(shape, generator=generator)
    return value.abs() if name.startswith("perceptual.lin") else value  # weights of a distance


def random_model(entries: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    return {name: random_value(name, shape, dtype, generator) for name, (shape, dtype) in entries.items()}


def average_of(model: dict[str, Tensor]) -> dict[str, Tensor]:
    """Another model of the same entries; buffers stay those of the start, as published."""
    average = {name: value * 0.9 if is_parameter(name) else value for name, value in model.items()}
    if f"{LAST_CONV}.bias" in average:
        average[f"{LAST_CONV}.bias"] = model[f"{LAST_CONV}.bias"] + 3
    return average


def is_parameter(name: str) -> bool:
    return not name.endswith(("running_mean", "running_var", "batches_tracked", "_history", "Lt_count", "attn.mask"))


def is_trained(name: str, model: dict[str, Tensor]) -> bool:
    """Whether a parameter has a gradient; Adam keeps nothing for the others."""
    if name.startswith(("ae.generator.logsigma.", "_denoise_fn.start_tok")):
        return False
    if ".conv_out." in name:  # used only where a residual block changes the width
        conv_out = model[name.rsplit(".", 1)[0] + ".weight"]
        return conv_out.shape[0] != conv_out.shape[1]
    return True


def optimiser_state(model: dict[str, Tensor], prefix: str, step: int) -> dict[str, Any]:
    """As torch wrote it when the models were published: counts are plain numbers, groups have fewer entries."""
    names = [name for name in model if name.startswith(prefix) and is_parameter(name)]
    moments = {
        number: {"step": step + 1, **{moment: torch.full_like(model[name], value) for moment, value in MOMENTS.items()}}
        for number, name in enumerate(names)
        if is_trained(name, model)
    }
    group = {"lr": 3e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False}
    return {"state": moments, "param_groups": [{**group, "params": list(range(len(names)))}]}


def write_models(logs: Logs) -> None:
    """Every file of the authors' folder, about 3.4 GB."""
    generator = torch.Generator().manual_seed(0)
    for kind in KINDS:
        step, model = step_of(kind), random_model(logs.published[ENTRIES[kind]], generator)
        raw = logs.file(kind, ema=False)
        raw.parent.mkdir(parents=True)
        torch.save(model, raw)
        torch.save(average_of(model), logs.file(kind, ema=True))
        for name, prefix in RESUMED[kind][2].items():
            torch.save(optimiser_state(model, prefix, step), raw.with_name(f"{name}_optim_{step}.th"))


def write_lsun(folder: Path) -> None:
    """One image, and two to compare with: each costs a second or more at full size."""
    rng = np.random.default_rng(0)
    for split, images in (("train", 1), ("val", 2)):
        path = folder / f"church_outdoor_{split}_lmdb"
        path.mkdir(parents=True)
        with lmdb.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as txn:
            for number in range(images):
                image = Image.fromarray(rng.integers(0, 256, (16, 19, 3), dtype=np.uint8)).resize((304, 256))
                buffer = io.BytesIO()
                image.save(buffer, "WEBP")
                txn.put(f"{number:040x}".encode(), buffer.getvalue())


def write_faces(folder: Path) -> None:
    """One image to train on and one to validate on."""
    folder.mkdir()
    for name in ("0.png", "1.png"):
        noise = np.random.default_rng(len(name)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((256, 256)).save(folder / name)


def load(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=True, mmap=True)


@pytest.fixture(scope="module")
def logs(golden_dir: Path, new_shell: Callable) -> Iterator[Logs]:
    logs = Logs(new_shell(), json.loads((golden_dir / "state_dict_keys.json").read_text()))
    yield logs
    shutil.rmtree(logs.shell.folder)


@pytest.mark.parametrize("name", COMMANDS)
def test_published_commands(logs: Logs, name: str) -> None:
    """They run, and say which files they took: the average."""
    said = logs.run(name)
    for kind in KINDS:
        assert (logs.name(kind) in said) == (f"{kind}_churches" in COMMANDS[name][0])


def test_what_they_say_is_what_they_use(logs: Logs) -> None:
    """The averaged autoencoder makes bright images."""
    logs.run("absorbing samples")
    out = logs.ok(f"{SAMPLES.replace('--ema', '--no_ema')} {SHRUNK} --log_dir no_ema")
    for kind in ("vqgan", "absorbing"):
        assert logs.name(kind, ema=False) in out
    averaged, raw = (
        np.asarray(Image.open(logs.shell.logs / run / "images/samples_000.png")).mean() for run in ("samples", "no_ema")
    )
    assert averaged > raw + 50


def check_resumed(logs: Logs, kind: str) -> str:
    """One update, from the weights, the average and the moments of the published files; returns what was printed."""
    (command, lr, prefixes), step = RESUMED[kind], step_of(kind)
    words = command.split()
    run, end = logs.shell.logs / words[words.index("--log_dir") + 1], step + 2  # the file of step s holds s + 1 updates
    out = logs.ok(f"{command} --load_step {step} --load_optim --train_steps {end} --steps_per_log 1")
    assert f"weights from {logs.name(kind, ema=False)}\n" in out
    assert f"average from {logs.name(kind)}\n" in out
    for name in prefixes:
        assert f"{name} optimiser from logs/{kind}_churches/saved_models/{name}_optim_{step}.th" in out
    (record,) = (line for line in map(json.loads, (run / "metrics.jsonl").open()) if line["split"] == "train")
    assert record["step"] == end
    assert all(math.isfinite(value) for value in record.values() if not isinstance(value, str))

    before, after = load(logs.file(kind, ema=False)), load(run / f"saved_models/{kind}_{end}.th")
    names = check_published(after, logs.published[ENTRIES[kind]])
    for name in filter(is_parameter, names):
        moved = MOVED * lr if is_trained(name, before) else 0
        old, new = tail(before[name]), tail(after[name])
        assert (old - new - moved).abs().max() < 0.05 * lr + 1e-6 * old.abs().max(), name

    average, start = load(run / f"saved_models/{kind}_ema_{end}.th"), load(logs.file(kind, ema=True))
    assert all(torch.equal(tail(average[name]), tail(start[name])) for name in names)  # not yet updated

    optimisers = load(run / f"saved_models/{kind}_state_{end}.th")["trainer"]["optimisers"]
    for name, prefix in prefixes.items():
        moments = optimisers[name]["state"]
        trained = [n for n in names if n.startswith(prefix) and is_parameter(n) and is_trained(n, before)]
        assert len(moments) == len(trained)
        assert {float(entry["step"]) for entry in moments.values()} == {step + 2}
    for file in (run / "saved_models").glob(f"*_{end}.th"):
        file.unlink()
    return out


def check_published(model: dict[str, Tensor], entries: dict[str, Any]) -> list[str]:
    """A model of ours has the published entries, in their order, but for the perceptual network; returns the names."""
    expected = [(name, entry) for name, entry in entries.items() if not name.startswith("perceptual.")]
    found = {name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in model.items()}
    assert list(found.items()) == expected
    return list(model)


def tail(value: Tensor) -> Tensor:
    """The last values of a mapped tensor, so that not all of it need be read."""
    return value.flatten()[-1000:]


def test_stage_1_goes_on(logs: Logs) -> None:
    check_resumed(logs, "vqgan")


def test_stage_2_starts_afresh(logs: Logs) -> None:
    assert "starting, 1 steps to do" in logs.run("stage 2")
    saved_models = logs.models("new_prior")
    check_published(load(saved_models / "absorbing_1.th"), logs.published[ENTRIES["absorbing"]])
    shutil.rmtree(saved_models)


def test_stage_2_goes_on(logs: Logs) -> None:
    """In a run folder of its own, and in the published one. Codes are made once for the same autoencoder."""
    assert "encoding 1 images" in logs.run("stage 2")
    assert "encoding" not in check_resumed(logs, "autoregressive")
    assert "encoding" not in check_resumed(logs, "absorbing")
    files = (logs.shell.logs / "vqgan_churches/latents").glob("*/*.npy")  # other tests' data have two images
    assert [np.load(file).shape for file in files].count((1, 1, 256)) == 1


def test_a_gumbel_autoencoder_of_before_the_likelihood_head(logs: Logs) -> None:
    model = load(logs.file("vqgan", ema=False))
    dropped = ("ae.quantize.", "ae.generator.logsigma.")
    model = {name: value for name, value in model.items() if not name.startswith(dropped)}
    model |= random_model(logs.published[ENTRIES["gumbel"]], torch.Generator().manual_seed(1))
    file = logs.models("vqgan_gumbel") / f"vqgan_{AE_STEP}.th"
    file.parent.mkdir(parents=True)
    torch.save(model, file)
    command = SAMPLES.replace("vqgan_churches", "vqgan_gumbel")
    out = logs.ok(f"{command} {SHRUNK} --log_dir samples_gumbel --quantizer gumbel")
    assert f"autoencoder logs/vqgan_gumbel/saved_models/vqgan_{AE_STEP}.th, " in out
    assert (logs.shell.logs / "samples_gumbel/images/samples_000.png").exists()
