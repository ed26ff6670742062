"""Kill -9 random processes of runs under torchrun --max-restarts, and compare the ends: `make soaktorchrun`.

The disturbed run must end as an undisturbed one of as many processes, to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from soak import hardware

from compare import same_files
from machine import torchrun
from warm import REPO, Shell, free_port

DATA = "--dataset toy_churches --toy_images 96 --no_amp --train_steps {steps} --steps_per_checkpoint {every}"
COMMANDS = {
    "vqgan": f"{Shell.stage_1} {DATA} --diff_aug",
    "absorbing": f"{Shell.stage_2} {DATA} --warmup_iters 10 --steps_per_display_output 0 --steps_per_save_output 0",
}


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
    process = torchrun(folder, options.processes, options.kills + 5, f"{command} --log_dir disturbed", free_port())
    run, kills, killed, at_start = folder / "logs/disturbed", [], 0, False
    while process.poll() is None:
        time.sleep(0.02)
        there = workers(process.pid)
        moment = at_start or max(states(run), default=0) > killed
        if len(kills) == options.kills or len(there) < options.processes or not moment:
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
    with tempfile.TemporaryDirectory() as name:
        folder, logs = Path(name), Path(name) / "logs"
        for kind, command in COMMANDS.items():
            command = command.format(**told)
            undisturbed = logs / ("ae" if kind == "vqgan" else "undisturbed")
            whole = torchrun(folder, options.processes, 0, f"{command} --log_dir {undisturbed.name}", free_port())
            assert whole.wait() == 0, (folder / "torchrun.txt").read_text()[-3000:]
            began, (before, last) = time.monotonic(), list(states(undisturbed).values())[-2:]
            status, kills = disturb(folder, command, last - before, options)
            assert status == 0, (folder / "torchrun.txt").read_text()[-3000:]
            ends = (f"saved_models/{kind}{ema}_{options.steps}.th" for ema in ("", "_ema"))
            same = all(same_files(undisturbed / end, logs / "disturbed" / end) for end in ends)
            seconds = round(time.monotonic() - began)
            result[kind] = {"exit_status": status, "kills": kills, "seconds": seconds, "bit_identical": same}
            print(kind, "bit-identical" if same else "NOT IDENTICAL", f"after {len(kills)} kills", flush=True)
            (logs / "disturbed").rename(logs / f"disturbed_{kind}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    ends = [result[kind] for kind in COMMANDS]
    sys.exit(not all(end["bit_identical"] and len(end["kills"]) == options.kills for end in ends))


if __name__ == "__main__":
    main()
