"""How training scales over GPUs and machines, on paper: python -m benchmarks.scaling

Bytes are counted from the published models; step times are those of `results/gpu.json`, bandwidths are assumptions;
flags give others.
One step on N processes takes t + max(0, s − h), where t is the step of one process, s the time to average gradients and
h = o·t the part of the step behind which that hides. A ring over N sends 2·(N−1)/N of the gradient bytes per process.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from hparams.resolve import resolve
from hparams.settings.stages import PriorStage, VQGANStage
from utils.pretrained.building import build_prior, build_vqgan

RESULTS = Path(__file__).parent / "results"
MACHINE = 8  # GPUs of a machine
PROCESSES = (1, 2, 4, 8, 16, 32)
BUCKETS = 25  # MiB, of DistributedDataParallel: the last one cannot hide behind the backward pass


@dataclass(frozen=True)
class Stage:
    """One stage's step on one GPU.

    Attributes:
        name: in words.
        batch: images of one process.
        milliseconds: of a step of one process.
        parameters: whose gradients are sent.
        messages: small reductions per step, of some kB, that wait for each other.
        overlap: share of the step, its backward pass, behind which sending hides.
    """

    name: str
    batch: int
    milliseconds: float
    parameters: int
    messages: int
    overlap: float


@dataclass(frozen=True)
class Link:
    """What carries the bytes: GB/s per GPU, each way, as all-reduces reach them, and the time of the smallest one."""

    name: str
    gigabytes: float
    microseconds: float


def step_milliseconds(stage: Stage, processes: int, link: Link, bytes_per_gradient: int) -> float:
    """Expected time of a step, ms."""
    if processes == 1:
        return stage.milliseconds
    sent = 2 * (processes - 1) / processes * stage.parameters * bytes_per_gradient
    sending = 1000 * sent / (link.gigabytes * 1e9)
    last_bucket = min(sending, sending * BUCKETS * 2**20 / (stage.parameters * 4))
    exposed = max(last_bucket, sending - stage.overlap * stage.milliseconds)
    return stage.milliseconds + exposed + stage.messages * link.microseconds / 1000


def count_parameters() -> tuple[int, int]:
    """Parameters of the published models that send gradients each step: stage 1 (both networks), and the prior."""
    stage_1 = resolve(VQGANStage, {"dataset": "churches"})
    vqgan = build_vqgan(stage_1.autoencoder, stage_1.vqgan, perceptual=None)
    idle = sum(parameter.numel() for parameter in vqgan.ae.idle_parameters())
    stage_2 = resolve(PriorStage, {"dataset": "churches", "ae_load_dir": "vqgan"})
    prior = build_prior(stage_2.prior, stage_2.autoencoder.codebook_size)
    used = sum(parameter.numel() for parameter in prior.parameters())
    used -= sum(parameter.numel() for parameter in prior.idle_parameters())
    return sum(parameter.numel() for parameter in vqgan.parameters()) - idle, used


def table(stages: list[Stage], within: Link, between: Link) -> str:
    """Step times, throughput and efficiency by number of processes."""
    rows = []
    for stage in stages:
        for processes in PROCESSES:
            link = within if processes <= MACHINE else between
            cells = []
            for size in (4, 2):
                step = step_milliseconds(stage, processes, link, size)
                rate = 1000 * processes * stage.batch / step
                cells.append(f"{step:.1f} | {rate:,.0f} | {stage.milliseconds / step:.0%}")
            rows.append(f"| {stage.name}, batch {stage.batch} | {processes} | {' | '.join(cells)} |")
    return "\n".join(rows)


def most_processes(stage: Stage, within: Link, between: Link, bytes_per_gradient: int, efficiency: float) -> int:
    """The most of `PROCESSES` that reach an efficiency."""
    times = {n: step_milliseconds(stage, n, within if n <= MACHINE else between, bytes_per_gradient) for n in PROCESSES}
    return max(n for n, milliseconds in times.items() if stage.milliseconds / milliseconds >= efficiency)


def smallest_batch(stage: Stage, link: Link, processes: int, bytes_per_gradient: int, efficiency: float) -> int:
    """Images per process from which on `processes` reach an efficiency, if a step's time grows with its batch."""
    for batch in range(1, 4096):
        grown = Stage(
            stage.name,
            batch,
            stage.milliseconds * batch / stage.batch,
            stage.parameters,
            stage.messages,
            stage.overlap,
        )
        if grown.milliseconds / step_milliseconds(grown, processes, link, bytes_per_gradient) >= efficiency:
            return batch
    raise ValueError("no batch is large enough")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    rows = json.loads((RESULTS / "gpu.json").read_text())["rows"]
    vqgan_ms, prior_ms = (round(1000 * rows[name]["timings"]["amp"]["median"], 1) for name in ("vqgan", "prior"))
    parser.add_argument("--vqgan_ms", type=float, default=vqgan_ms, help="step of stage 1, one GPU, batch 4, 256x256")
    parser.add_argument("--prior_ms", type=float, default=prior_ms, help="step of the prior, one GPU, batch 20")
    parser.add_argument("--within_gbs", type=float, default=200.0, help="GB/s per GPU within a machine (NVLink)")
    parser.add_argument("--between_gbs", type=float, default=20.0, help="GB/s per GPU between machines")
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.md")
    options = parser.parse_args()
    vqgan_parameters, prior_parameters = count_parameters()
    within, between = Link("within a machine", options.within_gbs, 20), Link("between", options.between_gbs, 50)
    # Stage 1: the last layer's gradients, the terms, and three batch norms: fakes and reals forward, fakes twice back.
    stages = [
        Stage("VQGAN", 4, options.vqgan_ms, vqgan_parameters, 2 + 3 * (2 + 3), 0.5),
        Stage("prior", 20, options.prior_ms, prior_parameters, 1, 0.6),
    ]
    bounds = "\n".join(
        f"| {stage.name} | " + " | ".join(str(smallest_batch(stage, between, 32, size, 0.9)) for size in (4, 2)) + " |"
        for stage in stages
    )
    reached = ", ".join(
        f"the {stage.name} up to {most_processes(stage, within, between, 4, 0.9)} "
        f"({most_processes(stage, within, between, 2, 0.9)} in bfloat16)"
        for stage in stages
    )
    text = f"""# Scaling, on paper

Made by `python -m benchmarks.scaling`. Bytes are counted from the published models. Step times are those of one H200
with `--amp` (`gpu.json`), {options.vqgan_ms:g} ms for the VQGAN at batch 4 and {options.prior_ms:g} ms for the prior
at batch 20, replayed as CUDA graphs: under torchrun that is `--compile on`. Launched kernel by kernel a step is longer,
on a slow host several times, and hides more. Bandwidths, as all-reduces reach them, are assumptions:
{options.within_gbs:g} GB/s per GPU within a machine of {MACHINE}, {options.between_gbs:g} GB/s between machines.
Flags give other values; nothing below was timed on more than one GPU.

Per step each process sends and receives about 2·(N − 1)/N times its gradients:

| | parameters with a gradient | float32 | bfloat16 (`--compress_gradients`) |
|---|---|---|---|
| VQGAN and discriminator | {vqgan_parameters / 1e6:.2f} M | {vqgan_parameters * 4 / 1e6:.0f} MB | \
{vqgan_parameters * 2 / 1e6:.0f} MB |
| prior | {prior_parameters / 1e6:.2f} M | {prior_parameters * 4 / 1e6:.0f} MB | {prior_parameters * 2 / 1e6:.0f} MB |

Beside them stage 1 sends {stages[0].messages} messages of some kB (batch-norm moments, the last layer's gradients, the
losses), the prior {stages[1].messages}. Published weights that no pass uses send nothing.

Expected, the batch per process held fixed (ms per step, images per second, efficiency):

| stage | GPUs | float32: ms | images/s | | bfloat16: ms | images/s | |
|---|---|---|---|---|---|---|---|
{table(stages, within, between)}

90% of the rate is kept by {reached} GPUs of these numbers.
Beyond, gradients take longer to send than the backward pass behind which they hide. What to do, in this order:

1. A larger batch per process: from how many images on 32 GPUs reach 90%, if the step's time grows with the batch:

| | float32 | bfloat16 |
|---|---|---|
{bounds}

   The learning rate of the VQGAN follows the global batch, as published; the prior's is the paper's for 20 images.
2. `--compress_gradients`: half the bytes.
3. `--accumulate_steps`: gradients are sent once per update.
4. Sharding optimiser and weights saves memory, not time: 77 M parameters with their gradients, their average and Adam's
   moments take 1.5 GB, so that neither stage needs it.

Experiments send no gradients but those of the log-sigma head. After each batch they gather what came of it (codes,
features, likelihoods or nearest neighbours, some kB per image at most; images where they are to be written), so that
their time falls with the number of processes until there are fewer batches than processes. PRDC's blocks of
distances are shared out too; FID's and KID's distances, which take seconds, stay with the first process.
"""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
