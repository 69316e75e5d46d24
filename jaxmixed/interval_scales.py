"""Scales on which intervals are symmetric: monotone functions to the whole real line, and back."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class IntervalScale:
    """A monotone function to the whole real line, its derivative and its inverse; where it is defined.

    Attributes
    ----------
    forward, slope, inverse : callable
        Of arrays.
    low, high : float
        Ends of the range on which it is defined.
    """

    forward: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]
    low: float
    high: float


def _expit(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))


SCALES = {
    "identity": IntervalScale(lambda v: v, np.ones_like, lambda v: v, -np.inf, np.inf),
    "log": IntervalScale(np.log, lambda v: 1 / v, np.exp, 0.0, np.inf),
    "logit": IntervalScale(lambda v: np.log(v / (1 - v)), lambda v: 1 / (v * (1 - v)), _expit, 0.0, 1.0),
    "atanh": IntervalScale(np.arctanh, lambda v: 1 / (1 - v**2), np.tanh, -1.0, 1.0),
}
"""By name."""
