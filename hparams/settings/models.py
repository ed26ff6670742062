"""The settings of what is trained, and of drawing from it. Defaults are those of the published models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hparams.fields import Group, setting


@dataclass(frozen=True)
class AutoencoderSettings(Group, title="autoencoder"):
    """The VQGAN's generator: everything needed to rebuild it."""

    quantizer: Literal["nearest", "gumbel"] = setting(
        "nearest", "how the encoder's outputs become codes: the nearest code, or Gumbel-softmax"
    )
    codebook_size: int = setting(1024, "number of codes, K", "codes", minimum=2)
    emb_dim: int = setting(256, "length of a code's vector", "channels")
    nf: int = setting(128, "channels of the first level, a multiple of 32", "channels")
    ch_mult: tuple[int, ...] = setting(
        (1, 1, 2, 2, 4), "channels of each level, in nf; each but the first halves the image", "multiple"
    )
    res_blocks: int = setting(2, "residual blocks per level", "blocks")
    attn_resolutions: tuple[int, ...] = setting(
        (16,), "sides of feature maps with attention; none: only the middle", "pixels", allow_empty=True
    )
    img_size: int = setting(256, "side of the square images", "pixels")
    latent_shape: tuple[int, ...] = setting(
        None, "codes of one image: 1, height, width", "n", none_means="1 s s, s = img_size / 2^(levels - 1)"
    )
    n_channels: int = setting(3, "colour channels of an image, always 3", "channels")
    beta: float = setting(0.25, "weight of the quantizer loss's beta_term", "weight", minimum=0)
    beta_term: Literal["codebook", "commitment"] = setting(
        "codebook", "term that beta weighs: codebook as in the published code, commitment as in the VQ-VAE paper"
    )
    gumbel_kl_weight: float = setting(1e-8, "weight of the gumbel quantizer's KL term", "weight", minimum=0)
    gumbel_straight_through: bool = setting(False, "train with hard codes in the gumbel quantizer's forward pass")


@dataclass(frozen=True)
class VQGANSettings(Group, title="VQGAN losses"):
    """Losses, discriminator and codebook care of stage 1."""

    ndf: int = setting(64, "channels of the discriminator's first layer", "channels")
    disc_layers: int = setting(3, "strided layers of the discriminator", "layers")
    disc_start_step: int = setting(30_001, "step from which on the discriminator takes part", "step", minimum=0)
    disc_weight_max: float = setting(1.0, "most adaptive weight of the adversarial loss", "weight", minimum=0)
    perceptual: Literal["lpips", "none"] = setting("lpips", "perceptual loss; none needs no downloaded weights")
    perceptual_weights_file: str | None = setting(None, "LPIPS (VGG16) weights", "file", none_means="downloaded")
    perceptual_weight: float = setting(1.0, "weight of the perceptual loss", "weight", minimum=0)
    lpips_input: Literal["unit", "symmetric"] = setting(
        "unit", "images that LPIPS sees: unit, 0..1 as in the published code; symmetric, -1..1 as it expects"
    )
    base_lr: float = setting(4.5e-6, "learning rate per image, unless lr is given", "rate", above=0)
    sync_batchnorm: bool = setting(True, "take the discriminator's batch-norm statistics over all processes")
    diff_aug: bool = setting(False, "DiffAugment before the discriminator, for the paper's best reconstructions")
    codebook_init: Literal["uniform", "encoder"] = setting(
        "uniform", "first codes: uniform in -1/K..1/K, or drawn from the encoder's first outputs"
    )
    restart_dead_codes: int = setting(0, "steps between moving unused codes to encodings; 0: never", "steps", minimum=0)
    restart_dead_codes_until: int = setting(0, "step after which restart_dead_codes stops; 0: never", "step", minimum=0)

    @property
    def is_perceptual(self) -> bool:
        return self.perceptual != "none" and self.perceptual_weight > 0


@dataclass(frozen=True)
class PriorSettings(Group, title="prior"):
    sampler: Literal["absorbing", "autoregressive"] = setting("absorbing", "kind of prior")
    bert_n_emb: int = setting(512, "width of the Transformer", "channels")
    bert_n_head: int = setting(8, "attention heads; their number divides bert_n_emb", "heads")
    bert_n_layers: int = setting(24, "Transformer blocks", "layers")
    block_size: int = setting(None, "codes per image, N", "codes", none_means="height * width of latent_shape")
    attn_pdrop: float = setting(0.0, "dropout of attention weights", "p", minimum=0, below=1)
    embd_pdrop: float = setting(0.0, "dropout of embeddings", "p", minimum=0, below=1)
    resid_pdrop: float = setting(0.0, "dropout of residual branches", "p", minimum=0, below=1)
    total_steps: int = setting(256, "diffusion steps, T", "steps")
    loss_type: Literal["reweighted_elbo", "elbo", "mlm"] = setting("reweighted_elbo", "training objective")
    reweighting: Literal["published", "paper"] = setting(
        "published", "weights of reweighted_elbo: published, 1 - t/T; paper, (T - t + 1)/T"
    )
    mask_schedule: Literal["random", "fixed"] = setting(
        "random", "random: mask each code with probability t/T; fixed: exactly round(t/T * N) codes"
    )
    warmup_iters: int = setting(10_000, "steps of linear growth of the learning rate", "steps", minimum=0)
