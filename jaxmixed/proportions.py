"""Sequences of proportions that do not decrease, and where they reach a value."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

_NORMAL = NormalDist()


def increasing(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted least-squares approximation by a sequence that does not decrease (adjacent violators pooled).

    Parameters
    ----------
    values, weights : (k,) arrays
        Weights positive.

    Returns
    -------
    (k,) array

    Examples
    --------
    >>> increasing(np.array([0.1, 0.5, 0.3, 0.9]), np.ones(4)).tolist()
    [0.1, 0.4, 0.4, 0.9]
    """
    pools: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (one, first, i), (two, second, j) = pools[-2:]
            pools[-2:] = [((one * first + two * second) / (first + second), first + second, i + j)]
    return np.repeat([mean for mean, _, _ in pools], [length for _, _, length in pools])


def crossing(x: np.ndarray, values: np.ndarray, target: float, margin: float) -> float:
    """Where a sequence of proportions that does not decrease first reaches a value.

    Between two points it is interpolated on the probit scale: the power of a normal test is a straight line
    there, in the effect and in the square root of the number of groups.

    Parameters
    ----------
    x : (k,) increasing array
    values : (k,) array
        Proportions that do not decrease.
    target : float
    margin : float
        Proportions of 0 and 1, whose probits are infinite, count as this far from there.

    Returns
    -------
    float
        Minus infinity if the first value exceeds the target, infinity if the last does not reach it.

    Examples
    --------
    >>> crossing(np.array([1.0, 2.0]), np.array([0.4, 0.6]), 0.5, 0.001)
    1.5
    >>> crossing(np.array([1.0, 2.0]), np.array([0.4, 0.6]), 0.8, 0.001)
    inf
    """
    if len(x) == 0 or values[-1] < target:
        return np.inf
    after = int(np.argmax(values >= target))
    if values[after] == target:
        return float(x[after])
    if after == 0:
        return -np.inf
    low, high, wanted = (
        _NORMAL.inv_cdf(float(np.clip(p, margin, 1 - margin)))
        for p in (values[after - 1], values[after], target)
    )
    share = (wanted - low) / (high - low) if high > low else 1.0
    return float(x[after - 1] + np.clip(share, 0.0, 1.0) * (x[after] - x[after - 1]))
