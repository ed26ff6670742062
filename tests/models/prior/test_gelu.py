"""GELU in its short form, beside PyTorch's in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.prior.gelu import GELU, ShortGELU

EVERY = torch.arange(2**16, dtype=torch.int32).to(torch.int16)  # bit patterns


def test_the_short_form_has_its_relative_error_everywhere() -> None:
    x = torch.linspace(-6, 6, 100_001)
    torch.testing.assert_close(ShortGELU.apply(x).double(), F.gelu(x.double()), rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_in_half_precision_it_errs_by_rounding_alone(dtype: torch.dtype, rounding: float) -> None:
    """At every finite number that the dtype has, as do its derivatives."""
    x = EVERY.view(dtype)
    x = x[x.isfinite()].requires_grad_()
    wide = x.detach().double().requires_grad_()
    found, expected = ShortGELU.apply(x), F.gelu(wide)
    found.sum().backward()
    expected.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(found.double(), expected, rtol=1.02 * rounding, atol=1e-7)
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1.02 * rounding, atol=2e-6)


def test_elsewhere_it_is_pytorchs() -> None:
    x = torch.randn(100)
    assert torch.equal(GELU()(x), F.gelu(x))
