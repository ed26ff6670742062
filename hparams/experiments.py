"""The settings of experiments: groups that only they need, and a stage for each script."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from hparams.fields import setting
from hparams.settings import AutoencoderSettings, AutoencoderSource, PriorSettings, SamplingSettings, Stage


@dataclass(frozen=True)
class WhichWeights:
    """Averaged or raw weights."""

    title: ClassVar[str] = "weights"

    ema: bool | None = setting(
        None, help="averaged weights of prior and autoencoder, or raw ones", none_means="averaged where they exist"
    )


@dataclass(frozen=True)
class CheckpointSource(WhichWeights):
    """Which trained prior an experiment loads."""

    title: ClassVar[str] = "trained prior"

    load_dir: str | None = setting(
        None, help="run folder of the trained prior, under logs/", unit="run", none_means="required"
    )
    load_step: int | None = setting(None, help="its step", unit="step", minimum=1, none_means="the newest")


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
class RealSettings:
    """The real images that a metric compares with."""

    title: ClassVar[str] = "real images"

    split: Literal["train", "val", "all"] = setting(
        "train", help="which part of the data set; of a folder, train is the first 95% and val the rest"
    )


@dataclass(frozen=True)
class GeneratedSettings:
    """What to compare in place of images drawn from the prior, and whether to keep them."""

    title: ClassVar[str] = "generated images"

    latents_path: str | None = setting(
        None, help="codes to decode: an .npy or a saved tensor of integers [n,N]", unit="file", none_means="drawn"
    )
    fake_images_path: str | None = setting(
        None, help="images to take as they are, resized to img_size where they differ", unit="folder"
    )
    save_images: bool = setting(False, help="write each image to images/samples/")


@dataclass(frozen=True)
class KIDSettings:
    """The kernel inception distance."""

    title: ClassVar[str] = "KID"

    kid_subsets: int = setting(100, help="random subsets that KID averages over; 0 leaves KID out", unit="n", minimum=0)
    kid_subset_size: int = setting(1000, help="images in each subset", unit="images", minimum=2)


@dataclass(frozen=True)
class PRDCSettings:
    """Precision, recall, density and coverage."""

    title: ClassVar[str] = "PRDC"

    nearest_k: int = setting(3, help="neighbours that a radius reaches", unit="k", minimum=1)
    real_feats: str | None = setting(
        None, help="features of real images: .npy or .safetensors, [n,d]", unit="file", none_means="computed"
    )
    fake_feats: str | None = setting(
        None, help="features of generated images: .npy or .safetensors, [n,d]", unit="file", none_means="computed"
    )


@dataclass(frozen=True)
class ReconstructionSettings:
    """Which images are reconstructed, and how they are compared one by one."""

    title: ClassVar[str] = "reconstructions"

    n_samples: int | None = setting(
        None, help="images to reconstruct, the first ones", unit="images", minimum=2, none_means="all of the split"
    )
    lpips_net: Literal["alex", "vgg", "squeeze"] = setting("alex", help="trunk of LPIPS")
    lpips_weights: str | None = setting(
        None,
        help="weights of the trunk, or of LPIPS as a whole; without any LPIPS is left out",
        unit="file",
        none_means="downloaded",
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
