"""The settings of metrics: what is compared, by which features, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hparams.fields import Group, setting


@dataclass(frozen=True)
class FeatureSettings(Group, title="features"):
    """The network whose features a metric compares."""

    features: Literal["inception", "dinov2", "vgg16", "r64"] = setting(
        "inception",
        "Inception-v3 as in the FID paper, DINOv2 (ViT-L/14), VGG16, or a VGG16 of random weights: no download",
    )
    feature_weights: str | None = setting(None, "file of weights for --features", unit="file", none_means="downloaded")


@dataclass(frozen=True)
class RealSettings(Group, title="real images"):
    """The real images that a metric compares with."""

    split: Literal["train", "val", "all"] = setting(
        "train", "part of the data set to compare with; of a folder, train is the first 95% and val the rest"
    )


@dataclass(frozen=True)
class GeneratedSettings(Group, title="generated images"):
    """What to compare in place of images drawn from the prior, and whether to keep them."""

    latents_path: str | None = setting(
        None, "codes to decode, integers [n,N]: .npy or by torch.save", unit="file", none_means="drawn"
    )
    fake_images_path: str | None = setting(
        None, "images to compare instead of samples, resized to img_size", unit="folder"
    )
    save_images: bool = setting(False, "write each generated image to images/samples/")


@dataclass(frozen=True)
class KIDSettings(Group, title="KID"):
    """The kernel inception distance."""

    kid_subsets: int = setting(100, "random subsets that KID averages over; 0 leaves KID out", unit="n", minimum=0)
    kid_subset_size: int = setting(1000, "images in each subset", unit="images", minimum=2)


@dataclass(frozen=True)
class PRDCSettings(Group, title="PRDC"):
    """Precision, recall, density and coverage."""

    nearest_k: int = setting(3, "a point's radius reaches its k-th nearest neighbour", unit="k")
    real_feats: str | None = setting(
        None, "features of real images: .npy or .safetensors, [n,d]", unit="file", none_means="computed"
    )
    fake_feats: str | None = setting(
        None, "features of generated images: .npy or .safetensors, [n,d]", unit="file", none_means="computed"
    )


@dataclass(frozen=True)
class ReconstructionSettings(Group, title="reconstructions"):
    """Which images are reconstructed, and how they are compared one by one."""

    n_samples: int | None = setting(
        None, "images to reconstruct, the first ones", unit="images", minimum=2, none_means="all of the split"
    )
    lpips_net: Literal["alex", "vgg", "squeeze"] = setting("alex", "network of LPIPS")
    lpips_weights: str | None = setting(
        None, "weights of --lpips_net or LPIPS; without, LPIPS is left out", unit="file", none_means="downloaded"
    )


@dataclass(frozen=True)
class LikelihoodSettings(Group, title="likelihood"):
    """The bound on the likelihood of validation images, and the head that it needs."""

    train_steps: int = setting(10_000, "updates of the log-sigma head; 0: use it as it is", unit="steps", minimum=0)
    steps_per_eval: int = setting(5_000, "updates between two evaluations; 0: only at the end", unit="steps", minimum=0)
    lr: float = setting(1e-4, "learning rate of the head's Adam", unit="rate", above=0)
    protocol: Literal["dequantised", "published"] = setting(
        "dequantised",
        "dequantised: a bound for images of --bits, over all of them; published: one batch, log 32 per dimension",
    )
    bits: int = setting(
        None,
        "reduce images to so many bits per channel",
        unit="bits",
        maximum=8,
        none_means="8; 5 with --protocol published",
    )
    code_bound: Literal["t_step", "continuous"] = setting(
        "t_step", "bound of an absorbing prior: t_step, over total_steps as in the paper; continuous, its tighter limit"
    )
    elbo_steps: int = setting(
        None, "evaluations per image, at most twice the bound's terms", unit="n", minimum=2, none_means="at most 64"
    )


@dataclass(frozen=True)
class NeighbourSettings(Group, title="neighbours"):
    """What is near, and how many are shown."""

    top_k: int = setting(10, "how many nearest training images to find for each sample", unit="images")
    train_images: int | None = setting(
        None, "how many to compare with, the first", unit="images", none_means="all of them"
    )
    distance: Literal["lpips", "r64"] = setting(
        "lpips",
        "LPIPS, or the squared distance of features of a VGG16 of fixed random weights, which needs no download",
    )
    lpips_net: Literal["alex", "vgg", "squeeze"] = setting("alex", "network of LPIPS")
    lpips_weights: str | None = setting(None, "file of weights for --lpips_net", unit="file", none_means="downloaded")
