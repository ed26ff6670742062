"""The prior's Transformer: pre-norm, GELU, learned positions (paper, section 3.2)."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import attention


class LayerCache:
    """One layer's keys and values, each [B,heads,N,D/heads], with room for every place from the start."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)

    def extend(self, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Enter n places from `start` on; returns all up to the last of them."""
        stop = start + k.shape[2]
        self.keys[:, :, start:stop], self.values[:, :, start:stop] = k, v
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def put(self, k: Tensor, v: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Enter the place [1] int64; returns the whole of the buffers, so that no shape depends on the place."""
        return self.keys.index_copy_(2, place, k), self.values.index_copy_(2, place, v)


class KeyValueCache:
    """Keys and values of the places seen so far, layer by layer."""

    def __init__(self, layers: list[LayerCache]) -> None:
        self.layers = layers
        self.length = 0  # places entered so far


class SelfAttention(nn.Module):
    """Multi-head self-attention over all places, or, if `causal`, over a place and those before it."""

    def __init__(
        self, n_emb: int, n_head: int, block_size: int, attn_pdrop: float, resid_pdrop: float, causal: bool
    ) -> None:
        super().__init__()
        self.key = nn.Linear(n_emb, n_emb)
        self.query = nn.Linear(n_emb, n_emb)
        self.value = nn.Linear(n_emb, n_emb)
        self.proj = nn.Linear(n_emb, n_emb)
        self.n_head = n_head
        self.attn_pdrop = attn_pdrop
        self.resid_drop = nn.Dropout(resid_pdrop)
        self.causal = causal
        if causal:  # part of published autoregressive checkpoints
            self.register_buffer("mask", torch.tril(torch.ones(block_size, block_size))[None, None])

    def forward(self, x: Tensor, cache: LayerCache | None = None, start: int | Tensor = 0) -> Tensor:
        """[B,n,D] → [B,n,D]. With a cache (causal only) x are the places from `start` on, and see those before too.

        `start` as a tensor [1] int64, for a single place, keeps every shape the same from place to place.
        """
        # One product for all three; the parameters stay apart, as the published files have them.
        q, k, v = self._project(x, self.query, self.key, self.value)
        visible = None
        if isinstance(start, Tensor):
            assert cache is not None
            k, v = cache.put(k, v, start)
            visible = torch.arange(k.shape[2], device=x.device)[None] <= start
        elif cache is not None:
            k, v = cache.extend(k, v, start)
        return self._merge(q, k, v, visible)

    def at(self, x: Tensor, places: Tensor) -> Tensor:
        """What a bidirectional `forward` gives at some places alone: x [B,n,D], places [B,m] → [B,m,D]."""
        k, v = self._project(x, self.key, self.value)
        (q,) = self._project(pick(x, places), self.query)
        return self._merge(q, k, v)

    def _project(self, x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
        """Each layer's projection of x [B,n,D], by one product, heads apart: [B,heads,n,D/heads]."""
        weight, bias = (
            (layers[0].weight, layers[0].bias)
            if len(layers) == 1
            else (torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers]))
        )
        parts = F.linear(x, weight, bias).unflatten(2, (len(layers), self.n_head, -1)).permute(2, 0, 3, 1, 4)
        # On a CPU one copy for all of them, where the products would make one of each. Fused kernels need none.
        return (parts if parts.is_cuda else parts.contiguous()).unbind(0)

    def _merge(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
        dropout = self.attn_pdrop if self.training else 0.0
        y = attention(q, k, v, causal=self.causal and visible is None, visible=visible, dropout=dropout)
        return self.resid_drop(self.proj(y.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Attention and a four times wider two-layer network, each normalised before and added after."""

    def __init__(
        self, n_emb: int, n_head: int, block_size: int, attn_pdrop: float, resid_pdrop: float, causal: bool
    ) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(n_emb)
        self.ln2 = nn.LayerNorm(n_emb)
        self.attn = SelfAttention(n_emb, n_head, block_size, attn_pdrop, resid_pdrop, causal)
        self.mlp = nn.Sequential(
            nn.Linear(n_emb, 4 * n_emb), nn.GELU(), nn.Linear(4 * n_emb, n_emb), nn.Dropout(resid_pdrop)
        )

    def forward(self, x: Tensor, cache: LayerCache | None = None, start: int | Tensor = 0) -> Tensor:
        """[B,n,D] → [B,n,D]; see `SelfAttention`."""
        x = x + self.attn(self.ln1(x), cache, start)
        return x + self.mlp(self.ln2(x))

    def at(self, x: Tensor, places: Tensor) -> Tensor:
        """What a bidirectional `forward` gives at some places alone: x [B,n,D], places [B,m] → [B,m,D]."""
        y = pick(x, places) + self.attn.at(self.ln1(x), places)
        return y + self.mlp(self.ln2(y))


def pick(x: Tensor, places: Tensor) -> Tensor:
    """x [B,n,D] at places [B,m] int64: [B,m,D]."""
    return x.gather(1, places.unsqueeze(2).expand(-1, -1, x.shape[2]))


class Transformer(nn.Module):
    """Token ids to logits over the codebook, at every place at once. The time step is not an input."""

    def __init__(
        self,
        *,
        codebook_size: int,  # K, number of output symbols
        vocab_size: int,  # number of input symbols: K + 1 with a mask id, else K
        n_emb: int,  # D, width
        n_head: int,  # attention heads
        n_layers: int,  # blocks
        block_size: int,  # N, number of positions
        embd_pdrop: float,  # dropout of the embeddings
        attn_pdrop: float,  # dropout of the attention weights
        resid_pdrop: float,  # dropout of what a block adds
        causal: bool,  # autoregressive: a learned start token enters first, and place i sees only what is before it
    ) -> None:
        super().__init__()
        # PyTorch's default initialisation, as published; positions and start token start at zero.
        self.tok_emb = nn.Embedding(vocab_size, n_emb)
        self.pos_emb = nn.Parameter(torch.zeros(1, block_size, n_emb))
        self.start_tok = nn.Parameter(torch.zeros(1, 1, n_emb))
        self.drop = nn.Dropout(embd_pdrop)
        self.blocks = nn.ModuleList(
            Block(n_emb, n_head, block_size, attn_pdrop, resid_pdrop, causal) for _ in range(n_layers)
        )
        self.ln_f = nn.LayerNorm(n_emb)
        self.head = nn.Linear(n_emb, codebook_size, bias=False)

    def forward(self, ids: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Bidirectional: ids [B,n] int64 → logits [B,n,K] float32, or [M,K] of the M places of `chosen` [B,n] bool."""
        x = self._embed(ids)
        for block in self.blocks:
            x = block(x)
        return self._predict(x if chosen is None else x[chosen])

    def logits_at(self, ids: Tensor, places: Tensor) -> Tensor:
        """What `forward` gives at some places alone: ids [B,n], places [B,m], both int64 → [B,m,K] float32."""
        x = self._embed(ids)
        for block in self.blocks[:-1]:
            x = block(x)
        return self._predict(cast(Block, self.blocks[-1]).at(x, places))

    def new_cache(self, batch: int) -> KeyValueCache:
        """An empty cache for `next_logits`, in the type of the ambient autocast."""
        _, places, width = self.pos_emb.shape
        heads, device = cast(Block, self.blocks[0]).attn.n_head, self.pos_emb.device
        amp = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if amp else self.pos_emb.dtype
        shape = (batch, heads, places, width // heads)
        return KeyValueCache([LayerCache(shape, dtype, device) for _ in self.blocks])

    def next_logits(self, ids: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Causal: logits of the places that follow the start token and `ids`.

        ids: [B,n] int64. Without a cache, or with an empty one, the start token enters first, and the logits
        [B,n+1,K] are those of places 0..n. With a cache that earlier calls filled, ids continue it, and the logits
        [B,n,K] are those of the n places that follow. A cache is filled further, and only without gradients.
        """
        start = cache.length if cache else 0
        x = self._embed(ids, start, start_token=start == 0)
        for layer, block in enumerate(self.blocks):
            x = block(x, cache.layers[layer], start) if cache else block(x)
        if cache:
            cache.length = start + x.shape[1]
        return self._predict(x)

    def following_logits(self, ids: Tensor, place: Tensor, cache: KeyValueCache) -> Tensor:
        """`next_logits` of one code each, with the same shapes at every place: what compiled code wants.

        ids: [B,1] int64 at place [1] int64 of the sequence that begins with the start token. Returns [B,1,K].
        """
        x = self.drop(self.tok_emb(ids) + self.pos_emb[:, place])
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            x = block(x, layer, place)
        return self._predict(x)

    def _embed(self, ids: Tensor, start: int = 0, *, start_token: bool = False) -> Tensor:
        x = self.tok_emb(ids)
        if start_token:
            x = torch.cat([self.start_tok.to(x.dtype).expand(ids.shape[0], -1, -1), x], dim=1)
        stop = start + x.shape[1]
        if stop > self.pos_emb.shape[1]:
            raise ValueError(f"{stop} tokens do not fit the {self.pos_emb.shape[1]} positions of this model")
        return self.drop(x + self.pos_emb[:, start:stop])

    def _predict(self, x: Tensor) -> Tensor:
        x = self.ln_f(x)
        if self.training:
            return self.head(x).float()
        # What is drawn, or scored, is not rounded to half precision first.
        with torch.autocast(x.device.type, enabled=False):
            return self.head(x.to(self.head.weight.dtype)).float()
