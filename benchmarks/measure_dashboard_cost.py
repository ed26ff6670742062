"""What watching a run costs: time per logged step of all that a run reports, with a visdom server in every state.

    python benchmarks/measure_dashboard_cost.py --out benchmarks/results/dashboard_cost.json

Reports as a training run makes them are timed on the training thread; the visdom sink's thread runs beside it.
`per_step_ms` is the larger of median wall time and mean processor time of a logged step, over the published
`--steps_per_log` 10, and the time to hand a picture over, by the published 5,000 steps between pictures; its file is
written whatever sinks there are, and `summary.png` is drawn by another process. `share_of_step` compares with
`--step_ms`; the published runs took 206 ms a step on an RTX 2080 Ti (ten days for 2.2 and 2.0 million steps).
"""

from __future__ import annotations

import argparse
import json
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from signal import SIGCONT, SIGSTOP

import requests
import torch

from hparams.fields import values_of
from hparams.resolve import resolve
from hparams.settings.stages import PriorStage, VQGANStage
from utils.data.pictures import image_grid
from utils.reporting.sinks import open_sinks
from utils.reporting.summary import draw_summary
from utils.reporting.training_report import TrainingReport
from utils.runs.job import Job
from utils.runs.run_folder import ABSORBING, VQGAN, RunFolder

STEPS_PER_LOG, STEPS_PER_PICTURE = 10, 5_000  # as published
VISDOM = """
import sys
sys.modules["torch"] = None  # which the server makes no use of
from visdom.server.run_server import download_scripts_and_run
download_scripts_and_run()
"""
TERMS = ("loss", "l1", "perceptual", "g_loss", "d_loss", "disc_weight", "codebook", "batch_perplexity", "lr")


@contextmanager
def visdom(state: str, folder: Path) -> Iterator[int]:
    """A port with a visdom server that is `well`, `hung` or `absent`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    if state == "absent":
        yield port
        return
    words = [sys.executable, "-c", VISDOM, "-port", str(port), "-bind_local", "-env_path", str(folder)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                requests.post(f"http://127.0.0.1:{port}/env_state", json={}, timeout=30)
                break
            except requests.ConnectionError:
                if server.poll() is not None:
                    sys.exit("visdom does not start: see the README's section on closed networks")
                time.sleep(0.1)
        if state == "hung":
            server.send_signal(SIGSTOP)
        yield port
    finally:
        server.send_signal(SIGCONT)
        server.kill()
        server.wait()


def measure(kind: str, state: str, logs: int, pause: float) -> dict[str, float]:
    """Milliseconds on the training thread: of a logged step, of a picture, of closing; and of drawing the page."""
    with tempfile.TemporaryDirectory() as name, visdom(state, Path(name)) as port, ExitStack() as stack:
        typed = {
            "dataset": "churches",
            "visdom_port": port,
            "quiet": True,
            "steps_per_eval": 5000,
            "sinks": ("visdom",),
        }
        if kind == VQGAN:
            settings = resolve(VQGANStage, typed)
        else:
            settings = resolve(PriorStage, {**typed, "ae_load_dir": "vqgan"}, logs=Path(name))
        job = stack.enter_context(Job(settings, torch.device("cpu"), open_sinks=open_sinks))
        job.folder = RunFolder("run", Path(name))
        job.take_folder(resume_step=None)
        report = TrainingReport(job, values_of(settings), kind, start=0, kept=False)
        seconds = {"data": 0.01, "step": 2.0, "other": 0.01}
        spent, worked = [], []
        for number in range(1, logs + 1):
            values = torch.rand(len(TERMS)).tolist()
            if kind == VQGAN:
                means, vectors = dict(zip(TERMS, values, strict=True)), {"code_counts": torch.rand(1024)}
            else:
                means = {"loss": values[0], "elbo_bits_per_token": values[1], "lr": values[2]}
                vectors = {"loss_by_time": torch.rand(256)}
            begin, work = time.perf_counter(), time.thread_time()
            report.logged(number * 10, means, vectors, steps=10, seconds=seconds, skipped=0)
            worked.append(time.thread_time() - work)
            spent.append(time.perf_counter() - begin)
            time.sleep(pause)
        grid = image_grid(torch.randint(256, (64, 3, 256, 256), dtype=torch.uint8), 8)
        begin = time.perf_counter()
        job.record.picture(logs * 10, "samples", grid, write=False)
        picture = time.perf_counter() - begin
        begin = time.perf_counter()
        report.close()
        stack.close()
        closing = time.perf_counter() - begin
        begin = time.perf_counter()
        draw_summary(job.folder)
        page = time.perf_counter() - begin
    return {
        "log_median_ms": 1000 * statistics.median(spent),
        "log_processor_mean_ms": 1000 * statistics.mean(worked),
        "log_worst_ms": 1000 * max(spent),
        "picture_ms": 1000 * picture,
        "close_ms": 1000 * closing,
        "summary_page_ms": 1000 * page,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=int, default=300, help="logged steps to time")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between two: the work that they report on")
    parser.add_argument("--step_ms", type=float, default=100.0, help="a training step to compare with, in ms")
    parser.add_argument("--out", type=Path, help="file for the result, as JSON")
    args = parser.parse_args()

    measured = {}
    for kind in (VQGAN, ABSORBING):
        for state in ("well", "absent", "hung"):
            found = measure(kind, state, args.logs, args.pause)
            per_log = max(found["log_median_ms"], found["log_processor_mean_ms"])
            per_step = per_log / STEPS_PER_LOG + found["picture_ms"] / STEPS_PER_PICTURE
            measured[f"{kind}, server {state}"] = {
                **{name: round(value, 2) for name, value in found.items()},
                "per_step_ms": round(per_step, 4),
                "share_of_step": round(per_step / args.step_ms, 6),
            }
            print(f"{kind}, server {state}: {measured[f'{kind}, server {state}']}", flush=True)
    result = {
        "command": "python " + " ".join(sys.argv),
        "step_ms": args.step_ms,
        "measured": measured,
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {name: version(name) for name in ("torch", "numpy", "visdom", "matplotlib")},
        "python": platform.python_version(),
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
