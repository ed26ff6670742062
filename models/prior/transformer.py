"""The prior's Transformer: pre-norm, GELU, learned positions (paper, section 3.2)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from models.kernels import GELU, attention, project


class LayerCache:
    """One layer's keys and values, each [B,heads,N,D/heads], with room for every place."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)

    def enter(self, k: Tensor, v: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Enter places from `start` on; returns all up to the last of them, and None, as all are visible.

        Where `start` is a tensor [1] int64, for one place, no shape depends on it: returns the whole buffers, and which
        of their places are visible, [1,N] bool.
        """
        if isinstance(start, Tensor):
            visible = torch.arange(self.keys.shape[2], device=k.device)[None] <= start
            return self.keys.index_copy_(2, start, k), self.values.index_copy_(2, start, v), visible
        stop = start + k.shape[2]
        self.keys[:, :, start:stop], self.values[:, :, start:stop] = k, v
        return self.keys[:, :, :stop], self.values[:, :, :stop], None


@dataclass
class KeyValueCache:
    """Keys and values of the places seen so far, layer by layer."""

    layers: list[LayerCache]
    length: int = 0  # places entered so far


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
        self.resid_drop = nn.Dropout(resid_pdrop)
        self.n_head, self.attn_pdrop, self.causal = n_head, attn_pdrop, causal
        if causal:  # part of published autoregressive checkpoints
            self.register_buffer("mask", torch.tril(torch.ones(block_size, block_size))[None, None])

    def forward(self, x: Tensor, cache: LayerCache | None = None, start: int | Tensor = 0) -> Tensor:
        """[B,n,D] → [B,n,D]. With a cache (causal only) x are the places from `start` on, and see those before too."""
        q, k, v = self._project(x, self.query, self.key, self.value)
        visible = None
        if cache is not None:
            k, v, visible = cache.enter(k, v, start)
        return self._merge(q, k, v, visible)

    def at(self, x: Tensor, places: Tensor) -> Tensor:
        """What a bidirectional `forward` gives at some places alone: x [B,n,D], places [B,m] → [B,m,D]."""
        k, v = self._project(x, self.key, self.value)
        (q,) = self._project(pick(x, places), self.query)
        return self._merge(q, k, v)

    def _project(self, x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
        """Each layer's projection of x [B,n,D], heads apart: [B,heads,n,D/heads]."""
        return tuple(y.unflatten(2, (self.n_head, -1)).transpose(1, 2) for y in project(x, layers))

    def _merge(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
        dropout = self.attn_pdrop if self.training else 0.0
        y = attention(q, k, v, causal=self.causal and visible is None, visible=visible, dropout=dropout)
        return self.resid_drop(self.proj(y.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Attention and a four times wider two-layer network, each normalised before and added after.

    Returns the MLP's output separately; the next block adds it, so that torch.compile fuses that addition with its
    LayerNorm.
    """

    def __init__(self, n_emb: int, attn: SelfAttention, resid_pdrop: float) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(n_emb), nn.LayerNorm(n_emb)
        self.attn = attn
        widen, narrow = nn.Linear(n_emb, 4 * n_emb), nn.Linear(4 * n_emb, n_emb)
        self.mlp = nn.Sequential(widen, GELU(), narrow, nn.Dropout(resid_pdrop))

    def forward(
        self, x: Tensor, added: Tensor, cache: LayerCache | None = None, start: int | Tensor = 0
    ) -> tuple[Tensor, Tensor]:
        """x and what is still to be added to it, both [B,n,D] → the same after this block; see `SelfAttention`."""
        x = x + added
        x = x + self.attn(self.ln1(x), cache, start)
        return x, self.mlp(self.ln2(x))

    def at(self, x: Tensor, added: Tensor, places: Tensor) -> Tensor:
        """The sum of what a bidirectional `forward` gives, at some places alone: places [B,m] → [B,m,D]."""
        x = x + added
        y = pick(x, places) + self.attn.at(self.ln1(x), places)
        return y + self.mlp(self.ln2(y))


def pick(x: Tensor, places: Tensor) -> Tensor:
    """x [B,n,D] at places [B,m] int64: [B,m,D]."""
    return x.gather(1, places.unsqueeze(2).expand(-1, -1, x.shape[2]))


def _ambient_dtype(x: Tensor) -> torch.dtype:
    """That of a product with x, under the ambient autocast."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype


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
        sizes = (n_emb, n_head, block_size, attn_pdrop, resid_pdrop, causal)
        self.blocks = nn.ModuleList(Block(n_emb, SelfAttention(*sizes), resid_pdrop) for _ in range(n_layers))
        self.ln_f = nn.LayerNorm(n_emb)
        self.head = nn.Linear(n_emb, codebook_size, bias=False)

    def forward(self, ids: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Bidirectional: ids [B,n] int64 → logits [B,n,K] float32, or [M,K] of the M places of `chosen` [B,n] bool."""
        x = torch.add(*self._run(self.blocks, self._embed(ids)))
        return self._predict(x if chosen is None else x[chosen])

    def logits_at(self, ids: Tensor, places: Tensor) -> Tensor:
        """What `forward` gives at some places alone: ids [B,n], places [B,m], both int64 → [B,m,K] float32."""
        x, added = self._run(self.blocks[:-1], self._embed(ids))
        return self._predict(cast(Block, self.blocks[-1]).at(x, added, places))

    def new_cache(self, batch: int) -> KeyValueCache:
        """An empty cache for `next_logits`, in the type of the ambient autocast."""
        _, places, width = self.pos_emb.shape
        heads = cast(Block, self.blocks[0]).attn.n_head
        shape, dtype = (batch, heads, places, width // heads), _ambient_dtype(self.pos_emb)
        return KeyValueCache([LayerCache(shape, dtype, self.pos_emb.device) for _ in self.blocks])

    def next_logits(self, ids: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Causal: logits of the places that follow the start token and `ids`.

        ids: [B,n] int64. Without a cache, or with an empty one, the start token enters first, and the logits [B,n+1,K]
        are those of places 0..n. With a cache that earlier calls filled, ids continue it, and the logits [B,n,K] are
        those of the n places that follow. A cache is filled further, and only without gradients.
        """
        start = cache.length if cache else 0
        x = self._embed(ids, start, start_token=start == 0)
        x = torch.add(*self._run(self.blocks, x, cache, start))
        if cache:
            cache.length = start + x.shape[1]
        return self._predict(x)

    def following_logits(self, ids: Tensor, place: Tensor, cache: KeyValueCache) -> Tensor:
        """`next_logits` of one code each, with the same shapes at every place: what compiled code wants.

        ids: [B,1] int64 at place [1] int64 of the sequence that begins with the start token. Returns [B,1,K].
        """
        x = self.drop(self.tok_emb(ids) + self.pos_emb[:, place])
        return self._predict(torch.add(*self._run(self.blocks, x, cache, place)))

    def _run(
        self, blocks: Iterable[nn.Module], x: Tensor, cache: KeyValueCache | None = None, start: int | Tensor = 0
    ) -> tuple[Tensor, Tensor]:
        """x [B,n,D] after some blocks, in two summands."""
        added = torch.zeros_like(x, dtype=_ambient_dtype(x))
        for layer, block in enumerate(blocks):
            x, added = block(x, added, cache and cache.layers[layer], start)
        return x, added

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
