"""The stages of experiments, and the groups of settings that only experiments have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hparams.fields import Group, setting
from hparams.settings.models import AutoencoderSettings, PriorSettings
from hparams.settings.sampling import SamplingSettings
from hparams.settings.stages import AutoencoderSource, Stage


@dataclass(frozen=True)
class WhichWeights(Group, title="weights"):
    ema: bool | None = setting(None, "load averaged weights, or raw ones", none_means="averaged where they exist")


@dataclass(frozen=True)
class CheckpointSource(WhichWeights, title="trained prior"):
    load_dir: str | None = setting(None, "run of the trained prior, under logs/", "run", none_means="required")
    load_step: int | None = setting(None, "step of the trained prior", "step", none_means="the newest")


@dataclass(frozen=True)
class PriorExperiment(Stage, tables=("autoencoder", "prior", "experiment")):
    """What every experiment with a trained prior and its autoencoder needs."""

    source: AutoencoderSource
    checkpoint: CheckpointSource
    autoencoder: AutoencoderSettings
    prior: PriorSettings


@dataclass(frozen=True)
class OutputSettings(Group, title="output"):
    save_individually: bool = setting(False, "write each image to a file of its own, not in grids")


@dataclass(frozen=True)
class SamplesExperiment(PriorExperiment, log_dir="samples_{dataset}", reads_data=False):
    sampling: SamplingSettings
    output: OutputSettings


@dataclass(frozen=True)
class LargerSettings(Group, title="larger images"):
    shape: tuple[int, ...] = setting(
        None, "height and width in codes, at least latent_shape's", "n", none_means="its height, twice its width"
    )
    order: Literal["raster", "random"] = setting(
        "raster", "raster: one code a step, row by row, as published; random: all over the grid, in sample_steps"
    )
    stride: int = setting(1, "distance between the prior's windows, at most their side", "codes")


@dataclass(frozen=True)
class LargerExperiment(PriorExperiment, tables=("larger",), log_dir="big_samples_{dataset}", reads_data=False):
    """Images larger than the training ones."""

    sampling: SamplingSettings
    larger: LargerSettings


@dataclass(frozen=True)
class InpaintingSettings(Group, title="inpainting"):
    split: Literal["train", "val", "all"] = setting(
        "val", "part of the data set to take images from; of a folder, train is the first 95% and val the rest"
    )
    n_images: int = setting(8, "images to complete, the first ones; all if there are fewer", "images")
    region: tuple[int, ...] | None = setting(
        None, "part to paint anew: top, left, height, width at img_size", "px", minimum=0, none_means="the lower half"
    )
    mask_path: str | None = setting(
        None,
        "instead of --region: an image, white (lighter than mid-grey) where to paint, cropped like the data",
        "file",
    )


@dataclass(frozen=True)
class InpaintingExperiment(PriorExperiment, tables=("inpainting",), log_dir="inpainted_{dataset}"):
    """Images of which a part is painted anew."""

    sampling: SamplingSettings
    inpainting: InpaintingSettings


@dataclass(frozen=True)
class LikelihoodSettings(Group, title="likelihood"):
    """The bound on the likelihood of validation images, and the log-sigma head that it needs."""

    train_steps: int = setting(10_000, "updates of the log-sigma head; 0: use it as it is", "steps", minimum=0)
    steps_per_eval: int = setting(5_000, "updates between two evaluations; 0: only at the end", "steps", minimum=0)
    lr: float = setting(1e-4, "learning rate of the head's Adam", "rate", above=0)
    protocol: Literal["dequantised", "published"] = setting(
        "dequantised", "dequantised: a bound for images of --bits, over all; published: one batch, log 32 per dimension"
    )
    bits: int = setting(
        None,
        "reduce images to so many bits per channel",
        "bits",
        maximum=8,
        none_means="8; 5 with --protocol published",
    )
    code_bound: Literal["t_step", "continuous"] = setting(
        "t_step", "bound of an absorbing prior: t_step, over total_steps as in the paper; continuous, its tighter limit"
    )
    elbo_steps: int = setting(
        None, "evaluations per image, at most twice the bound's terms", "n", minimum=2, none_means="at most 64"
    )


@dataclass(frozen=True)
class LikelihoodExperiment(PriorExperiment, tables=("likelihood",), log_dir="nll_{dataset}"):
    """Bits per dimension of validation images."""

    likelihood: LikelihoodSettings


@dataclass(frozen=True)
class NeighbourSettings(Group, title="neighbours"):
    top_k: int = setting(10, "how many nearest training images to find for each sample", "images")
    train_images: int | None = setting(None, "how many to compare with, the first", "images", none_means="all of them")
    distance: Literal["lpips", "r64"] = setting(
        "lpips", "LPIPS, or the squared distance of features of a VGG16 of fixed random weights, without download"
    )
    lpips_net: Literal["alex", "vgg", "squeeze"] = setting("alex", "network of LPIPS")
    lpips_weights: str | None = setting(None, "file of weights for --lpips_net", "file", none_means="downloaded")


@dataclass(frozen=True)
class NeighboursExperiment(PriorExperiment, tables=("neighbours",), log_dir="nearest_neighbours_{dataset}"):
    """Samples beside their nearest training images."""

    sampling: SamplingSettings
    neighbours: NeighbourSettings


@dataclass(frozen=True)
class FeatureSettings(Group, title="features"):
    """The network whose features a metric compares."""

    features: Literal["inception", "dinov2", "vgg16", "r64"] = setting(
        "inception", "Inception-v3 as in the FID paper, DINOv2 (ViT-L/14), VGG16, or a random VGG16: no download"
    )
    feature_weights: str | None = setting(None, "file of weights for --features", "file", none_means="downloaded")


@dataclass(frozen=True)
class RealSettings(Group, title="real images"):
    split: Literal["train", "val", "all"] = setting(
        "train", "part of the data set to compare with; of a folder, train is the first 95% and val the rest"
    )


@dataclass(frozen=True)
class GeneratedSettings(Group, title="generated images"):
    """What to compare in place of images drawn from the prior, and whether to keep them."""

    latents_path: str | None = setting(None, "codes [n,N] to decode: .npy or by torch.save", "file", none_means="drawn")
    fake_images_path: str | None = setting(None, "images to compare instead of samples, resized to img_size", "folder")
    save_images: bool = setting(False, "write each generated image to images/samples/")


@dataclass(frozen=True)
class FeatureExperiment(PriorExperiment, tables=("features", "metric", "metric_samples")):
    """Features of images drawn from a trained prior, compared with those of real ones."""

    sampling: SamplingSettings
    features: FeatureSettings
    real: RealSettings
    generated: GeneratedSettings


@dataclass(frozen=True)
class KIDSettings(Group, title="KID"):
    kid_subsets: int = setting(100, "random subsets that KID averages over; 0 leaves KID out", "n", minimum=0)
    kid_subset_size: int = setting(1000, "images in each subset", "images", minimum=2)


@dataclass(frozen=True)
class FIDExperiment(FeatureExperiment, tables=("kid",), log_dir="FID_{dataset}"):
    kid: KIDSettings


@dataclass(frozen=True)
class PRDCSettings(Group, title="PRDC"):
    nearest_k: int = setting(3, "a point's radius reaches its k-th nearest neighbour", "k")
    real_feats: str | None = setting(None, "real features [n,d]: .npy or .safetensors", "file", none_means="computed")
    fake_feats: str | None = setting(None, "fake features [n,d]: .npy or .safetensors", "file", none_means="computed")


@dataclass(frozen=True)
class PRDCExperiment(FeatureExperiment, log_dir="PRDC_{dataset}"):
    """Precision, recall, density and coverage."""

    prdc: PRDCSettings


@dataclass(frozen=True)
class ReconstructionSettings(Group, title="reconstructions"):
    """Which images are reconstructed, and how they are compared one by one."""

    n_samples: int | None = setting(None, "images to reconstruct, the first", "images", minimum=2, none_means="all")
    lpips_net: Literal["alex", "vgg", "squeeze"] = setting("alex", "network of LPIPS")
    lpips_weights: str | None = setting(
        None, "weights of --lpips_net or LPIPS; without, LPIPS is left out", "file", none_means="downloaded"
    )


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
