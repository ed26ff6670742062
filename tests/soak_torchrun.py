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
from contextlib import suppress
from pathlib import Path
from typing import Any

from soak import hardware

from compare import same_files
from warm import REPO, Shell

DATA = "--dataset toy_churches --toy_images 96 --no_amp --train_steps {steps} --steps_per_checkpoint {every}"
COMMANDS = {
    "vqgan": f"{Shell.stage_1} {DATA} --diff_aug",
    "absorbing": f"{Shell.stage_2} {DATA} --warmup_iters 10 --steps_per_display_output 0 --steps_per_save_output 0",
}


def torchrun(folder: Path, processes: int, restarts: int, command: str) -> subprocess.Popen[bytes]:
    """Start a command under torchrun in a working directory; its words go to `out.txt` there."""
    launcher = f"-m torch.distributed.run --standalone --nproc_per_node={processes} --max-restarts={restarts}"
    script, *words = shlex.split(command)
    words = [sys.executable, *launcher.split(), str(REPO / script), *words]
    with (folder / "out.txt").open("ab") as out:
        return subprocess.Popen(
            words, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=out, stderr=subprocess.STDOUT
        )


def workers(launcher: int) -> dict[int, int]:
    """The processes that a torchrun has started: rank → process id."""
    found = {}
    for task in Path(f"/proc/{launcher}/task").iterdir():
        for pid in (task / "children").read_text().split():
            with suppress(OSError, KeyError):  # it has ended, or is no rank
                pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
                found[int(dict(pair.partition("=")[::2] for pair in pairs)["RANK"])] = int(pid)
    return found


def states(run: Path) -> dict[int, float]:
    """When each training state of a run was written, by its step."""
    files = run.glob("saved_models/*_state_*.th")
    return dict(sorted((int(file.stem.rpartition("_")[2]), file.stat().st_mtime) for file in files))


def disturb(folder: Path, command: str, pause: float, options: argparse.Namespace) -> tuple[int, list[dict[str, Any]]]:
    """Run a command, killing `options.kills` of its processes as it goes on: its exit status, what was killed when.

    Every fifth time, on average, a process dies at its start; else within `pause` seconds after a checkpoint.
    """
    chance = random.Random(options.seed)
    process = torchrun(folder, options.processes, options.kills + 5, f"{command} --log_dir disturbed")
    run, kills, killed, at_start = folder / "logs/disturbed", [], 0, False
    while process.poll() is None:
        time.sleep(0.02)
        there = workers(process.pid)
        if len(kills) == options.kills or len(there) < options.processes:
            continue
        if not at_start and max(states(run), default=0) <= killed:
            continue
        time.sleep(chance.uniform(0, 4 if at_start else pause))
        rank = chance.choice(sorted(there))
        with suppress(ProcessLookupError):
            os.kill(there[rank], signal.SIGKILL)
            killed = max(states(run), default=0)
            kills.append({"rank": rank, "newest_step": killed, "at_start": at_start})
            print(f"kill {len(kills)}/{options.kills}, rank {rank}, after step {killed}", flush=True)
            at_start = chance.random() < 0.2
    return process.returncode, kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--every", type=int, default=5, help="steps between two checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=REPO / "benchmarks/results/soak_torchrun.json")
    options = parser.parse_args()
    options.steps = options.every * (6 * options.kills + 6)
    told = {name: value for name, value in vars(options).items() if name != "out"}
    result: dict[str, Any] = {"command": "python tests/soak_torchrun.py", **told, **hardware()}
    good = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, command in COMMANDS.items():
            command = command.format(**told)
            undisturbed = folder / "logs" / ("ae" if kind == "vqgan" else "undisturbed")
            whole = torchrun(folder, options.processes, 0, f"{command} --log_dir {undisturbed.name}")
            assert whole.wait() == 0, (folder / "out.txt").read_text()[-3000:]
            began = time.monotonic()
            before, last = list(states(undisturbed).values())[-2:]
            status, kills = disturb(folder, command, last - before, options)
            ends = (f"saved_models/{kind}{ema}_{options.steps}.th" for ema in ("", "_ema"))
            same = status == 0 and all(same_files(undisturbed / end, folder / "logs/disturbed" / end) for end in ends)
            result[kind] = {"exit_status": status, "kills": kills, "seconds": round(time.monotonic() - began)}
            result[kind]["bit_identical"] = same
            print(kind, "bit-identical" if same else "NOT IDENTICAL", f"after {len(kills)} kills", flush=True)
            print((folder / "out.txt").read_text()[-3000:] if status else "")
            good = good and same and len(kills) == options.kills
            (folder / "logs/disturbed").rename(folder / f"logs/disturbed_{kind}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(not good)


if __name__ == "__main__":
    main()
