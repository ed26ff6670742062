"""Networks start as the published ones do: PyTorch's defaults, but for positions, start token and codebook."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from models.prior.transformer import Transformer
from models.vqgan.autoencoder import VQAutoEncoder
from models.vqgan.discriminator import Discriminator


def autoencoder() -> nn.Module:
    return VQAutoEncoder(
        n_channels=3,
        img_size=32,
        nf=64,
        ch_mult=(1, 2),
        res_blocks=1,
        attn_resolutions=(16,),
        codebook_size=64,
        emb_dim=64,
        quantizer="nearest",
        beta=0.25,
        gumbel_kl_weight=1e-8,
        gumbel_straight_through=False,
    )


def transformer() -> nn.Module:
    return Transformer(
        codebook_size=64,
        vocab_size=65,
        n_emb=64,
        n_head=2,
        n_layers=2,
        block_size=16,
        embd_pdrop=0,
        attn_pdrop=0,
        resid_pdrop=0,
        causal=False,
    )


@pytest.mark.parametrize("build", [autoencoder, transformer, lambda: Discriminator(3, 64, 2)])
def test_every_layer_starts_at_pytorchs_default(build: Callable[[], nn.Module]) -> None:
    """Uniform in ±1/√(fan in) for weights and biases, a standard normal for tokens, ones and zeros for norms."""
    torch.manual_seed(0)
    seen: set[str] = set()
    for name, layer in build().named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            for value in (layer.weight, layer.bias):
                if value is not None:
                    assert value.abs().max() <= bound, name
            assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2), name
        elif isinstance(layer, nn.Embedding) and name == "tok_emb":
            assert layer.weight.std().item() == pytest.approx(1, rel=0.1)
            assert layer.weight.abs().max() > 2
        elif isinstance(layer, (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)):
            assert (layer.weight == 1).all(), name
            assert (layer.bias == 0).all(), name
        else:
            continue
        seen.add(type(layer).__name__)
    assert len(seen) >= 2
