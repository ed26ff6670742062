"""Attention by either route, against the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.prior.attention import _one_query, attention


def by_definition(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    q, k, v = q.double(), k.double(), v.double()
    out, n, m = torch.empty_like(q), q.shape[2], k.shape[2]
    for i in range(n):
        seen = i + m - n + 1 if causal else m
        weights = (q[:, :, i : i + 1] @ k[:, :, :seen].transpose(2, 3) / q.shape[3] ** 0.5).softmax(-1)
        out[:, :, i] = (weights @ v[:, :, :seen]).squeeze(2)
    return out


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 3e-2)]
)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (1, 5), (3, 5), (1, 1)])
def test_it_is_softmax_attention(n: int, m: int, causal: bool, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn((2, 3, length, 8), generator=generator).to(dtype) for length in (n, m, m))
    found = attention(q, k, v, causal=causal)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), by_definition(q, k, v, causal), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("seen", [3, 5])
def test_sums_for_one_query_are_softmax_attention(seen: int) -> None:
    """What `attention` takes on a GPU alone."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn((2, 3, length, 8), generator=generator) for length in (1, 5, 5))
    expected = by_definition(q, k[:, :, :seen], v[:, :, :seen], causal=False)
    found = _one_query(q, k, v, None if seen == 5 else torch.arange(5)[None] < seen)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_falls_on_the_weights_and_keeps_the_mean(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, v = torch.zeros((1, 1, 400, 4), dtype=dtype), torch.ones((1, 1, 400, 4), dtype=dtype)
    out = attention(q, q, v, dropout=0.5).double()
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    assert out.std().item() == pytest.approx(400**-0.5, rel=0.2)
