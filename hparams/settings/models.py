"""The settings of what is trained: networks, losses, objectives. Defaults are those of the published models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hparams.fields import Group, setting


@dataclass(frozen=True)
class AutoencoderSettings(Group, title="autoencoder"):
    """The VQGAN's generator: everything needed to rebuild it."""

    quantizer: Literal["nearest", "gumbel"] = setting(
        "nearest", help="how the encoder's outputs become codes: the nearest code, or Gumbel-softmax"
    )
    codebook_size: int = setting(1024, help="number of codes, K", unit="codes", minimum=2)
    emb_dim: int = setting(256, help="length of a code's vector", unit="channels", minimum=1)
    nf: int = setting(128, help="channels of the first level, a multiple of 32", unit="channels", minimum=1)
    ch_mult: tuple[int, ...] = setting(
        (1, 1, 2, 2, 4),
        help="channels of each level, as multiples of nf; each level but the first halves the image",
        unit="multiple",
        minimum=1,
    )
    res_blocks: int = setting(2, help="residual blocks per level", unit="blocks", minimum=1)
    attn_resolutions: tuple[int, ...] = setting(
        (16,),
        help="sides of the feature maps that get attention; without a value, only the middle does",
        unit="pixels",
        minimum=1,
        allow_empty=True,
    )
    img_size: int = setting(256, help="side of the square images", unit="pixels", minimum=1)
    latent_shape: tuple[int, ...] = setting(
        None,
        help="shape of the codes of one image: 1, height, width",
        unit="n",
        minimum=1,
        none_means="1 s s, s = img_size / 2^(levels - 1)",
    )
    n_channels: int = setting(3, help="colour channels of an image, always 3", unit="channels", minimum=1)
    beta: float = setting(
        0.25, help="weight of the term of the quantizer's loss that beta_term names", unit="weight", minimum=0
    )
    beta_term: Literal["codebook", "commitment"] = setting(
        "codebook", help="term that beta weighs: codebook as in the published code, commitment as in the VQ-VAE paper"
    )
    gumbel_kl_weight: float = setting(1e-8, help="weight of the gumbel quantizer's KL term", unit="weight", minimum=0)
    gumbel_straight_through: bool = setting(False, help="train with hard codes in the gumbel quantizer's forward pass")


@dataclass(frozen=True)
class VQGANSettings(Group, title="VQGAN losses"):
    """Losses, discriminator and codebook care of stage 1."""

    ndf: int = setting(64, help="channels of the discriminator's first layer", unit="channels", minimum=1)
    disc_layers: int = setting(3, help="strided layers of the discriminator", unit="layers", minimum=1)
    disc_start_step: int = setting(
        30_001, help="step from which on the discriminator takes part", unit="step", minimum=0
    )
    disc_weight_max: float = setting(
        1.0, help="upper bound of the adaptive weight of the adversarial loss", unit="weight", minimum=0
    )
    perceptual: Literal["lpips", "none"] = setting("lpips", help="perceptual loss; none needs no downloaded weights")
    perceptual_weights_file: str | None = setting(
        None, help="file of LPIPS (VGG16) weights, for use without a network", unit="file", none_means="downloaded"
    )
    perceptual_weight: float = setting(1.0, help="weight of the perceptual loss", unit="weight", minimum=0)
    lpips_input: Literal["unit", "symmetric"] = setting(
        "unit", help="images that LPIPS sees: unit, 0..1 as in the published code; symmetric, -1..1 as it expects"
    )
    base_lr: float = setting(
        4.5e-6, help="learning rate per image of global_batch, unless lr is given", unit="rate", above=0
    )
    sync_batchnorm: bool = setting(
        True, help="with several processes, take the discriminator's batch-norm statistics over all of them"
    )
    diff_aug: bool = setting(False, help="DiffAugment before the discriminator, for the paper's best reconstructions")
    codebook_init: Literal["uniform", "encoder"] = setting(
        "uniform", help="first codes: uniform in -1/K..1/K, or drawn from the encoder's first outputs"
    )
    restart_dead_codes: int = setting(
        0,
        help="every so many steps, move codes unused since the last time onto encoder outputs; 0: never",
        unit="steps",
        minimum=0,
    )
    restart_dead_codes_until: int = setting(
        0, help="step after which restart_dead_codes stops; 0: it never stops", unit="step", minimum=0
    )

    @property
    def is_perceptual(self) -> bool:
        """Whether there is a perceptual loss."""
        return self.perceptual != "none" and self.perceptual_weight > 0


@dataclass(frozen=True)
class PriorSettings(Group, title="prior"):
    """The prior over codes and its objective."""

    sampler: Literal["absorbing", "autoregressive"] = setting("absorbing", help="kind of prior")
    bert_n_emb: int = setting(512, help="width of the Transformer", unit="channels", minimum=1)
    bert_n_head: int = setting(8, help="attention heads; their number divides bert_n_emb", unit="heads", minimum=1)
    bert_n_layers: int = setting(24, help="Transformer blocks", unit="layers", minimum=1)
    block_size: int = setting(
        None, help="codes per image, N", unit="codes", minimum=1, none_means="height * width of latent_shape"
    )
    attn_pdrop: float = setting(0.0, help="dropout of attention weights", unit="p", minimum=0, below=1)
    embd_pdrop: float = setting(0.0, help="dropout of embeddings", unit="p", minimum=0, below=1)
    resid_pdrop: float = setting(0.0, help="dropout of residual branches", unit="p", minimum=0, below=1)
    total_steps: int = setting(256, help="diffusion steps, T", unit="steps", minimum=1)
    loss_type: Literal["reweighted_elbo", "elbo", "mlm"] = setting("reweighted_elbo", help="training objective")
    reweighting: Literal["published", "paper"] = setting(
        "published", help="weights of reweighted_elbo: published, 1 - t/T; paper, (T - t + 1)/T"
    )
    mask_schedule: Literal["random", "fixed"] = setting(
        "random", help="random: mask each code with probability t/T; fixed: exactly round(t/T * N) codes"
    )
    warmup_iters: int = setting(
        10_000, help="steps over which the learning rate grows linearly from 0", unit="steps", minimum=0
    )
