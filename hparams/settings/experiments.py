"""The stages of experiments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hparams.settings.metrics import (
    FeatureSettings,
    GeneratedSettings,
    KIDSettings,
    LikelihoodSettings,
    NeighbourSettings,
    PRDCSettings,
    RealSettings,
    ReconstructionSettings,
)
from hparams.settings.models import AutoencoderSettings, PriorSettings
from hparams.settings.sampling import (
    CheckpointSource,
    InpaintingSettings,
    LargerSettings,
    OutputSettings,
    SamplingSettings,
    WhichWeights,
)
from hparams.settings.stages import AutoencoderSource, Stage


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
    reads_data: ClassVar[bool] = False

    sampling: SamplingSettings
    output: OutputSettings


@dataclass(frozen=True)
class FeatureExperiment(PriorExperiment):
    """Features of images drawn from a trained prior, compared with those of real ones."""

    preset_tables: ClassVar[tuple[str, ...]] = (*PriorExperiment.preset_tables, "features", "metric", "metric_samples")

    sampling: SamplingSettings
    features: FeatureSettings
    real: RealSettings
    generated: GeneratedSettings


@dataclass(frozen=True)
class FIDExperiment(FeatureExperiment):
    """FID and KID."""

    default_log_dir: ClassVar[str] = "FID_{dataset}"
    preset_tables: ClassVar[tuple[str, ...]] = (*FeatureExperiment.preset_tables, "kid")

    kid: KIDSettings


@dataclass(frozen=True)
class PRDCExperiment(FeatureExperiment):
    """Precision, recall, density and coverage."""

    default_log_dir: ClassVar[str] = "PRDC_{dataset}"

    prdc: PRDCSettings


@dataclass(frozen=True)
class ReconstructionExperiment(Stage):
    """Images and their reconstructions by a trained autoencoder."""

    default_log_dir: ClassVar[str] = "VQGAN_FID_{dataset}"
    preset_tables: ClassVar[tuple[str, ...]] = ("autoencoder", "experiment", "features", "metric", "kid")

    source: AutoencoderSource
    weights: WhichWeights
    autoencoder: AutoencoderSettings
    features: FeatureSettings
    real: RealSettings
    reconstruction: ReconstructionSettings
    kid: KIDSettings


@dataclass(frozen=True)
class LikelihoodExperiment(PriorExperiment):
    """Bits per dimension of validation images."""

    preset_tables: ClassVar[tuple[str, ...]] = (*PriorExperiment.preset_tables, "likelihood")
    default_log_dir: ClassVar[str] = "nll_{dataset}"

    likelihood: LikelihoodSettings


@dataclass(frozen=True)
class NeighboursExperiment(PriorExperiment):
    """Samples beside their nearest training images."""

    preset_tables: ClassVar[tuple[str, ...]] = (*PriorExperiment.preset_tables, "neighbours")
    default_log_dir: ClassVar[str] = "nearest_neighbours_{dataset}"

    sampling: SamplingSettings
    neighbours: NeighbourSettings


@dataclass(frozen=True)
class LargerExperiment(PriorExperiment):
    """Images larger than the training ones."""

    preset_tables: ClassVar[tuple[str, ...]] = (*PriorExperiment.preset_tables, "larger")
    default_log_dir: ClassVar[str] = "big_samples_{dataset}"
    reads_data: ClassVar[bool] = False

    sampling: SamplingSettings
    larger: LargerSettings


@dataclass(frozen=True)
class InpaintingExperiment(PriorExperiment):
    """Images of which a part is painted anew."""

    preset_tables: ClassVar[tuple[str, ...]] = (*PriorExperiment.preset_tables, "inpainting")
    default_log_dir: ClassVar[str] = "inpainted_{dataset}"

    sampling: SamplingSettings
    inpainting: InpaintingSettings
