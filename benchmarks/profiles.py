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
from utils.seeding import make_generator

LARGEST = 8

WHY = {
    "aten::mm": "the products of the linear layers, backward, and of the head: the work itself",
    "aten::addmm": "the products of the linear layers, forward: the work itself",
    "aten::bmm": "the attention's two products: the work itself",
    "aten::mkldnn_convolution": "convolutions, forward: the work itself",
    "aten::convolution_backward": "convolutions, backward: the work itself",
    "aten::copy_": "casts between float32 and the half type that --amp asks for, and transposes of heads",
    "aten::native_layer_norm": "normalisation, in float32; bound by memory",
    "aten::native_group_norm": "normalisation, in float32; bound by memory",
    "aten::native_group_norm_backward": "normalisation, in float32; bound by memory",
    "aten::native_layer_norm_backward": "normalisation, in float32; bound by memory",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "fused attention: the work itself",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": "fused attention, backward: the work itself",
    "aten::_softmax": "softmax of the attention, in float32",
    "aten::cat": "query, key and value as one product: weights forward, gradients backward",
    "aten::gelu": "activation; bound by memory",
    "aten::gelu_backward": "activation; bound by memory",
    "aten::silu": "activation; bound by memory",
    "aten::silu_backward": "activation; bound by memory",
    "aten::lerp_": "Adam's first moment; bound by memory, and smaller the larger the batch",
    "aten::addcmul_": "Adam's second moment; likewise",
    "aten::div": "Adam's denominator; likewise",
    "aten::_fused_adam_": "Adam; bound by memory",
    "aten::_foreach_lerp_": "the average; bound by memory",
    "aten::exponential_": "noise for every code of every token at every step",
    "aten::gather": "picking the places that are due",
    "aten::_slow_conv2d_forward": "convolutions of a single image on one thread, without oneDNN",
    "aten::_slow_conv2d_backward": "convolutions of a single image on one thread, without oneDNN",
    "aten::max_pool2d_with_indices": "pooling in LPIPS' network; bound by memory",
    "aten::sum": "bias gradients and reductions",
}


def largest(run: Callable[[], Any], device: torch.device) -> list[dict[str, Any]]:
    """The largest items of a run by their own time: name, share in percent, calls, and why it is there."""
    run()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as recorded:
        run()
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    items = sorted(recorded.key_averages(), key=lambda item: getattr(item, own), reverse=True)
    total = sum(getattr(item, own) for item in items)
    return [
        {
            "item": item.key,
            "percent": round(100 * getattr(item, own) / total, 1),
            "calls": item.count,
            "why": WHY.get(item.key, ""),
        }
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
        model.sample(batch, generator=make_generator("cpu", 0), sample_steps=4, batch_size=batch)
