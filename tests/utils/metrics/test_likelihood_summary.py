"""Means and errors of a likelihood estimate."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hparams.errors import RunError
from utils.metrics.likelihood import summarise

BIT = math.log(2)  # nats


def terms(pixels: list[float], codes: list[float], variance: list[float]) -> np.ndarray:
    return np.array([pixels, codes, variance]).T


def test_means_and_errors_in_bits_per_dimension() -> None:
    found = terms([120 * BIT, 240 * BIT], [12 * BIT, 36 * BIT], [9 * BIT**2, 16 * BIT**2])
    values = summarise(found, dimensions=12, tokens=4)
    expected = {
        "bits_per_dim": 17,
        "standard_error": 6,  # half the difference of 11 and 23
        "pixel_bits_per_dim": 15,
        "pixel_standard_error": 5,
        "code_bits_per_dim": 2,
        "code_standard_error": 1,
        "code_mc_error": 5 / 2 / 12,
        "code_bits_per_token": 6,
    }
    assert values == pytest.approx(expected)


def test_one_image_has_no_standard_error_and_one_draw_no_monte_carlo_error() -> None:
    values = summarise(terms([1.0], [1.0], [math.nan]), dimensions=1, tokens=1)
    assert values["standard_error"] is None
    assert values["code_mc_error"] is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_no_result(value: float) -> None:
    with pytest.raises(RunError, match="finite"):
        summarise(terms([1.0, value], [1.0, 1.0], [0.0, 0.0]), dimensions=1, tokens=1)
