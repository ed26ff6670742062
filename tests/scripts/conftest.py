"""The scripts as a user runs them: from a shell, in a working directory of their own, with small models."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from warm import Ended, Warm

REPO = Path(__file__).parents[2]

# Nothing listens on port 9, so that a dashboard which happens to run stays empty.
_EVERYWHERE = "--device cpu --num_workers 0 --visdom_port 9 --sinks visdom"
_FLAGS = {
    "RUN": f"--dataset toy_churches --toy_images 96 --batch_size 8 {_EVERYWHERE}",
    "EVERYWHERE": _EVERYWHERE,
    "VQGAN": "--nf 32 --ch_mult 1 2 --res_blocks 1 --attn_resolutions 8 --emb_dim 16 --codebook_size 32 --img_size 16 "
    "--ndf 8 --disc_layers 1",
    "PRIOR": "--bert_n_emb 32 --bert_n_head 2 --bert_n_layers 1",
}


class Shell:
    """Runs the project's scripts in `folder`. In a command, {RUN}, {VQGAN} and {PRIOR} stand for small settings.

    With `warm`, commands without words for the interpreter are forked from a process that has torch loaded. Keywords
    are environment variables.
    """

    def __init__(self, folder: Path, warm: Warm | None = None, **env: str) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self._warm, self._changed = warm, env
        self._started: list[subprocess.Popen[str]] = []
        # Compiled modules are kept: half of a short run would go into compiling torch anew.
        dropped = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
        self._env = {name: value for name, value in os.environ.items() if name not in dropped}
        self._env |= {"OMP_NUM_THREADS": "1", "COLUMNS": "1000", **env}

    def run(self, command: str, *python: str) -> Ended:
        """Run `script.py flags …`, with `python` as words for the interpreter itself."""
        command = command.format(**_FLAGS)
        if self._warm and not python:
            return self._warm.wait(self._warm.start(command, self.folder, **self._changed))
        script, *words = shlex.split(command)
        done = subprocess.run(
            [sys.executable, *python, REPO / script, *words],
            cwd=self.folder,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a command in the background."""
        script, *words = shlex.split(command.format(**_FLAGS))
        process = subprocess.Popen(
            [sys.executable, REPO / script, *words],
            cwd=self.folder,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def end(self) -> None:
        """Kill what was started and still runs, as after a test that failed on its way."""
        for process in self._started:
            process.kill()

    def ok(self, command: str) -> str:
        """What a command that succeeds prints."""
        done = self.run(command)
        assert done.code == 0, f"{command}\n{done.out[-2000:]}\n{done.err[-4000:]}"
        return done.out

    def refused(self, command: str) -> str:
        """The one line on stderr of a command that is refused."""
        return self.line_of(self.run(command), command)

    @staticmethod
    def line_of(done: Ended, command: str) -> str:
        """The one line on stderr of a refusal."""
        assert done.code == 2, f"{command}\n{done.code}\n{done.out[-2000:]}\n{done.err[-4000:]}"
        script = Path(command.split()[0]).name
        assert done.err.startswith(f"{script}: error: "), done.err
        assert done.err.count("\n") == 1, done.err
        assert done.err.endswith("\n")
        return done.err

    def abreast(self, *chains: Sequence[str]) -> list[list[str]]:
        """Run chains of commands that must succeed, two chains at a time; what each command printed."""

        def one_after_another(chain: Sequence[str]) -> list[str]:
            return [self.ok(command) for command in chain]

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one_after_another, chains))

    def snapshot(self) -> dict[str, bytes]:
        """Every file and folder below `folder`, with the files' content."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes() if path.is_file() else b""
            for path in sorted(self.folder.rglob("*"))
        }


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Starts scripts at once, see `tests/helpers/warm.py`."""
    with Warm(tmp_path_factory.mktemp("warm")) as started:
        yield started


