"""How tokens are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hparams.fields import Group, setting


@dataclass(frozen=True)
class SamplingSettings(Group, title="sampling"):
    """How the prior's tokens are drawn: the same for all experiments and for the pictures of training."""

    n_samples: int = setting(64, "images to draw; when inpainting, completions of each", "images")
    temp: float = setting(1.0, "temperature of the codes; of larger images, on the mean over windows", "tau", above=0)
    sample_steps: int = setting(
        None, "at most total_steps; of larger images, those of --order random", "steps", none_means="total_steps"
    )
    sample_type: Literal["diffusion", "mlm"] = setting(
        "diffusion", "diffusion: ancestral sampling; mlm: predicting and masking again, repeatedly"
    )
