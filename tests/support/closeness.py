"""Comparison of arrays whose elements carry the rounding of the largest among them."""

from __future__ import annotations

from typing import Any

import numpy as np


def assert_close_to_the_largest(found: Any, expected: Any, share: float) -> None:
    """Elements differ by no more than a share of the largest, or of one."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * max(np.abs(expected).max(), 1))
