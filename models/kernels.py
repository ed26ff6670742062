"""Operations with one meaning and several ways to compute them: the plain one, and the fastest that a device has."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, visible: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """softmax(q kᵀ / √d) v for q [B,heads,n,d], k and v [B,heads,m,d]: [B,heads,n,d].

    `causal`: the queries are the last n of the m places, and a place attends to itself and those before it. `visible`,
    in its place: [n,m] bool, the places that each query attends to. `dropout` acts on the attention weights.
    """
    n, m = q.shape[2], k.shape[2]
    causal = causal and n > 1  # the last place sees all
    # PyTorch's fused kernel is slow in half precision on CPUs, backward above all: 2 to 9 times the two products.
    by_products = q.device.type == "cpu" and q.dtype not in (torch.float32, torch.float64)
    if causal and (by_products or n < m):
        causal, visible = False, torch.ones((n, m), dtype=torch.bool, device=q.device).tril(m - n)
    if by_products:
        return _two_products(q, k, v, visible, dropout)
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


def project(x: Tensor, layers: Sequence[nn.Linear]) -> Sequence[Tensor]:
    """Each layer's product with x [...,D_in]: tensors [...,D_out]."""
    if x.is_cuda and len(layers) > 1:
        # One product for all, as one alone does not fill a GPU; published files keep the parameters apart.
        weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
        return F.linear(x, weight, bias).chunk(len(layers), dim=-1)
    return [layer(x) for layer in layers]


def upsampled_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 3×3 convolution, padded by one, of x [B,C,H,W] with each place repeated 2×2: [B,C',2H,2W]."""
    if x.is_cuda:  # where the other way has not been timed
        return conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    # A transposed 4×4 convolution of the smaller map is the same by 16 products for each place in place of 36: a place
    # stands for 2×2 equal ones, so that each of its products has the sum of the weights that meet them.
    weight = conv.weight.flip(2, 3).transpose(0, 1)
    kernel = torch.stack([F.pad(weight, (i, 1 - i, j, 1 - j)) for i in (0, 1) for j in (0, 1)]).sum(0)
    return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)


# Φ(−z) = 2^(c0 + c1 z + … + c7 z⁷) to 4e-6 of itself for z in [0,6], fitted (minimax); beyond, both are below 1e-9.
_LOG2_TAIL = (
    -0.999995295, -1.15125104, -0.458464395, -0.0539600676,
    0.00850789015, -0.000930524647, 6.15982679e-05, -1.83481014e-06,
)  # fmt: skip


class GELU(nn.Module):
    """Element by element, in any dtype.

    PyTorch's erf takes a GPU longer than reading and writing half precision does. There, compiled code takes a short
    form instead, whose error is far below half precision's own rounding.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and x.is_cuda and x.dtype in (torch.bfloat16, torch.float16):
            return ShortGELU.apply(x)
        return F.gelu(x)


class ShortGELU(torch.autograd.Function):
    """GELU as max(x, 0) − |x| Φ(−|x|), computed in float32: one exponential, no division, and no cancellation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        wide = x.float()
        return (wide.relu() - wide.abs() * _tail(wide)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """By the derivative Φ(x) + x φ(x)."""
        (x,) = ctx.saved_tensors
        wide = x.float()
        tail = _tail(wide)
        density = torch.exp2(wide * wide * (-0.5 / math.log(2))) / math.sqrt(2 * math.pi)
        return (grad * (torch.where(wide > 0, 1 - tail, tail) + wide * density)).to(x.dtype)


def _tail(x: Tensor) -> Tensor:
    """Φ(−|x|)."""
    z = x.abs()
    exponent = torch.full_like(z, _LOG2_TAIL[-1])
    for coefficient in reversed(_LOG2_TAIL[:-1]):
        exponent = exponent * z + coefficient
    return torch.exp2(exponent)
