"""The settings of drawing: which trained models, how tokens are drawn, and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hparams.fields import Group, setting


@dataclass(frozen=True)
class WhichWeights(Group, title="weights"):
    """Averaged or raw weights."""

    ema: bool | None = setting(None, "load averaged weights, or raw ones", none_means="averaged where they exist")


@dataclass(frozen=True)
class CheckpointSource(WhichWeights, title="trained prior"):
    """Which trained prior an experiment loads."""

    load_dir: str | None = setting(None, "run of the trained prior, under logs/", unit="run", none_means="required")
    load_step: int | None = setting(None, "step of the trained prior", unit="step", none_means="the newest")


@dataclass(frozen=True)
class SamplingSettings(Group, title="sampling"):
    """How the prior's tokens are drawn: the same for all experiments and for the pictures of training."""

    n_samples: int = setting(64, "images to draw; when inpainting, completions of each", unit="images")
    temp: float = setting(
        1.0, "sampling temperature of the codes; of larger images, on the mean over windows", unit="tau", above=0
    )
    sample_steps: int = setting(
        None, "at most total_steps; of larger images, those of --order random", unit="steps", none_means="total_steps"
    )
    sample_type: Literal["diffusion", "mlm"] = setting(
        "diffusion", "diffusion: ancestral sampling; mlm: predicting and masking again, repeatedly"
    )


@dataclass(frozen=True)
class OutputSettings(Group, title="output"):
    """What an experiment writes."""

    save_individually: bool = setting(False, "write each image to a file of its own, not in grids")


@dataclass(frozen=True)
class LargerSettings(Group, title="larger images"):
    """Images larger than the training ones."""

    shape: tuple[int, ...] = setting(
        None, "height and width in codes, at least latent_shape's", unit="n", none_means="its height, twice its width"
    )
    order: Literal["raster", "random"] = setting(
        "raster", "raster: one code a step, row by row, as published; random: all over the grid, in sample_steps"
    )
    stride: int = setting(1, "distance between the prior's windows, at most their side", unit="codes")


@dataclass(frozen=True)
class InpaintingSettings(Group, title="inpainting"):
    """Images of which a part is painted anew."""

    split: Literal["train", "val", "all"] = setting(
        "val", "part of the data set to take images from; of a folder, train is the first 95% and val the rest"
    )
    n_images: int = setting(8, "images to complete, the first ones; all if there are fewer", unit="images")
    region: tuple[int, ...] | None = setting(
        None,
        "part to paint anew: top, left, height and width at img_size",
        unit="px",
        minimum=0,
        none_means="the lower half",
    )
    mask_path: str | None = setting(
        None,
        "instead of --region: an image, white (lighter than mid-grey) where to paint, cropped like the data",
        unit="file",
    )
