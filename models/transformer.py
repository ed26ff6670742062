"""The prior's Transformer: pre-norm, GELU, learned positions (paper, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import attention

KeyValue = tuple[Tensor, Tensor]  # keys and values of the places seen so far, each [B,heads,n,D/heads]


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

    def forward(self, x: Tensor, past: KeyValue | None = None) -> tuple[Tensor, KeyValue]:
        """x: [B,n,D]; past: keys and values of the places before (causal only). Returns [B,n,D] and the longer past."""
        b, n, d = x.shape
        # One product for all three; the parameters stay apart, as the published files have them.
        layers = (self.query, self.key, self.value)
        qkv = F.linear(x, torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers]))
        q, k, v = qkv.view(b, n, 3, self.n_head, d // self.n_head).permute(2, 0, 3, 1, 4).unbind(0)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        dropout = self.attn_pdrop if self.training else 0.0
        y = attention(q, k, v, causal=self.causal, dropout=dropout)
        y = y.transpose(1, 2).reshape(b, n, d)
        return self.resid_drop(self.proj(y)), (k, v)


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

    def forward(self, x: Tensor, past: KeyValue | None = None) -> tuple[Tensor, KeyValue]:
        """x: [B,n,D]; see `SelfAttention`."""
        attended, present = self.attn(self.ln1(x), past)
        x = x + attended
        return x + self.mlp(self.ln2(x)), present


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

    def forward(self, ids: Tensor) -> Tensor:
        """Bidirectional: ids [B,n] int64 → logits [B,n,K] float32."""
        return self._run(self.tok_emb(ids))[0]

    def next_logits(self, ids: Tensor, past: list[KeyValue] | None = None) -> tuple[Tensor, list[KeyValue]]:
        """Causal: logits of the places that follow the start token and `ids`.

        ids: [B,n] int64. Without `past` the start token enters first, and the logits [B,n+1,K] are those of places
        0..n. With the `past` of an earlier call, ids continue it, and the logits [B,n,K] are those of the n places
        that follow. Returns the logits (float32) and the longer past.
        """
        x = self.tok_emb(ids)
        if past is None:
            x = torch.cat([self.start_tok.to(x.dtype).expand(ids.shape[0], -1, -1), x], dim=1)
        return self._run(x, past)

    def _run(self, x: Tensor, past: list[KeyValue] | None = None) -> tuple[Tensor, list[KeyValue]]:
        start = 0 if past is None else past[0][0].shape[2]
        if start + x.shape[1] > self.pos_emb.shape[1]:
            raise ValueError(
                f"{start + x.shape[1]} tokens do not fit the {self.pos_emb.shape[1]} positions of this model"
            )
        x = self.drop(x + self.pos_emb[:, start : start + x.shape[1]])
        present = []
        for layer, block in enumerate(self.blocks):
            x, keys_values = block(x, None if past is None else past[layer])
            present.append(keys_values)
        return self.head(self.ln_f(x)).float(), present
