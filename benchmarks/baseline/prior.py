"""The prior as published: three projections, explicit softmax, lock-step sampling, no cache."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical


class Attention(nn.Module):
    """Scores, softmax and weighted sum as three operations over [B,heads,n,n]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor, causal: Tensor | None) -> Tensor:
        b, n, d = x.shape
        k, q, v = (
            layer(x).view(b, n, self.heads, d // self.heads).transpose(1, 2)
            for layer in (self.key, self.query, self.value)
        )
        scores = (q @ k.transpose(-2, -1)) * (1 / math.sqrt(k.shape[-1]))
        if causal is not None:
            scores = scores.masked_fill(causal[:n, :n] == 0, float("-inf"))
        y = F.softmax(scores, dim=-1) @ v
        return self.proj(y.transpose(1, 2).contiguous().view(b, n, d))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.0))

    def forward(self, x: Tensor, causal: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln1(x), causal)
        return x + self.mlp(self.ln2(x))


class Transformer(nn.Module):
    """Token ids [B,n] → logits [B,n,K] ([B,n+1,K] if causal, where the start token comes first)."""

    def __init__(
        self, codes: int, symbols: int, width: int, heads: int, layers: int, tokens: int, causal: bool
    ) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(symbols, width)
        self.pos_emb = nn.Parameter(torch.zeros(1, tokens, width))
        self.start_tok = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, codes, bias=False)
        self.register_buffer("causal", torch.tril(torch.ones(tokens, tokens)) if causal else None, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok_emb(ids)
        if self.causal is not None:
            x = torch.cat([self.start_tok.repeat(len(ids), 1, 1), x], dim=1)
        x = x + self.pos_emb[:, : x.shape[1]]
        for block in self.blocks:
            x = block(x, self.causal)
        return self.head(self.ln_f(x))


class Trainer:
    """One step of the reweighted bound: everything is predicted, its loss is read at once, the average is a loop.

    amp_dtype: autocast to this type, with a loss scaler for float16, as the published `--amp` does.
    """

    def __init__(
        self,
        net: Transformer,
        *,
        mask_id: int,
        total_steps: int,
        lr: float,
        beta: float,
        amp_dtype: torch.dtype | None = None,
    ) -> None:
        self.net, self.mask_id, self.total_steps, self.beta = net, mask_id, total_steps, beta
        self.amp_dtype, self.device_type = amp_dtype, net.pos_emb.device.type
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=amp_dtype is torch.float16)
        self.optimiser = torch.optim.Adam(net.parameters(), lr=lr)
        self.average = [parameter.detach().clone() for parameter in net.parameters()]

    def step(self, ids: Tensor, t: Tensor, mask: Tensor) -> float:
        """ids [B,N], t [B], mask [B,N] bool; returns the objective in bits per token."""
        x_t = ids.clone()
        x_t[mask] = self.mask_id
        target = ids.clone()
        target[~mask] = -1
        with torch.autocast(self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            logits = self.net(x_t).permute(0, 2, 1)
            nats = F.cross_entropy(logits, target, ignore_index=-1, reduction="none").sum(1)
            weight = 1 - t / self.total_steps
            loss = (weight * nats / (math.log(2) * ids.shape[1])).mean()
        self.optimiser.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return loss.item()

    @torch.no_grad()
    def update_average(self) -> None:
        for average, parameter in zip(self.average, self.net.parameters(), strict=True):
            average.mul_(self.beta).add_(parameter, alpha=1 - self.beta)


@torch.no_grad()
def lock_step_samples(
    net: Transformer, batch: int, tokens: int, *, mask_id: int, steps: int, temp: float
) -> Iterator[Tensor]:
    """Every token of every image is predicted and drawn at every step; yields after each of the `steps`."""
    x = torch.full((batch, tokens), mask_id, device=net.pos_emb.device)
    unmasked = torch.zeros_like(x, dtype=torch.bool)
    for s in range(steps, 0, -1):
        changes = torch.rand(x.shape, device=x.device) < 1 / s
        changes = changes & ~unmasked
        unmasked = unmasked | changes
        drawn = Categorical(logits=net(x) / temp).sample()
        x[changes] = drawn[changes]
        yield x


@torch.no_grad()
def recomputed_token(net: Transformer, ids: Tensor, temp: float) -> Tensor:
    """The token after ids [B,n], from the whole prefix: [B,1]."""
    return Categorical(logits=net(ids)[:, -1] / temp).sample().unsqueeze(1)
