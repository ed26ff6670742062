"""Modules and data from settings: the one place where settings meet plain arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hparams.settings.models import AutoencoderSettings, PriorSettings, VQGANSettings
from hparams.settings.stages import RunSettings
from models.prior.absorbing import AbsorbingDiffusion
from models.prior.autoregressive import AutoregressivePrior
from models.prior.prior import Prior
from models.prior.transformer import Transformer
from models.vqgan.autoencoder import VQAutoEncoder
from models.vqgan.networks import Discriminator, Sizes
from models.vqgan.quantizers import GumbelQuantizer, Quantizer, VectorQuantizer
from models.vqgan.vqgan import VQGAN, PerceptualLoss
from utils.data.datasets import ImageData, Split, open_images

QUANTIZERS: dict[str, Callable[[AutoencoderSettings], Quantizer]] = {
    "nearest": lambda s: VectorQuantizer(s.codebook_size, s.emb_dim, s.beta, s.beta_term),
    "gumbel": lambda s: GumbelQuantizer(
        s.codebook_size, s.emb_dim, s.gumbel_kl_weight, straight_through=s.gumbel_straight_through
    ),
}


def build_autoencoder(settings: AutoencoderSettings) -> VQAutoEncoder:
    """A fresh autoencoder; its weights come from the global random stream."""
    sizes = Sizes(
        n_channels=settings.n_channels,
        img_size=settings.img_size,
        nf=settings.nf,
        ch_mult=settings.ch_mult,
        res_blocks=settings.res_blocks,
        attn_resolutions=settings.attn_resolutions,
        emb_dim=settings.emb_dim,
    )
    return VQAutoEncoder(sizes, partial(QUANTIZERS[settings.quantizer], settings))


def build_vqgan(autoencoder: AutoencoderSettings, vqgan: VQGANSettings, perceptual: PerceptualLoss | None) -> VQGAN:
    """A fresh VQGAN; its weights come from the global random stream."""
    return VQGAN(
        build_autoencoder(autoencoder),
        Discriminator(autoencoder.n_channels, vqgan.ndf, vqgan.disc_layers),
        perceptual=perceptual,
        perceptual_weight=vqgan.perceptual_weight,
        disc_start_step=vqgan.disc_start_step,
        disc_weight_max=vqgan.disc_weight_max,
        diff_aug=vqgan.diff_aug,
    )


def build_prior(settings: PriorSettings, codebook_size: int) -> Prior:
    """A fresh prior over `codebook_size` codes; its weights come from the global random stream."""
    return PRIORS[settings.sampler](settings, codebook_size)


def _absorbing(settings: PriorSettings, codebook_size: int) -> Prior:
    return AbsorbingDiffusion(
        _transformer(settings, codebook_size, causal=False),
        mask_id=codebook_size,
        total_steps=settings.total_steps,
        loss_type=settings.loss_type,
        reweighting=settings.reweighting,
        mask_schedule=settings.mask_schedule,
    )


def _autoregressive(settings: PriorSettings, codebook_size: int) -> Prior:
    return AutoregressivePrior(_transformer(settings, codebook_size, causal=True))


PRIORS: dict[str, Callable[[PriorSettings, int], Prior]] = {
    "absorbing": _absorbing,
    "autoregressive": _autoregressive,
}


def _transformer(settings: PriorSettings, codebook_size: int, *, causal: bool) -> Transformer:
    assert settings.block_size is not None  # resolved settings
    return Transformer(
        codebook_size=codebook_size,
        vocab_size=codebook_size if causal else codebook_size + 1,
        n_emb=settings.bert_n_emb,
        n_head=settings.bert_n_head,
        n_layers=settings.bert_n_layers,
        block_size=settings.block_size,
        embd_pdrop=settings.embd_pdrop,
        attn_pdrop=settings.attn_pdrop,
        resid_pdrop=settings.resid_pdrop,
        causal=causal,
    )


def open_data(run: RunSettings, *, split: Split, img_size: int, hold_out: bool) -> ImageData:
    """One split of the run's data set; see `open_images`. Toy scenes are the same whatever the run's seed."""
    return open_images(
        run.dataset,
        split=split,
        img_size=img_size,
        custom_dataset_path=run.custom_dataset_path,
        datasets_file=run.datasets_file,
        hold_out=hold_out,
        toy_images=run.toy_images,
    )
