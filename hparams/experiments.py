"""The settings of experiments: groups that only they need, and a stage for each script."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from hparams.fields import setting
from hparams.settings import AutoencoderSettings, AutoencoderSource, PriorSettings, SamplingSettings, Stage


@dataclass(frozen=True)
class CheckpointSource:
    """Which trained prior an experiment loads."""

    title: ClassVar[str] = "trained prior"

    load_dir: str | None = setting(
        None, help="run folder of the trained prior, under logs/", unit="run", none_means="required"
    )
    load_step: int | None = setting(None, help="its step", unit="step", minimum=1, none_means="the newest")
    ema: bool | None = setting(
        None, help="averaged weights of prior and autoencoder, or raw ones", none_means="averaged where they exist"
    )


@dataclass(frozen=True)
class OutputSettings:
    """What an experiment writes."""

    title: ClassVar[str] = "output"

    save_individually: bool = setting(False, help="write each image to a file of its own, not in grids")


@dataclass(frozen=True)
class FeatureSettings:
    """The network whose features a metric compares."""

    title: ClassVar[str] = "features"

    features: Literal["inception", "dinov2", "vgg16", "r64"] = setting(
        "inception",
        help="features of images: Inception-v3 as in the FID paper, DINOv2 (ViT-L/14), VGG16, or a randomly "
        "initialised VGG16, which needs no download",
    )
    feature_weights: str | None = setting(
        None, help="weights of --features on disk, for use without a network", unit="file", none_means="downloaded"
    )


@dataclass(frozen=True)
class PriorExperiment(Stage):
    """What every experiment with a trained prior and its autoencoder needs."""

    preset_tables: ClassVar[tuple[str, ...]] = ("autoencoder", "{sampler}", "experiment")

    source: AutoencoderSource
    checkpoint: CheckpointSource
    autoencoder: AutoencoderSettings
    prior: PriorSettings


@dataclass(frozen=True)
class SamplesExperiment(PriorExperiment):
    """Images drawn from a trained prior."""

    default_log_dir: ClassVar[str] = "samples_{dataset}"

    sampling: SamplingSettings
    output: OutputSettings


@dataclass(frozen=True)
class FeatureExperiment(PriorExperiment):
    """Features of images drawn from a trained prior, compared with those of real ones."""

    preset_tables: ClassVar[tuple[str, ...]] = (*PriorExperiment.preset_tables, "features")

    sampling: SamplingSettings
    features: FeatureSettings
