"""Time and memory of PRDC at the paper's size, and its agreement with the prdc package where that fits.

    python -m benchmarks.measure_prdc --n 50000 --d 2048 --out benchmarks/results/prdc_50000x2048.json

Features are drawn from a Gaussian whose variances fall as 1/i, as those of trained networks do.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from pathlib import Path

import prdc
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.measure import environment, peak_rss_gib
from utils.metrics.prdc import block_count, compute_prdc


def draw(n: int, d: int, seed: int, scale: float) -> Tensor:
    features = torch.randn((n, d), generator=torch.Generator().manual_seed(seed))
    return features.mul_(scale * torch.arange(1, d + 1).rsqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=50_000, help="real features, and as many fake ones")
    parser.add_argument("--d", type=int, default=2048, help="their width")
    parser.add_argument("--nearest_k", type=int, default=3)
    parser.add_argument("--check_n", type=int, default=5000, help="size at which the package computes it too")
    parser.add_argument("--out", type=Path, help="file for the result, as JSON")
    args = parser.parse_args()

    real, fake = draw(args.n, args.d, 0, 1.0), draw(args.n, args.d, 1, 0.95)
    wall, cpu = time.perf_counter(), time.process_time()
    with tqdm(total=block_count(args.n, args.n), unit="block") as progress:
        values = compute_prdc(real, fake, args.nearest_k, tick=progress.update)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = peak_rss_gib()  # before the package takes its share

    few_real, few_fake = real[: args.check_n], fake[: args.check_n]
    ours = compute_prdc(few_real, few_fake, args.nearest_k)
    with contextlib.redirect_stdout(io.StringIO()):
        package = prdc.compute_prdc(few_real.numpy(), few_fake.numpy(), args.nearest_k)
    result = {
        "values": values,
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
        "peak_rss_gib": round(peak, 2),
        "largest_difference_from_prdc_package": max(abs(ours[name] - float(package[name])) for name in ours),
        "compared_at_n": min(args.check_n, args.n),
        "environment": {
            **environment(real.device),
            "command": " ".join(["python -m benchmarks.measure_prdc", *sys.argv[1:]]),
        },
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
