"""The settings of experiments: groups that only they need, and a stage for each script."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from hparams.fields import setting
from hparams.settings.models import AutoencoderSettings, PriorSettings
from hparams.settings.stages import AutoencoderSource, SamplingSettings, Stage


@dataclass(frozen=True)
class WhichWeights:
    """Averaged or raw weights."""

    title: ClassVar[str] = "weights"

    ema: bool | None = setting(
        None, help="load averaged weights, or with --no_ema raw ones", none_means="averaged where they exist"
    )


@dataclass(frozen=True)
class CheckpointSource(WhichWeights):
    """Which trained prior an experiment loads."""

    title: ClassVar[str] = "trained prior"

    load_dir: str | None = setting(
        None, help="run folder of the trained prior, under logs/", unit="run", none_means="required"
    )
    load_step: int | None = setting(
        None, help="step of the trained prior", unit="step", minimum=1, none_means="the newest"
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
        help="features to compare: Inception-v3 as in the FID paper, DINOv2 (ViT-L/14), VGG16, or a VGG16 of fixed "
        "random weights, which needs no download",
    )
    feature_weights: str | None = setting(
        None, help="file of weights for --features, for use without a network", unit="file", none_means="downloaded"
    )


@dataclass(frozen=True)
class RealSettings:
    """The real images that a metric compares with."""

    title: ClassVar[str] = "real images"

    split: Literal["train", "val", "all"] = setting(
        "train",
        help="part of the data set to compare with; of a folder, train is the first 95% and val the rest",
    )


@dataclass(frozen=True)
class GeneratedSettings:
    """What to compare in place of images drawn from the prior, and whether to keep them."""

    title: ClassVar[str] = "generated images"

    latents_path: str | None = setting(
        None, help="file of codes to decode, integers [n,N]: .npy or by torch.save", unit="file", none_means="drawn"
    )
    fake_images_path: str | None = setting(
        None, help="images to compare instead of samples, resized to img_size where they differ", unit="folder"
    )
    save_images: bool = setting(False, help="write each generated image to images/samples/")


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

    nearest_k: int = setting(3, help="a point's radius reaches its k-th nearest neighbour", unit="k", minimum=1)
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
    lpips_net: Literal["alex", "vgg", "squeeze"] = setting("alex", help="network of LPIPS")
    lpips_weights: str | None = setting(
        None,
        help="file of weights for --lpips_net, or for all of LPIPS; where there are none, LPIPS is left out",
        unit="file",
        none_means="downloaded",
    )


@dataclass(frozen=True)
class LikelihoodSettings:
    """The bound on the likelihood of validation images, and the head that it needs."""

    title: ClassVar[str] = "likelihood"

    train_steps: int = setting(
        10_000, help="updates of the log-sigma head before the evaluation; 0: use it as it is", unit="steps", minimum=0
    )
    steps_per_eval: int = setting(
        5_000,
        help="updates between two evaluations of the pixel term; 0: only at the end",
        unit="steps",
        minimum=0,
    )
    lr: float = setting(1e-4, help="learning rate of the head's Adam", unit="rate", above=0)
    protocol: Literal["dequantised", "published"] = setting(
        "dequantised",
        help="dequantised: a bound for images of --bits, over the whole validation set; published: as in that code, "
        "one batch, the density at pixels / 255, log 32 per dimension",
    )
    bits: int = setting(
        None,
        help="reduce images to so many bits per colour channel",
        unit="bits",
        minimum=1,
        maximum=8,
        none_means="8; 5 with --protocol published",
    )
    code_bound: Literal["t_step", "continuous"] = setting(
        "t_step",
        help="bound of an absorbing prior: t_step, over total_steps diffusion steps as in the paper; continuous, its "
        "limit in continuous time, tighter and less variable",
    )
    elbo_steps: int = setting(
        None,
        help="evaluations of the prior per image, spread evenly over the bound's terms; at most twice their number",
        unit="n",
        minimum=2,
        none_means="64, or the most possible if that is less",
    )


@dataclass(frozen=True)
class NeighbourSettings:
    """What is near, and how many are shown."""

    title: ClassVar[str] = "neighbours"

    top_k: int = setting(10, help="how many nearest training images to find for each sample", unit="images", minimum=1)
    train_images: int | None = setting(
        None,
        help="compare with the first so many training images only",
        unit="images",
        minimum=1,
        none_means="all of them",
    )
    distance: Literal["lpips", "r64"] = setting(
        "lpips",
        help="LPIPS, or the squared distance of features of a VGG16 of fixed random weights; these need no download, "
        "and stand in where LPIPS weights cannot be had",
    )
    lpips_net: Literal["alex", "vgg", "squeeze"] = setting("alex", help="network of LPIPS")
    lpips_weights: str | None = setting(
        None, help="file of weights for --lpips_net, for use without a network", unit="file", none_means="downloaded"
    )


@dataclass(frozen=True)
class LargerSettings:
    """Images larger than the training ones."""

    title: ClassVar[str] = "larger images"

    shape: tuple[int, ...] = setting(
        None,
        help="height and width in codes, each at least that of latent_shape",
        unit="n",
        minimum=1,
        none_means="height of latent_shape, twice its width",
    )
    order: Literal["raster", "random"] = setting(
        "raster", help="raster: one code a step, row by row, as published; random: all over the grid, in sample_steps"
    )
    stride: int = setting(
        1, help="distance between the windows in which the prior predicts, at most their side", unit="codes", minimum=1
    )
    temp: float = setting(0.8, help="sampling temperature of the codes, on the mean over windows", unit="tau", above=0)
    sample_steps: int = setting(None, help="steps of --order random", unit="steps", minimum=1, none_means="total_steps")
    n_samples: int = setting(4, help="images to draw", unit="images", minimum=1)


@dataclass(frozen=True)
class InpaintingSettings:
    """Images of which a part is painted anew."""

    title: ClassVar[str] = "inpainting"

    split: Literal["train", "val", "all"] = setting(
        "val", help="part of the data set to take images from; of a folder, train is the first 95% and val the rest"
    )
    n_images: int = setting(
        8, help="images to complete, the first ones; all if there are fewer", unit="images", minimum=1
    )
    n_samples: int = setting(4, help="completions of each image", unit="images", minimum=1)
    region: tuple[int, ...] | None = setting(
        None,
        help="part to paint anew: top, left, height and width in pixels at img_size; every code that it touches is "
        "drawn",
        unit="px",
        minimum=0,
        none_means="the lower half",
    )
    mask_path: str | None = setting(
        None,
        help="instead of --region, an image that is white (lighter than mid-grey) where to paint anew; resized and "
        "cropped like the data",
        unit="file",
    )
    temp: float = setting(1.0, help="sampling temperature of the codes", unit="tau", above=0)
    sample_steps: int = setting(
        None,
        help="sampling steps, at most total_steps",
        unit="steps",
        minimum=1,
        none_means="total_steps",
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

    default_log_dir: ClassVar[str] = "big_samples_{dataset}"
    reads_data: ClassVar[bool] = False

    larger: LargerSettings


@dataclass(frozen=True)
class InpaintingExperiment(PriorExperiment):
    """Images of which a part is painted anew."""

    preset_tables: ClassVar[tuple[str, ...]] = (*PriorExperiment.preset_tables, "inpainting")
    default_log_dir: ClassVar[str] = "inpainted_{dataset}"

    inpainting: InpaintingSettings
