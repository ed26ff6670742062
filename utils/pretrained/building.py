"""Modules and data from settings: the one place where settings meet plain arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hparams.settings.models import AutoencoderSettings, PriorSettings, VQGANSettings
from models.prior.absorbing import AbsorbingDiffusion
from models.prior.autoregressive import AutoregressivePrior
from models.prior.prior import Prior
from models.prior.transformer import Transformer
from models.vqgan.autoencoder import VQAutoEncoder
from models.vqgan.networks import Discriminator, Sizes
from models.vqgan.quantizers import GumbelQuantizer, Quantizer, VectorQuantizer
from models.vqgan.vqgan import VQGAN, PerceptualLoss

QUANTIZERS: dict[str, Callable[[AutoencoderSettings], Quantizer]] = {
    "nearest": lambda s: VectorQuantizer(s.codebook_size, s.emb_dim, s.beta, s.beta_term),
    "gumbel": lambda s: GumbelQuantizer(
        s.codebook_size, s.emb_dim, s.gumbel_kl_weight, straight_through=s.gumbel_straight_through
    ),
}


def build_autoencoder(settings: AutoencoderSettings) -> VQAutoEncoder:
    """A fresh autoencoder; its weights come from the global random stream."""
    s = settings
    sizes = Sizes(s.n_channels, s.img_size, s.nf, s.ch_mult, s.res_blocks, s.attn_resolutions, s.emb_dim)
    return VQAutoEncoder(sizes, partial(QUANTIZERS[settings.quantizer], settings))


def build_vqgan(autoencoder: AutoencoderSettings, vqgan: VQGANSettings, perceptual: PerceptualLoss | None) -> VQGAN:
    """A fresh VQGAN; its weights come from the global random stream."""
    return VQGAN(
        build_autoencoder(autoencoder),
        Discriminator(autoencoder.n_channels, vqgan.ndf, vqgan.disc_layers),
        perceptual=perceptual, perceptual_weight=vqgan.perceptual_weight,
        disc_start_step=vqgan.disc_start_step, disc_weight_max=vqgan.disc_weight_max, diff_aug=vqgan.diff_aug,
    )


def build_prior(settings: PriorSettings, codebook_size: int) -> Prior:
    """A fresh prior over `codebook_size` codes; its weights come from the global random stream."""
    return PRIORS[settings.sampler](settings, codebook_size)


PRIORS: dict[str, Callable[[PriorSettings, int], Prior]] = {
    "absorbing": lambda s, codebook_size: AbsorbingDiffusion(
        _transformer(s, codebook_size, causal=False), mask_id=codebook_size, total_steps=s.total_steps,
        loss_type=s.loss_type, reweighting=s.reweighting, mask_schedule=s.mask_schedule,
    ),
    "autoregressive": lambda s, codebook_size: AutoregressivePrior(_transformer(s, codebook_size, causal=True)),
}


def _transformer(settings: PriorSettings, codebook_size: int, *, causal: bool) -> Transformer:
    assert settings.block_size is not None  # resolved settings
    return Transformer(
        codebook_size=codebook_size, vocab_size=codebook_size if causal else codebook_size + 1,
        n_emb=settings.bert_n_emb, n_head=settings.bert_n_head, n_layers=settings.bert_n_layers,
        block_size=settings.block_size, causal=causal,
        embd_pdrop=settings.embd_pdrop, attn_pdrop=settings.attn_pdrop, resid_pdrop=settings.resid_pdrop,
    )
