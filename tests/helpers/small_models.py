"""Networks small enough for a test, with weights that are the same every time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import chisquare
from torch import Tensor, nn

from models.parts import Noise
from models.prior.transformer import Transformer
from models.vqgan.autoencoder import VQAutoEncoder
from models.vqgan.networks import Discriminator, Sizes
from models.vqgan.quantizers import GumbelQuantizer, Quantizer, VectorQuantizer
from models.vqgan.vqgan import VQGAN

CHANCE = 1e-4  # a right sampler fails a test this seldom; the seeds are fixed, so in fact never
QUANTIZERS: dict[Any, Any] = {
    "nearest": partial(VectorQuantizer, 16, 8, beta=0.25),
    "gumbel": partial(GumbelQuantizer, 16, 8, kl_weight=1e-2, straight_through=False),
}
_AUTOENCODER: dict[str, Any] = {
    "n_channels": 3, "img_size": 16, "nf": 32, "ch_mult": (1, 2), "res_blocks": 1, "attn_resolutions": (16,),
    "emb_dim": 8,
}  # fmt: skip
_TRANSFORMER: dict[str, Any] = {
    "codebook_size": 9, "vocab_size": 10, "n_emb": 16, "n_head": 4, "n_layers": 2, "block_size": 6, "causal": False,
    "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0,
}  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def p_value(counts: Tensor, expected: Tensor) -> float:
    """p-value of Pearson's chi-square test; outcomes that hardly ever occur are pooled."""
    rare = expected * counts.sum() < 10
    pooled = [torch.cat([values[~rare], values[rare].sum()[None]]) for values in (counts, expected)]
    keep = pooled[1] > 0
    return float(chisquare(pooled[0][keep].numpy(), (pooled[1][keep] * counts.sum()).numpy()).pvalue)


def autoencoder(quantizer: str | Callable[[], Quantizer] = "nearest", **changes: Any) -> VQAutoEncoder:
    """Of images 16×16 and 64 codes of 16, in training mode. quantizer: a name, or what makes one."""
    torch.manual_seed(0)
    return VQAutoEncoder(Sizes(**_AUTOENCODER | changes), QUANTIZERS.get(quantizer, quantizer))


def perceptual(x: Tensor, y: Tensor) -> Tensor:
    """A perceptual loss: one distance per image."""
    return F.avg_pool2d(x - y, 4).square().mean((1, 2, 3), keepdim=True)


def vqgan(quantizer: str = "nearest", **changes: Any) -> VQGAN:
    """With its adversarial term from the start, unbounded, in training mode."""
    ae = autoencoder(quantizer, attn_resolutions=(8,))
    settings = {"perceptual": perceptual, "perceptual_weight": 0.5, "disc_start_step": 0, "disc_weight_max": 1e9}
    return VQGAN(ae, Discriminator(3, 8, 2), **settings | {"diff_aug": False} | changes).train()


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Copies, by the names of the parameters that have some."""
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def fresh_transformer(**changes: Any) -> Transformer:
    """Over 6 tokens of 9 codes and a mask."""
    torch.manual_seed(0)
    return Transformer(**_TRANSFORMER | changes)


def transformer(*, std: float | None = None, **changes: Any) -> Transformer:
    """In evaluation mode; places differ. std: of all weights, if given."""
    net = fresh_transformer(**changes)
    for parameter in (net.pos_emb, net.start_tok) if std is None else net.parameters():
        torch.nn.init.normal_(parameter, std=std or 1.0)
    return net.eval()


def noise(seed: int = 0) -> Noise:
    return Noise(seeded(seed))


def normal(*shape: int, seed: int = 0) -> Tensor:
    """The same numbers every time, as those of `uniform`."""
    return torch.randn(shape, generator=seeded(seed))


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """In [0,1), as images are."""
    return torch.rand(shape, generator=seeded(seed), dtype=dtype)
