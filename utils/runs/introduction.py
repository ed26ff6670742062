"""The first lines of a run: what runs where, on what, in which precision."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from hparams import launch
from hparams.saved import describe
from hparams.settings.stages import Stage
from utils.machine.devices import describe_device, pick_amp_dtype, precision_name
from utils.machine.progress import say
from utils.runs.run_folder import RunFolder


def facts(
    what: str,
    folder: RunFolder,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    more: Mapping[str, str],
    *,
    processes: int = 1,
) -> str:
    """Aligned lines, a fact each: `what` runs, in which folder, on which devices, in which precision, and `more`."""
    told = {
        "run": f"{what}, in {folder.path}",
        "device": describe_device(device) + (f" and {processes - 1} like it" if processes > 1 else ""),
        "precision": f"mixed ({precision_name(amp_dtype)})" if amp_dtype else precision_name(None),
        **more,
    }
    return "\n".join(f"{name:<12}{fact}" for name, fact in told.items())


def tell_parameters(module: nn.Module) -> str:
    """The size of a network in words."""
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f} M"


def introduce(settings: Stage, what: str, device: torch.device, more: Mapping[str, str]) -> None:
    """Say the facts of an experiment and its settings, unless it is quiet."""
    run = settings.run
    if run.quiet:
        return
    amp_dtype = pick_amp_dtype(device, run.amp, run.amp_dtype)
    say(facts(what, RunFolder(run.log_dir), device, amp_dtype, more, processes=launch.processes()))
    say(describe(settings))
