"""Where the time of a step goes, before and after: the largest items of torch.profiler."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import prior, vqgan
from benchmarks.baseline import prior as published
from benchmarks.scale import Scale
from models.sampling.rounds import Drawing
from utils.machine.compiling import compile_blocks
from utils.machine.cuda_graphs import EAGER_CALLS
from utils.machine.seeding import make_generator

LARGEST = 8


def largest(run: Callable[[], Any], device: torch.device) -> list[dict[str, Any]]:
    """The largest items of a run by their own time: name, share in percent, calls."""
    for _ in range(EAGER_CALLS + 2 if device.type == "cuda" else 1):
        run()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as recorded:
        run()
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    # On CUDA the kernels: the operations that launch them have the same time once more.
    kept = [item for item in recorded.key_averages() if item.device_type.name.lower() == device.type]
    items = sorted(kept, key=lambda item: getattr(item, own), reverse=True)
    total = sum(getattr(item, own) for item in items)
    return [
        {"item": item.key, "percent": round(100 * getattr(item, own) / total, 1), "calls": item.count}
        for item in items[:LARGEST]
    ]


def profiles(scale: Scale, device: torch.device) -> dict[str, list[dict[str, Any]]]:
    """By stage and variant."""
    found = {}
    ids = torch.randint(prior.K, (scale.train_batch, prior.N), device=device, generator=make_generator(device, "ids"))
    trainers = {name: prior.trainer(scale.layers, device, use_amp=name == "amp") for name in ("float32", "amp")}
    literal = prior.literal_step(trainers["float32"], scale.layers, device)
    found["prior training, baseline"] = largest(partial(literal, ids, 1), device)
    for name, ours in trainers.items():
        found[f"prior training, {name}"] = largest(partial(ours.step, ids, 1), device)

    model = prior.shipped(scale.layers, device).eval()
    net = prior.baseline(model._denoise_fn, scale.layers, device).eval()
    lock_step = published.lock_step_samples(net, scale.sample_batch, prior.N, mask_id=prior.K, steps=prior.T, temp=1.0)
    found["sampling, baseline"] = largest(partial(next, lock_step), device)
    compile_blocks(model, "auto", device)
    for name in ("float32", "amp"):
        found[f"sampling, {name}"] = largest(partial(_sample, model, scale.sample_batch, device, name == "amp"), device)

    trainers_of_vqgan = {name: vqgan.trainer(scale, device, use_amp=name == "amp") for name in ("float32", "amp")}
    images = vqgan.random_images(scale, device)
    step = vqgan.literal_step(trainers_of_vqgan["float32"], scale, device).step
    found["VQGAN training, baseline"] = largest(partial(step, images.float() / 255), device)
    for name, ours in trainers_of_vqgan.items():
        found[f"VQGAN training, {name}"] = largest(partial(ours.step, images, 1), device)
    return found


def _sample(model: Any, batch: int, device: torch.device, use_amp: bool) -> None:
    """Four steps of the reverse process, in which every image is due at nearly each."""
    with torch.no_grad(), prior.amp(device, use_amp):
        generators = (make_generator("cpu", index) for index in range(batch))
        list(model.samples(generators, Drawing(batch, steps=4, wrap=prior.wrapper(device))))
