"""The stages of experiments."""

from __future__ import annotations

from dataclasses import dataclass

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
class PriorExperiment(Stage, tables=("autoencoder", "{sampler}", "experiment")):
    """What every experiment with a trained prior and its autoencoder needs."""

    source: AutoencoderSource
    checkpoint: CheckpointSource
    autoencoder: AutoencoderSettings
    prior: PriorSettings


@dataclass(frozen=True)
class SamplesExperiment(PriorExperiment, log_dir="samples_{dataset}", reads_data=False):
    """Images drawn from a trained prior."""

    sampling: SamplingSettings
    output: OutputSettings


@dataclass(frozen=True)
class FeatureExperiment(PriorExperiment, tables=("features", "metric", "metric_samples")):
    """Features of images drawn from a trained prior, compared with those of real ones."""

    sampling: SamplingSettings
    features: FeatureSettings
    real: RealSettings
    generated: GeneratedSettings


@dataclass(frozen=True)
class FIDExperiment(FeatureExperiment, tables=("kid",), log_dir="FID_{dataset}"):
    """FID and KID."""

    kid: KIDSettings


@dataclass(frozen=True)
class PRDCExperiment(FeatureExperiment, log_dir="PRDC_{dataset}"):
    """Precision, recall, density and coverage."""

    prdc: PRDCSettings


@dataclass(frozen=True)
class ReconstructionExperiment(
    Stage, tables=("autoencoder", "experiment", "features", "metric", "kid"), log_dir="VQGAN_FID_{dataset}"
):
    """Images and their reconstructions by a trained autoencoder."""

    source: AutoencoderSource
    weights: WhichWeights
    autoencoder: AutoencoderSettings
    features: FeatureSettings
    real: RealSettings
    reconstruction: ReconstructionSettings
    kid: KIDSettings


@dataclass(frozen=True)
class LikelihoodExperiment(PriorExperiment, tables=("likelihood",), log_dir="nll_{dataset}"):
    """Bits per dimension of validation images."""

    likelihood: LikelihoodSettings


@dataclass(frozen=True)
class NeighboursExperiment(PriorExperiment, tables=("neighbours",), log_dir="nearest_neighbours_{dataset}"):
    """Samples beside their nearest training images."""

    sampling: SamplingSettings
    neighbours: NeighbourSettings


@dataclass(frozen=True)
class LargerExperiment(PriorExperiment, tables=("larger",), log_dir="big_samples_{dataset}", reads_data=False):
    """Images larger than the training ones."""

    sampling: SamplingSettings
    larger: LargerSettings


@dataclass(frozen=True)
class InpaintingExperiment(PriorExperiment, tables=("inpainting",), log_dir="inpainted_{dataset}"):
    """Images of which a part is painted anew."""

    sampling: SamplingSettings
    inpainting: InpaintingSettings