# A second each; drawing a summary would take several.
TINY = "--batch_size 4 --device cpu --num_workers 0 --visdom_port 9 --sinks visdom"
TINY_STAGE_1 = (
    f"train_vqgan.py {TINY} --nf 32 --ch_mult 1 1 --res_blocks 1 --attn_resolutions --emb_dim 4 --codebook_size 8 "
    "--img_size 8 --ndf 8 --disc_layers 1 --disc_start_step 2 --perceptual none --ema --steps_per_log 2"
)
TINY_STAGE_2 = (
    f"train_sampler.py {TINY} --ae_load_dir ae --bert_n_emb 8 --bert_n_head 1 --bert_n_layers 1 --total_steps 4 --ema "
    "--steps_per_log 2 --n_samples 2"
)


@pytest.fixture(scope="session")
def tiny_runs(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of both stages on 24 photos, `ae` and `prior`, saved at steps 4 and 8. Not to be changed."""
    warm.folder = folder = tmp_path_factory.mktemp("tiny")
    warm.stage_1, warm.stage_2 = TINY_STAGE_1, TINY_STAGE_2
    (folder / "photos").mkdir()
    dice = np.random.default_rng(0)
    for number in range(24):
        Image.fromarray(dice.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"photos/{number:02}.png")
    (folder / "datasets.yaml").write_text("custom: {paths: photos}\n")
    lengths = "--dataset custom --train_steps 8 --steps_per_checkpoint 4"
    warm.ok(f"{TINY_STAGE_1} {lengths} --log_dir ae")
    warm.ok(f"{TINY_STAGE_2} {lengths} --log_dir prior")
    return folder


@pytest.fixture
def tiny(warm: Warm, tiny_runs: Path, tmp_path: Path) -> Any:
    """`warm` in a copy of the tiny runs' folder, to write to."""
    warm.folder = tmp_path / "tiny"
    shutil.copytree(tiny_runs, warm.folder)
    return warm


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell in an empty folder."""
    shell = Shell(tmp_path)
    yield shell
    shell.end()


@pytest.fixture(scope="session")
def new_shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Shell]]:
    """Makes shells in empty folders, for fixtures that live longer than a test."""
    shells: list[Shell] = []

    def make(warm: Warm | None = None, **env: str) -> Shell:
        shells.append(Shell(tmp_path_factory.mktemp("shell"), warm, **env))
        return shells[-1]

    yield make
    for shell in shells:
        shell.end()


@pytest.fixture(scope="session")
def toy(warm: Warm, new_shell: Callable[..., Shell]) -> Shell:
    """A shell whose logs/ holds runs on toy churches, 20 steps each. Tests must not write to these runs.

    `vqgan`, with `absorbing` and `autoregressive` priors; `nested/gumbel`, a VQGAN too, with `gumbel_prior`.
    """
    shell = new_shell(warm)
    # 7 divides neither 20 nor 10; every setting that matters is typed, so that presets may change.
    cadences = "--train_steps 20 --steps_per_log 7 --steps_per_eval 10 --steps_per_checkpoint 10"
    averages = f"{cadences} --amp --ema --ema_beta 0.9 --steps_per_update_ema 3"
    care = "--codebook_init encoder --restart_dead_codes 5"
    vqgan = f"train_vqgan.py {{RUN}} {{VQGAN}} {averages} --disc_start_step 8"
    prior = f"train_sampler.py {{RUN}} {{PRIOR}} {averages} --warmup_iters 5 --lr 3e-3"
    pictures = "--steps_per_save_output 10 --steps_per_display_output 10"
    shell.abreast(
        [
            f"{vqgan} --log_dir vqgan {pictures} {care}",
            f"{prior} --log_dir absorbing --ae_load_dir vqgan --total_steps 16 --n_samples 6 {pictures}",
            f"{prior} --log_dir autoregressive --sampler autoregressive --ae_load_dir vqgan --no_ema --no_amp",
        ],
        [
            f"{vqgan} --log_dir nested/gumbel --quantizer gumbel --no_ema --steps_per_save_output 10 "
            "--save_individually --horizontal_flip",
            f"{prior} --log_dir gumbel_prior --ae_load_dir nested/gumbel --horizontal_flip --loss_type elbo "
            "--mask_schedule fixed",
        ],
    )
    return shell
