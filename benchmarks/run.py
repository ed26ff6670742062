"""Compare the shipped code with the published algorithm and with the machine's limits.

python -m benchmarks.run --scale cpu      what `make bench` runs: at most ten minutes on two cores
python -m benchmarks.run --scale full     the published sizes; hours on a CPU
python -m benchmarks.run --scale gpu      the same on CUDA
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import torch

from benchmarks import data, metrics, prior, profiles, vqgan
from benchmarks.measure import environment
from benchmarks.report import write_report
from benchmarks.scale import SCALES
from hparams.script import keep_freed_memory
from utils.machine.devices import pick_device

ROWS = {
    "sampling": prior.sampling,
    "prior": prior.training,
    "autoregressive": prior.autoregressive,
    "vqgan": vqgan.training,
    "neighbours": metrics.neighbours,
    "prdc": metrics.precision_recall,
    "larger": metrics.larger,
    "data": data.reading,
    "growth": prior.growth_of_training,
}
RESULTS = Path("benchmarks/results")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=SCALES, default="cpu", help="how large (default: cpu)")
    parser.add_argument(
        "--only", nargs="+", choices=[*ROWS, "profiles"], help="some rows; the others keep their results"
    )
    parser.add_argument("--repeats", type=int, help="of each step that is timed (default: the scale's)")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU (default: PyTorch's own)")
    parser.add_argument("--out", type=Path, help=f"file of the results (default: {RESULTS}/SCALE.json)")
    args = parser.parse_args(arguments)
    keep_freed_memory()  # as the scripts do; the baseline has it too
    device = pick_device("cuda" if args.scale == "gpu" else "cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    scale = SCALES[args.scale]
    if args.repeats:
        scale = dataclasses.replace(scale, repeats=args.repeats)

    out = args.out or RESULTS / f"{args.scale}.json"
    results = json.loads(out.read_text()) if args.only and out.exists() else {"rows": {}, "profiles": {}}
    # What is measured with --only keeps a note of its own: the rest was measured at another time.
    machine, anew = environment(device), results.setdefault("anew", {})
    results.setdefault("environment", machine)
    begin = time.monotonic()
    for name, make in ROWS.items():
        if args.only and name not in args.only:
            continue
        row = make(scale, device)
        results["rows"][name] = dataclasses.asdict(row) | {"speedup": row.speedup}
        if args.only:
            anew[name] = machine
        _save(results, out)
        _show(name, results["rows"][name], time.monotonic() - begin)
    if not args.only or "profiles" in args.only:
        results["profiles"] = profiles.profiles(scale, device)
        if args.only:
            anew["profiles"] = machine
    if not args.only:
        machine["minutes"] = (time.monotonic() - begin) / 60
    _save(results, out)
    print(f"{time.monotonic() - begin:.0f} s in all; results in {out}")
    if out.parent == RESULTS:
        write_report(RESULTS.parent, ROWS)


def _save(results: dict, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")


def _show(name: str, row: dict, seconds: float) -> None:
    print(f"[{seconds:4.0f} s] {row['name']} ({row['reduced'] or 'published size'})")
    for variant, timing in row["timings"].items():
        faster = f"  {row['speedup'][variant]:.2f} ×" if variant in row["speedup"] else ""
        spread = f"({timing['low']:.4g} to {timing['high']:.4g})"
        print(f"    {variant:24} {timing['median']:.4g} {spread} {row['unit']}{faster}")
    for label, value in {**row["checks"], **row["figures"]}.items():
        print(f"    {label}: {value}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
