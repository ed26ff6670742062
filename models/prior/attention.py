"""Scaled dot-product attention, by the fastest exact way that a device has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, visible: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """softmax(q kᵀ / √d) v for q [B,heads,n,d], k and v [B,heads,m,d]: [B,heads,n,d].

    `causal`: the queries are the last n of the m places, and a place attends to itself and those before it.
    `visible`, in place of `causal`: [n,m] bool, the places that each query attends to.
    `dropout` acts on the attention weights.
    """
    n, m = q.shape[2], k.shape[2]
    causal = causal and n > 1  # the last place sees all
    if causal and n < m:
        causal, visible = False, _not_later(q, k)
    # PyTorch's fused kernel is slow in half precision on CPUs, backward above all: 2 to 9 times the two products.
    if q.device.type == "cpu" and q.dtype is not torch.float32 and q.dtype is not torch.float64:
        return _two_products(q, k, v, _not_later(q, k) if causal else visible, dropout)
    if n == 1 and q.is_cuda and q.dtype is torch.float32 and not dropout:
        return _one_query(q, k, v, visible)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout, is_causal=causal)


def _two_products(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, dropout: float) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    weights = scores.softmax(-1).to(v.dtype)
    return (F.dropout(weights, dropout) if dropout else weights) @ v


def _one_query(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """By sums over keys and values as they lie: with one query, PyTorch's float32 kernel takes 4 times as long."""
    scores = (q * k).sum(-1) * q.shape[-1] ** -0.5  # [B,heads,m]
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1).unsqueeze(-1) * v).sum(2, keepdim=True)


def _not_later(q: Tensor, k: Tensor) -> Tensor:
    """[n,m] bool: each query's own place and those before it."""
    n, m = q.shape[2], k.shape[2]
    return torch.ones((n, m), dtype=torch.bool, device=q.device).tril(m - n)
