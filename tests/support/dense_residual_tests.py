"""Models with residual structures, for the definitions of Satterthwaite's and Kenward and Roger's methods.

The covariance matrix V of the responses is a function of natural parameters, from the structures' definitions
(:mod:`tests.support.dense_residuals`); its derivatives are differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import pandas as pd

from tests.support.dense import Array
from tests.support.dense_residuals import Structure

STEP = 1e-3
"""Relative step of the differences, of the fourth order."""

WEIGHTS = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}
SECOND = {-2: -1 / 12, -1: 16 / 12, 0: -30 / 12, 1: 16 / 12, 2: -1 / 12}


@dataclass(frozen=True)
class DenseCurved:
    """V and its derivatives in some parameters; the attributes are those of `dense_tests.DenseModel`."""

    X: Array
    y: Array
    V: Array
    parts: list[Array]
    curvatures: dict[tuple[int, int], Array]


def curved_model(
    X: Array,
    y: Array,
    effects: Sequence[tuple[Array, float]],
    residual: Callable[[Array], Array],
    parameters: Array,
) -> DenseCurved:
    """V is the sum of the effects' parts, each times its variance or covariance, and of `residual` (psi)."""
    steps = STEP * np.maximum(np.abs(parameters), 0.1)

    def at(*moves: tuple[int, int]) -> Array:
        psi = parameters.copy()
        for place, number in moves:
            psi[place] += number * steps[place]
        return residual(psi)

    first, second = [], {}
    k = len(effects)
    for a in range(len(parameters)):
        first.append(sum(w * at((a, i)) for i, w in WEIGHTS.items()) / steps[a])
    for a, b in combinations_with_replacement(range(len(parameters)), 2):
        if a == b:
            bend = sum(w * at((a, i)) for i, w in SECOND.items()) / steps[a] ** 2
        else:
            products = ((i, v, j, w) for i, v in WEIGHTS.items() for j, w in WEIGHTS.items())
            bend = sum(v * w * at((a, i), (b, j)) for i, v, j, w in products) / (steps[a] * steps[b])
        second[k + a, k + b] = second[k + b, k + a] = np.asarray(bend)
    V = residual(parameters) + sum(value * part for part, value in effects)
    return DenseCurved(X, y, np.asarray(V), [*(part for part, _ in effects), *map(np.asarray, first)], second)


def natural_residual(
    structure: Structure, data: pd.DataFrame, names: Sequence[str]
) -> Callable[[Array], Array]:
    """Covariance of the residuals as a function of natural parameters; variances in place of deviations.

    `names` are those of the parameters; "sigma2" and "sd[..]" stand for variances.
    """

    def residual(psi: Array) -> Array:
        values = {
            name: np.sqrt(value) if name.startswith("sd[") else value
            for name, value in zip(names, psi, strict=True)
        }
        sigma = np.sqrt(values.pop("sigma2", 1.0))
        return sigma**2 * structure.relative(data, values, sigma)

    return residual


def linear_residual(shapes: Sequence[Array]) -> Callable[[Array], Array]:
    """Covariance of the residuals as a combination of given matrices."""
    return lambda psi: np.asarray(sum(value * shape for value, shape in zip(psi, shapes, strict=True)))
