"""Kill -9 random processes of runs under torchrun --max-restarts, and compare the ends: `make soaktorchrun`.

The disturbed run must end as an undisturbed one of as many processes, to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from soak import hardware

from compare import same_files

REPO = Path(__file__).parents[1]
EVERYWHERE = "--dataset toy_churches --toy_images 96 --device cpu --num_workers 0 --visdom_port 9 --ema --no_amp"
SIZES = (
    "--nf 32 --ch_mult 1 2 --res_blocks 1 --attn_resolutions 8 --emb_dim 16 --codebook_size 32 --img_size 8 --ndf 8 "
    "--disc_layers 1 --perceptual none"
)
VQGAN = f"train_vqgan.py {EVERYWHERE} {SIZES} --disc_start_step 3 --diff_aug"
PRIOR = (
    f"train_sampler.py {EVERYWHERE} --bert_n_emb 32 --bert_n_head 2 --bert_n_layers 1 --total_steps 8 --lr 1e-3 "
    "--warmup_iters 10 --ae_load_dir vqgan --steps_per_display_output 0 --steps_per_save_output 0"
)
COMMANDS = {"vqgan": VQGAN, "absorbing": PRIOR}


def torchrun(folder: Path, processes: int, restarts: int, command: str) -> subprocess.Popen[bytes]:
    """Start a command under torchrun in a working directory; its words go to `out.txt` there."""
    launcher = f"-m torch.distributed.run --standalone --nproc_per_node={processes} --max-restarts={restarts}"
    script, *words = shlex.split(command)
    with (folder / "out.txt").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, *launcher.split(), REPO / script, *words],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def workers(launcher: int) -> dict[int, int]:
    """The processes that a torchrun has started: rank → process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == launcher:
                environment = dict(pair.partition("=")[::2] for pair in (folder / "environ").read_text().split("\0"))
                found[int(environment["RANK"])] = int(folder.name)
        except (OSError, KeyError, ValueError):
            continue
    return found


def newest(saved: Path, kind: str) -> int:
    """The newest step that has a training state."""
    return max((int(file.stem.rsplit("_", 1)[1]) for file in saved.glob(f"{kind}_state_*.th")), default=0)


def between_checkpoints(saved: Path, kind: str) -> float:
    """Seconds between a run's last two training states."""
    before, last = sorted(file.stat().st_mtime for file in saved.glob(f"{kind}_state_*.th"))[-2:]
    return last - before


def disturb(folder: Path, kind: str, command: str, pause: float, options: argparse.Namespace) -> dict[str, Any]:
    """Run a command, killing `options.kills` of its processes as it goes on; what was killed when.

    Every fifth time, on average, a process dies at its start; else within `pause` seconds after a checkpoint.
    """
    chance = random.Random(options.seed)
    process = torchrun(folder, options.processes, options.kills + 5, f"{command} --log_dir disturbed")
    saved, kills, killed, at_start = folder / "logs/disturbed/saved_models", [], 0, False
    while process.poll() is None:
        time.sleep(0.02)
        there = workers(process.pid)
        if len(kills) == options.kills or len(there) < options.processes:
            continue
        step = newest(saved, kind)
        if at_start:
            time.sleep(chance.uniform(0, 4))
        elif step <= killed:
            continue
        else:
            time.sleep(chance.uniform(0, pause))
        rank = chance.choice(sorted(there))
        try:
            os.kill(there[rank], signal.SIGKILL)
        except ProcessLookupError:
            continue
        killed = newest(saved, kind)
        kills.append({"rank": rank, "newest_step": killed, "at_start": at_start})
        print(f"{kind}: kill {len(kills)}/{options.kills}, rank {rank}, after step {killed}", flush=True)
        at_start = chance.random() < 0.2
    return {"exit_status": process.returncode, "kills": kills}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--every", type=int, default=5, help="steps between two checkpoints")
    parser.add_argument("--stages", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=REPO / "benchmarks/results/soak_torchrun.json")
    options = parser.parse_args()
    options.steps = options.every * (6 * options.kills + 6)
    told = {name: value for name, value in vars(options).items() if name not in ("out", "stages")}
    result: dict[str, Any] = {"command": "python tests/soak_torchrun.py", **told, **hardware()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cadences = f"--batch_size 4 --train_steps {options.steps} --steps_per_checkpoint {options.every}"
        if "vqgan" not in options.stages:
            short = f"{VQGAN} --batch_size 4 --train_steps 5 --log_dir vqgan"
            assert torchrun(folder, 1, 0, short).wait() == 0, (folder / "out.txt").read_text()[-3000:]
        for kind in options.stages:
            command = f"{COMMANDS[kind]} {cadences}"
            undisturbed = "vqgan" if kind == "vqgan" else "undisturbed"
            whole = torchrun(folder, options.processes, 0, f"{command} --log_dir {undisturbed}")
            assert whole.wait() == 0, (folder / "out.txt").read_text()[-3000:]
            began = time.monotonic()
            pause = between_checkpoints(folder / f"logs/{undisturbed}/saved_models", kind)
            outcome = disturb(folder, kind, command, pause, options)
            runs = [folder / "logs" / run / "saved_models" for run in (undisturbed, "disturbed")]
            outcome["seconds"] = round(time.monotonic() - began)
            outcome["bit_identical"] = outcome["exit_status"] == 0 and all(
                same_files(*(run / f"{kind}{ema}_{options.steps}.th" for run in runs)) for ema in ("", "_ema")
            )
            result[kind] = outcome
            if outcome["exit_status"]:
                print((folder / "out.txt").read_text()[-3000:])
            (folder / "logs/disturbed").rename(folder / f"logs/disturbed_{kind}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    good = all(result[kind]["bit_identical"] for kind in options.stages)
    killed = all(len(result[kind]["kills"]) == options.kills for kind in options.stages)
    print("bit-identical" if good else "NOT IDENTICAL", "" if killed else "(a run ended before all kills)")
    sys.exit(not (good and killed))


if __name__ == "__main__":
    main()
