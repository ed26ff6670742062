"""Every way to compute an operation, against its definition."""

import pytest
import torch
import torch.nn.functional as F
from small_models import normal
from torch import Tensor, nn

from models.kernels import GELU, ShortGELU, _one_query, attention, upsampled_conv

EVERY = torch.arange(2**16, dtype=torch.int32).to(torch.int16)  # bit patterns
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2}


def by_definition(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    q, k, v = q.double(), k.double(), v.double()
    out, n, m = torch.empty_like(q), q.shape[2], k.shape[2]
    for i in range(n):
        seen = i + m - n + 1 if causal else m
        weights = (q[:, :, i : i + 1] @ k[:, :, :seen].transpose(2, 3) / q.shape[3] ** 0.5).softmax(-1)
        out[:, :, i] = (weights @ v[:, :, :seen]).squeeze(2)
    return out


def queries_keys_values(n: int, m: int) -> list[Tensor]:
    return [normal(2, 3, length, 8, seed=seed) for seed, length in enumerate((n, m, m))]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (1, 5), (3, 5), (1, 1)])
def test_attention_is_by_definition(n: int, m: int, causal: bool, dtype: torch.dtype) -> None:
    q, k, v = (tensor.to(dtype) for tensor in queries_keys_values(n, m))
    found = attention(q, k, v, causal=causal)
    assert found.dtype == dtype
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(found.double(), by_definition(q, k, v, causal), **tolerance)


@pytest.mark.parametrize("seen", [3, 5])
def test_sums_for_one_query_are_softmax_attention(seen: int) -> None:
    """What `attention` takes on a GPU alone."""
    q, k, v = queries_keys_values(1, 5)
    found = _one_query(q, k, v, None if seen == 5 else torch.arange(5)[None] < seen)
    expected = by_definition(q, k[:, :, :seen], v[:, :, :seen])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_falls_on_the_weights_and_keeps_the_mean(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, v = torch.zeros((1, 1, 400, 4), dtype=dtype), torch.ones((1, 1, 400, 4), dtype=dtype)
    out = attention(q, q, v, dropout=0.5).double()
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    assert out.std().item() == pytest.approx(400**-0.5, rel=0.2)


def test_upsampling_convolves_the_enlarged_map() -> None:
    """Values, and the gradients of all that has some, in float64."""
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, kernel_size=3, padding=1).double()
    inputs = [torch.randn((2, 6, 5, 7), dtype=torch.float64, requires_grad=True), conv.weight, conv.bias]
    weights = torch.randn((2, 6, 10, 14), dtype=torch.float64)
    expected = conv(F.interpolate(inputs[0], scale_factor=2.0, mode="nearest"))
    found = upsampled_conv(inputs[0], conv)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    gradients = [torch.autograd.grad((out * weights).sum(), inputs) for out in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_in_half_precision_the_short_gelu_errs_by_rounding_alone(dtype: torch.dtype, rounding: float) -> None:
    """At every finite number that the dtype has, as do its derivatives."""
    x = EVERY.view(dtype)
    x = x[x.isfinite()].requires_grad_()
    wide = x.detach().double().requires_grad_()
    found, expected = ShortGELU.apply(x), F.gelu(wide)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=1.02 * rounding, atol=1e-7)
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1.02 * rounding, atol=2e-6)
    assert torch.equal(GELU()(x), F.gelu(x))  # elsewhere it is PyTorch's
