"""Networks start as the published ones do: PyTorch's defaults, but for positions, start token and codebook."""

import math
from collections.abc import Callable

import pytest
import torch
from small_models import autoencoder, fresh_transformer
from torch import nn

from models.prior.transformer import Transformer
from models.vqgan.networks import Discriminator

BUILDS: list[Callable[[], nn.Module]] = [
    lambda: autoencoder(img_size=32, nf=64, emb_dim=64),
    lambda: fresh_transformer(codebook_size=64, vocab_size=65, n_emb=64),
    lambda: Discriminator(3, 64, 2),
]


@pytest.mark.parametrize("build", BUILDS)
def test_every_layer_starts_at_pytorchs_default(build: Callable[[], nn.Module]) -> None:
    """Uniform in ±1/√(fan in) for weights and biases, a standard normal for tokens, ones and zeros for norms."""
    torch.manual_seed(0)
    network, seen = build(), set()
    if isinstance(network, Transformer):
        assert not network.pos_emb.any()
        assert not network.start_tok.any()
        assert network.head.bias is None
    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            for value in (layer.weight, layer.bias):
                assert value is None or value.abs().max() <= bound, name
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
