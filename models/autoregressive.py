"""The autoregressive prior, for comparison with the diffusion model."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.samplers import own_generator, sample_autoregressive
from models.transformer import Transformer


class AutoregressivePrior(nn.Module):
    """p(codes) = Π p(code i | codes before i), in raster order. Parameter names are the published ones."""

    def __init__(self, net: Transformer) -> None:
        super().__init__()
        self.net = net

    @property
    def tokens(self) -> int:
        """N, number of tokens of a sample."""
        return self.net.pos_emb.shape[1]

    def logits(self, ids: Tensor) -> Tensor:
        """ids [B,N] int64 in 0..K-1 → logits [B,N,K] float32; place i is predicted from the ids before it."""
        return self.net.next_logits(ids[:, :-1])[0]

    def losses(self, ids: Tensor) -> Tensor:
        """−log2 p(ids), bits per token: ids [B,N] → [B]."""
        nats = F.cross_entropy(self.logits(ids).transpose(1, 2), ids, reduction="none")
        return nats.mean(1) / math.log(2)

    def sample(self, n: int, *, generator: torch.Generator | None = None, temp: float = 1.0) -> Tensor:
        """Draw n samples: ids [n,N] int64 in 0..K-1, on the model's device.

        Without a `generator` (of that device) the draws follow torch's global stream.
        """
        generator = own_generator(generator, self.net.pos_emb.device)
        return sample_autoregressive(self.net, n, self.tokens, temp=temp, generator=generator)
