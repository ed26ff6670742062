"""Rows of the prior: sampling, training, autoregressive sampling, and how its cost grows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.baseline import prior as published
from benchmarks.measure import Row, Timing, flops, gemm_rate, growth, interleave, peak_memory, seconds_of, wait
from benchmarks.scale import Scale, of_24
from hparams.resolve import resolve
from hparams.settings.stages import PriorStage
from models.prior.absorbing import AbsorbingDiffusion
from models.prior.autoregressive import AutoregressivePrior
from models.prior.diffusion import sample_mask, sample_time
from models.sampling.plans import diffusion_plan
from models.sampling.rounds import Drawing, Wrap
from utils.machine.compiling import captures_graphs, compile_blocks
from utils.machine.cuda_graphs import EAGER_CALLS, Captured
from utils.machine.devices import pick_amp_dtype
from utils.machine.evaluation import evaluating
from utils.machine.seeding import make_generator, seed_global
from utils.pretrained.building import build_prior
from utils.runs.job import Job
from utils.training.prior_trainer import PriorTrainer

K, N, T, WIDTH, HEADS = 1024, 256, 256, 512, 8


class _EnoughError(Exception):
    """Ends a sampling that has been timed for long enough."""


def settings(layers: int, *, sampler: str = "absorbing", tokens: int = N, **changes: Any) -> PriorStage:
    """The published prior with fewer layers, or another number of tokens."""
    side = round(tokens**0.5)
    flags = {"dataset": "churches", "sampler": sampler, "ae_load_dir": "vqgan", "bert_n_layers": layers, "ema": True}
    return resolve(PriorStage, flags | {"img_size": 16 * side} | changes)


def shipped(layers: int, device: torch.device, **changes: Any) -> Any:
    """The shipped prior with random weights in which places differ."""
    seed_global(0)
    prior = build_prior(settings(layers, **changes).prior, K)
    torch.nn.init.normal_(
        prior.get_parameter("_denoise_fn.pos_emb" if changes.get("sampler") != "autoregressive" else "net.pos_emb"),
        std=0.02,
    )
    return prior.to(device)


def baseline(net: torch.nn.Module, layers: int, device: torch.device, *, causal: bool = False) -> published.Transformer:
    """The published Transformer with the weights of a shipped one."""
    model = published.Transformer(K, K if causal else K + 1, WIDTH, HEADS, layers, N, causal)
    weights = {name: value for name, value in net.state_dict().items() if not name.endswith("attn.mask")}
    model.load_state_dict(weights)
    return model.to(device)


def amp(device: torch.device, enabled: bool = True) -> torch.autocast:
    return torch.autocast(device.type, dtype=pick_amp_dtype(device, True, "auto"), enabled=enabled)


def wrapper(device: torch.device) -> Wrap | None:
    """What the scripts give to `samples`."""
    return Captured if captures_graphs("auto", device) else None


# --- sampling -----------------------------------------------------------------------------------------------------


def sampling(scale: Scale, device: torch.device) -> Row:
    """Time per evaluation of a batch, times evaluations per image: 256 in lock-step, fewer by events."""
    prior = shipped(scale.sample_layers, device).eval()
    literal = baseline(prior._denoise_fn, scale.sample_layers, device).eval()
    x, places = torch.randint(K + 1, (2, N), device=device), torch.arange(3, device=device)[None]
    with torch.no_grad():
        difference = (literal(x) - prior.logits(x)).abs().max().item()
        published_work = flops(lambda: literal(x[:1]))
        work = flops(lambda: prior.logits_at(x[:1], places))  # of compiled layers it could not be counted
    compile_blocks(prior, "auto", device)
    seconds: dict[str, list[float]] = {"baseline": [], "float32": [], "amp": []}
    for name in ("float32", "amp"):
        lock_step = published.lock_step_samples(literal, scale.sample_batch, N, mask_id=K, steps=T, temp=1.0)
        _time_events(prior, lock_step, name, seconds, scale, device)
    evaluations = statistics.mean(_events_per_image(range(2000)))
    row = Row(
        name="sampling, T = 256",
        unit="s per image",
        reduced=", ".join(
            filter(None, [of_24(scale.sample_layers), f"{scale.evaluations} evaluations timed, and scaled"])
        ),
        target="≥ 1.5 × float32, ≥ 4 × --amp" if device.type == "cpu" else "≥ 12 × --amp, ≥ 50% MFU",
    )
    row.timings = {
        name: Timing.of(values).scaled((T if name == "baseline" else evaluations) / scale.sample_batch)
        for name, values in seconds.items()
    }
    row.checks["largest difference of logits, same weights"] = difference
    row.checks["evaluations per image ≤ 165"] = evaluations <= 165
    row.figures["evaluations per image"] = round(evaluations, 1)
    row.figures["GFLOP per evaluation of an image, baseline"] = round(published_work / 1e9, 2)
    row.figures["GFLOP per evaluation of an image, here"] = round(work / 1e9, 2)
    if scale.drawn:
        row.figures[f"images/s, --amp, {scale.drawn} drawn from start to end"] = round(
            scale.drawn / _whole(prior, scale, device), 2
        )
    for name, dtype in (("float32", torch.float32), ("amp", pick_amp_dtype(device, True, "auto") or torch.float32)):
        rate = work * scale.sample_batch / statistics.median(seconds[name])
        row.figures[f"share of the {name} product rate"] = round(rate / gemm_rate(device, dtype), 3)
    return row


def _time_events(
    prior: AbsorbingDiffusion,
    lock_step: Iterator[Tensor],
    name: str,
    seconds: dict[str, list[float]],
    scale: Scale,
    device: torch.device,
) -> None:
    """Time `scale.rounds` of event-driven sampling at a time, and a step in lock-step between each two times."""
    warmup = EAGER_CALLS + 2
    start, done = 0.0, -warmup

    def timed(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        wrap = wrapper(device)
        inner = wrap(draw) if wrap else draw

        def one(*inputs: Tensor) -> Tensor:
            nonlocal start, done
            if done >= 0 and done % scale.rounds == 0:
                wait(device)
                now = time.perf_counter()
                if done:
                    seconds[name].append((now - start) / scale.rounds)
                with torch.autocast(device.type, enabled=False):
                    next(lock_step)
                    wait(device)
                if done:
                    seconds["baseline"].append(time.perf_counter() - now)
                if done >= scale.evaluations:
                    raise _EnoughError
                start = time.perf_counter()
            done += 1
            return inner(*inputs)

        return one

    generators = (make_generator("cpu", "samples", index) for index in range(10 * scale.sample_batch))
    try:
        with evaluating(prior), amp(device, name == "amp"):
            for _ in prior.samples(generators, Drawing(scale.sample_batch, wrap=timed)):
                pass
    except _EnoughError:
        pass


def _whole(prior: AbsorbingDiffusion, scale: Scale, device: torch.device) -> float:
    """Seconds of sampling, compiled before."""
    generators = (make_generator("cpu", "samples", index) for index in range(scale.drawn))
    with evaluating(prior), amp(device):
        return seconds_of(
            lambda: list(prior.samples(generators, Drawing(scale.sample_batch, wrap=wrapper(device)))), device
        )


def _events_per_image(indices: range) -> Iterator[int]:
    start = torch.full((N,), K)
    for index in indices:
        plan = diffusion_plan(start, mask_id=K, steps=T, generator=make_generator("cpu", "samples", index))
        yield len(list(plan.events))


# --- training -----------------------------------------------------------------------------------------------------


def trainer(
    scale_layers: int, device: torch.device, *, use_amp: bool, tokens: int = N, compiled: str = "auto"
) -> PriorTrainer:
    stage = settings(scale_layers, tokens=tokens, warmup_iters=0, compile=compiled)
    prior = shipped(scale_layers, device, tokens=tokens)
    job = Job(replace(stage, run=replace(stage.run, amp=use_amp)), device)
    return PriorTrainer(job, stage.training, stage.prior, prior)


def literal_step(
    ours: PriorTrainer, layers: int, device: torch.device, amp_dtype: torch.dtype | None = None
) -> Callable[[Tensor, int], float]:
    """The published step with the weights that `ours` has now, on the same times and masks."""
    net = baseline(ours.prior._denoise_fn, layers, device).train()
    model = published.Trainer(net, mask_id=K, total_steps=T, lr=2e-4, beta=0.995, amp_dtype=amp_dtype)

    def step(ids: Tensor, number: int) -> float:
        generator = make_generator(device, 0, "prior", number)
        t = sample_time(len(ids), T, generator)
        mask = sample_mask(t, T, ids.shape[1], "random", generator)
        loss = model.step(ids, t, mask)
        if number and number % 10 == 0:
            model.update_average()
        return loss

    return step


def training(scale: Scale, device: torch.device) -> Row:
    """A step on a batch: forward, backward, Adam, and the average when it is due."""
    trainers = {name: trainer(scale.layers, device, use_amp=name == "amp") for name in ("float32", "amp")}
    literals = {"baseline": literal_step(trainers["float32"], scale.layers, device)}
    if scale.float16_baseline:
        literals["baseline float16"] = literal_step(trainers["float32"], scale.layers, device, torch.float16)
    literal = literals["baseline"]
    ids = torch.randint(K, (scale.train_batch, N), device=device, generator=make_generator(device, "ids"))
    row = Row(
        name=f"prior training, batch {scale.train_batch} × {N} tokens",
        unit="s per step",
        reduced=of_24(scale.layers),
        target="float32 not slower and ≥ 85% of the product rate, ≥ 2.3 × --amp"
        if device.type == "cpu"
        else "--amp ≥ 4 × the float16 baseline, ≥ 100 steps/s, ≥ 50% MFU at batch 128",
    )
    counters = dict.fromkeys([*literals, "float32", "amp"], -1)
    losses = {}

    def one(name: str) -> None:
        counters[name] += 1
        losses[name] = (literals[name] if name in literals else trainers[name].step)(ids, counters[name])

    # Of the first steps, in which the moments are made: of the replay of a CUDA graph nothing would be seen.
    peaks = {name: peak_memory(partial(one, name), device) for name in counters}
    loss = losses["float32"]["loss"].item()
    for name in literals:
        half = name.removeprefix("baseline")
        row.checks[f"relative difference of the losses{half}, same weights and masks"] = abs(losses[name] / loss - 1)
    row.timings = interleave({name: partial(one, name) for name in counters}, scale.repeats, device, burst=scale.burst)
    work = flops(lambda: literal(ids, 1))
    row.figures["GFLOP per step"] = round(work / 1e9, 1)
    for name, dtype in (("float32", torch.float32), ("amp", pick_amp_dtype(device, True, "auto") or torch.float32)):
        share = work / row.timings[name].median / gemm_rate(device, dtype)
        row.figures[f"share of the {name} product rate"] = round(share, 3)
    row.figures["steps per s, amp"] = round(1 / row.timings["amp"].median, 2)
    if scale.float16_baseline:
        times = row.timings["baseline float16"].median / row.timings["amp"].median
        row.figures["amp, times faster than the float16 baseline"] = round(times, 2)
    for name, peak in peaks.items():
        row.figures[f"peak memory of a first step, {name}, GiB"] = round(peak, 2)
    if scale.wide_batch:
        torch._dynamo.reset()  # a run has one size of batch, for which alone its code is compiled
        wide = torch.randint(K, (scale.wide_batch, N), device=device)
        wide_step = partial(trainer(scale.layers, device, use_amp=True).step, wide, 1)
        seconds = interleave({"": wide_step}, scale.repeats, device, burst=scale.burst)[""].median
        rate = work * scale.wide_batch / scale.train_batch / seconds
        row.figures[f"s per step of --amp at batch {scale.wide_batch}"] = round(seconds, 4)
        share = rate / gemm_rate(device, pick_amp_dtype(device, True, "auto") or torch.float32)
        row.figures[f"share of the amp product rate at batch {scale.wide_batch}"] = round(share, 3)
    return row


# --- autoregressive -----------------------------------------------------------------------------------------------


def autoregressive(scale: Scale, device: torch.device) -> Row:
    """All 256 tokens with keys and values kept, against the whole prefix anew for each token."""
    prior: AutoregressivePrior = shipped(scale.layers, device, sampler="autoregressive").eval()
    literal = baseline(prior.net, scale.layers, device, causal=True).eval()
    ids = torch.randint(K, (scale.ar_batch, N), device=device)
    with torch.no_grad():
        difference = (literal(ids[:, :-1]) - prior.logits(ids)).abs().max().item()
    places = range(0, N, scale.ar_every)

    def recompute() -> None:
        for place in places:
            published.recomputed_token(literal, ids[:, :place], 1.0)

    compile_blocks(prior, "auto", device)

    def cached(use_amp: bool) -> None:
        generators = (make_generator("cpu", index) for index in range(scale.ar_batch))
        with amp(device, use_amp):
            list(prior.samples(generators, Drawing(scale.ar_batch, wrap=wrapper(device))))

    row = Row(
        name=f"autoregressive sampling, {N} tokens, batch {scale.ar_batch}",
        unit="s per batch",
        reduced=", ".join(
            filter(None, [of_24(scale.layers), f"baseline: 1 of {scale.ar_every} places timed, and scaled"])
        ),
        target="≥ 10 × recomputing the prefix",
    )
    with torch.no_grad():
        row.checks["largest difference of logits, same weights"] = difference
        runs = {"baseline": recompute, "float32": partial(cached, False), "amp": partial(cached, True)}
        timings = interleave(runs, min(3, scale.repeats), device, 1)
    row.timings = timings | {"baseline": timings["baseline"].scaled(N / len(places))}
    return row


# --- growth -------------------------------------------------------------------------------------------------------


def growth_of_training(scale: Scale, device: torch.device) -> Row:
    """Time and memory of a float32 step against batch, tokens and depth; not compiled, which takes longer each time."""
    few, batch = max(1, scale.layers // 3), scale.grown_batch
    sweeps = {
        "batch": [(few, batch * times, N) for times in (1, 2, 4)],
        "tokens": [(few, batch, side**2) for side in (16, 24, 32)],
        "depth": [(few * times, batch, N) for times in (1, 2, 4)],
    }
    sizes: dict[str, Callable[[tuple[int, int, int]], int]] = {
        "batch": lambda run: run[1],
        "tokens": lambda run: run[2],
        "depth": lambda run: run[0],
    }
    row = Row(
        name="growth of a prior's training step",
        unit="s per step",
        reduced=f"{few} layers at batch {batch} and {N} tokens where not varied",
        target="stated",
    )
    for axis, runs in sweeps.items():
        medians, peaks = [], []
        for layers, images, tokens in runs:
            model = trainer(layers, device, use_amp=False, tokens=tokens, compiled="off")
            ids = torch.randint(K, (images, tokens), device=device)
            step = partial(model.step, ids, 1)
            timing = interleave({axis: step}, 3, device)[axis]
            row.timings[f"{axis} {sizes[axis]((layers, images, tokens))}"] = timing
            medians.append(timing.median)
            peaks.append(peak_memory(step, device))
        values = [float(sizes[axis](run)) for run in runs]
        row.figures[f"time ∝ {axis}^"] = round(growth(values, medians), 2)
        row.figures[f"memory ∝ {axis}^"] = round(growth(values, [max(peak, 1e-3) for peak in peaks]), 2)
    return row
