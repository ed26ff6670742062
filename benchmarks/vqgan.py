"""Row of the VQGAN's training step."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.baseline import vqgan as published
from benchmarks.measure import Row, flops, gemm_rate, interleave, peak_memory
from benchmarks.scale import Scale
from hparams.resolve import resolve
from hparams.settings.stages import VQGANStage
from utils.machine.devices import pick_amp_dtype
from utils.machine.seeding import make_generator, seed_global
from utils.pretrained.building import build_vqgan
from utils.pretrained.perceptual import LPIPS, untrained_lpips
from utils.runs.job import Job
from utils.training.vqgan_trainer import VQGANTrainer


def random_lpips(device: torch.device) -> LPIPS:
    """LPIPS on a VGG16 of random weights: its cost is that of the trained one."""
    seed_global(0)
    return LPIPS(untrained_lpips("vgg"), device, symmetric=False)


def settings(scale: Scale, compiled: str = "auto") -> VQGANStage:
    """The published VQGAN, smaller where the scale says so, with its adversarial term from the start."""
    return resolve(
        VQGANStage,
        {
            "dataset": "churches",
            "img_size": scale.img_size,
            "nf": scale.nf,
            "ch_mult": scale.ch_mult,
            "codebook_size": scale.codes,
            "batch_size": scale.vqgan_batch,
            "disc_start_step": 0,
            "compile": compiled,
        },
    )


def trainer(scale: Scale, device: torch.device, *, use_amp: bool, compiled: str = "auto") -> VQGANTrainer:
    stage = settings(scale, compiled)
    perceptual = random_lpips(device)
    seed_global(1)
    vqgan = build_vqgan(stage.autoencoder, stage.vqgan, perceptual)
    torch.nn.init.normal_(vqgan.ae.quantize.codebook)
    job = Job(replace(stage, run=replace(stage.run, amp=use_amp)), device)
    return VQGANTrainer(job, stage.training, stage.vqgan, vqgan)


def literal_step(ours: VQGANTrainer, scale: Scale, device: torch.device) -> published.Trainer:
    """The published step with the weights that `ours` has now."""
    return published.Trainer(copy.deepcopy(ours.vqgan), random_lpips(device), float(settings(scale).training.lr or 0))


def random_images(scale: Scale, device: torch.device) -> Tensor:
    shape = (scale.vqgan_batch, 3, scale.img_size, scale.img_size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=make_generator("cpu", "images")).to(device)


def training(scale: Scale, device: torch.device) -> Row:
    """An update of autoencoder and discriminator."""
    trainers = {name: trainer(scale, device, use_amp=name == "amp") for name in ("float32", "amp")}
    literal = literal_step(trainers["float32"], scale, device)
    images = random_images(scale, device)
    x = images.float() / 255
    small = scale.nf != 128
    row = Row(
        name=f"VQGAN training, {scale.img_size}², batch {scale.vqgan_batch}, LPIPS",
        unit="s per step",
        reduced=f"nf {scale.nf}, ch_mult {' '.join(map(str, scale.ch_mult))}; LPIPS of random weights"
        if small
        else "LPIPS of random weights",
        target="≥ 1.2 × float32, ≥ 1.6 × --amp" if device.type == "cpu" else "≥ 2.5 × --amp",
    )
    names, terms = ("baseline", "float32", "amp"), {}

    def one(name: str) -> None:
        terms[name] = literal.step(x) if name == "baseline" else trainers[name].step(images, 1)

    # Of the first steps, in which the moments are made: of the replay of a CUDA graph nothing would be seen.
    peaks = {name: peak_memory(partial(one, name), device) for name in names}
    for term in ("loss", "disc_weight", "d_loss"):
        difference = abs(terms["float32"][term].item() / terms["baseline"][term] - 1)
        row.checks[f"relative difference of {term}, same weights"] = difference
    row.timings = interleave({name: partial(one, name) for name in names}, scale.repeats, device, burst=scale.burst)
    eager = trainer(scale, device, use_amp=False, compiled="off")
    work = {"baseline": flops(partial(one, "baseline")), "float32": flops(lambda: eager.step(images, 1))}
    for name, operations in work.items():
        row.figures[f"GFLOP per step, {name}"] = round(operations / 1e9, 1)
    rates = {"float32": torch.float32, "amp": pick_amp_dtype(device, True, "auto") or torch.float32}
    if device.type == "cuda":  # there cuDNN convolves in TF32, in which products are not measured
        del rates["float32"]
    for name, dtype in rates.items():
        share = work["float32"] / row.timings[name].median / gemm_rate(device, dtype)
        row.figures[f"share of the {name} product rate"] = round(share, 3)
    for name, peak in peaks.items():
        row.figures[f"peak memory of a first step, {name}, GiB"] = round(peak, 2)
    return row
