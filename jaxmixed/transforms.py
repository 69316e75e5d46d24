"""Functions that a formula may call, those that learn from the data with the state they keep.

A stateful transform (``scale``, ``center``, ``poly``, ``bs``, ``ns``) is fitted once on the training rows;
the frozen state then encodes training rows and new rows alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jaxmixed.contrasts import orthogonal_polynomials
from jaxmixed.errors import DataError, FormulaError

ELEMENTWISE: dict[str, Callable[..., np.ndarray]] = {
    "log": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "log1p": np.log1p,
    "exp": np.exp,
    "expm1": np.expm1,
    "sqrt": np.sqrt,
    "abs": np.abs,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
}
SLOPES: dict[str, Callable[..., np.ndarray]] = {
    "log": np.reciprocal,
    "log2": lambda x: 1 / (np.log(2.0) * x),
    "log10": lambda x: 1 / (np.log(10.0) * x),
    "log1p": lambda x: 1 / (1 + x),
    "exp": np.exp,
    "expm1": np.exp,
    "sqrt": lambda x: 0.5 / np.sqrt(x),
    "abs": np.sign,
    "sin": np.cos,
    "cos": lambda x: -np.sin(x),
    "tan": lambda x: 1 / np.cos(x) ** 2,
}
"""Derivatives of the elementwise functions; that of ``abs`` at zero is 0, the mean of its two sides."""

STATEFUL = frozenset({"scale", "center", "poly", "bs", "ns"})
_MAX_DEGREE = 50


class State(Protocol):
    """What a stateful transform remembers."""

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Values of the transform: (n,) for one unnamed column, (n, k) for numbered columns."""
        ...

    def slope(self, x: np.ndarray) -> np.ndarray:
        """Their derivatives in x, in the same shape."""
        ...


@dataclass(frozen=True, slots=True)
class Affine:
    """``(x - shift) / divisor``: ``center`` (divisor 1) and ``scale`` (standard deviation with n - 1)."""

    shift: float
    divisor: float

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Centred, scaled values."""
        centred = x - self.shift
        return centred if self.divisor == 1.0 else centred / self.divisor

    def slope(self, x: np.ndarray) -> np.ndarray:
        """One over the divisor."""
        return np.full_like(x, 1 / self.divisor)


@dataclass(frozen=True, slots=True, eq=False)
class OrthogonalPolynomial:
    """R's ``poly(x, degree)``: polynomials orthonormal on the training points, in ``(x - shift) / unit``."""

    shift: float
    unit: float
    alpha: np.ndarray
    norm: np.ndarray

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Columns of degrees 1 to ``len(alpha)`` by the three-term recurrence."""
        scaled = (x - self.shift) / self.unit
        out = np.empty((len(x), len(self.alpha)), order="F")
        before, current = np.zeros_like(scaled), np.full_like(scaled, 1 / np.sqrt(self.norm[0]))
        beta = np.sqrt(self.norm[1:] / self.norm[:-1])
        for degree, alpha in enumerate(self.alpha):
            last = beta[degree - 1] if degree else 0.0
            before, current = current, ((scaled - alpha) * current - last * before) / beta[degree]
            out[:, degree] = current
        return out

    def slope(self, x: np.ndarray) -> np.ndarray:
        """Derivatives, by the recurrence differentiated."""
        scaled, values = (x - self.shift) / self.unit, self.apply(x)
        out = np.empty_like(values)
        value = np.full_like(scaled, 1 / np.sqrt(self.norm[0]))
        before, current = np.zeros_like(scaled), np.zeros_like(scaled)
        beta = np.sqrt(self.norm[1:] / self.norm[:-1])
        for degree, alpha in enumerate(self.alpha):
            last = beta[degree - 1] if degree else 0.0
            slope = ((scaled - alpha) * current + value - last * before) / beta[degree]
            before, current, value = current, slope, values[:, degree]
            out[:, degree] = current
        return out / self.unit


@dataclass(frozen=True, slots=True)
class RawPolynomial:
    """``poly(x, degree, raw=TRUE)``: powers 1 to ``degree``."""

    degree: int

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Powers of x."""
        return x[:, None] ** np.arange(1.0, self.degree + 1.0)

    def slope(self, x: np.ndarray) -> np.ndarray:
        """Powers one lower, times their exponents."""
        exponents = np.arange(1.0, self.degree + 1.0)
        return exponents * x[:, None] ** (exponents - 1)


@dataclass(frozen=True, slots=True, eq=False)
class BSpline:
    """R's ``bs``: B-splines, extended beyond the knots by the outermost polynomial pieces."""

    knots: np.ndarray
    degree: int

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Basis functions without the first one, which the intercept replaces."""
        return _splines(self.knots, self.degree, x)[:, 1:]

    def slope(self, x: np.ndarray) -> np.ndarray:
        """Derivatives of the basis functions."""
        return _splines(self.knots, self.degree, x, derivative=1)[:, 1:]


@dataclass(frozen=True, slots=True, eq=False)
class NaturalSpline:
    """R's ``ns``: cubic splines with zero curvature at the boundary, linear beyond it."""

    knots: np.ndarray
    constraint: np.ndarray

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Basis functions that satisfy the boundary constraints."""
        low, high = self.knots[0], self.knots[-1]
        basis = _splines(self.knots, 3, np.clip(x, low, high))
        for edge, outside in ((low, x < low), (high, x > high)):
            if outside.any():
                slope = _splines(self.knots, 3, np.array([edge]), derivative=1)
                basis[outside] += np.outer(x[outside] - edge, slope)
        return basis[:, 1:] @ self.constraint

    def slope(self, x: np.ndarray) -> np.ndarray:
        """Derivatives of the basis functions, constant beyond the boundary."""
        inside = np.clip(x, self.knots[0], self.knots[-1])
        return _splines(self.knots, 3, inside, derivative=1)[:, 1:] @ self.constraint


def fit_transform(name: str, label: str, x: np.ndarray, options: Mapping[str, float | bool]) -> State:
    """Learn the state of a stateful transform from the training values.

    Parameters
    ----------
    name
        One of :data:`STATEFUL`.
    label
        The call as written, for messages.
    x
        Training values, finite.
    options
        Arguments that the formula gives: ``center`` and ``scale`` of ``scale``; ``degree`` and ``raw`` of
        ``poly``; ``df`` and ``degree`` of ``bs``; ``df`` of ``ns``.

    Raises
    ------
    FormulaError
        If an option is out of range.
    DataError
        If the data cannot support the transform.

    Examples
    --------
    >>> fit_transform("scale", "scale(x)", np.array([1.0, 2.0, 3.0]), {})
    Affine(shift=2.0, divisor=1.0)
    """
    if name == "center":
        return Affine(_mean(x), 1.0)
    if name == "scale":
        return _fit_scale(label, x, options.get("center", True), options.get("scale", True))
    if name == "poly":
        return _fit_poly(
            label, x, _integer(label, "degree", options["degree"], 1), bool(options.get("raw", False))
        )
    if name == "bs":
        degree = _integer(label, "degree", options.get("degree", 3), 1)
        df = _integer(label, "df", options["df"], degree)
        return BSpline(_knot_sequence(label, x, df - degree, degree), degree)
    df = _integer(label, "df", options["df"], 1)
    return _natural_spline(_knot_sequence(label, x, df - 1, 3))


def _integer(label: str, option: str, value: float, smallest: int) -> int:
    if value != int(value) or not smallest <= value <= _MAX_DEGREE:
        raise FormulaError(
            f"{label}: {option} must be a whole number from {smallest} to {_MAX_DEGREE}, not {value:g}"
        )
    return int(value)


def _mean(x: np.ndarray) -> float:
    """Mean, corrected once for rounding; no overflow for large values."""
    unit = float(np.abs(x).max()) or 1.0
    scaled = x / unit
    mean = scaled.mean()
    return float((mean + (scaled - mean).mean()) * unit)


def _fit_scale(label: str, x: np.ndarray, center: float | bool, scale: float | bool) -> Affine:
    """As R's ``scale``: the default divisor is the root of the sum of squares after centring over n - 1."""
    shift = (_mean(x) if center else 0.0) if isinstance(center, bool) else float(center)
    if not isinstance(scale, bool):
        if scale == 0:
            raise FormulaError(f"{label}: scale must not be 0")
        return Affine(shift, float(scale))
    if not scale:
        return Affine(shift, 1.0)
    deviations = x - shift
    unit = float(np.abs(deviations).max())
    if len(x) < 2 or unit <= 1e-15 * abs(shift):
        raise DataError(
            f"{label}: all {len(x)} values equal {x[0]:g}, so the standard deviation is zero; remove the term"
        )
    return Affine(shift, float(unit * np.sqrt(((deviations / unit) ** 2).sum() / (len(x) - 1))))


def _fit_poly(label: str, x: np.ndarray, degree: int, raw: bool) -> State:
    distinct = len(np.unique(x))
    if degree >= distinct:
        raise DataError(
            f"{label}: degree {degree} needs more than {degree} distinct values, but there are {distinct}"
        )
    if raw:
        return RawPolynomial(degree)
    shift = _mean(x)
    unit = float(np.abs(x - shift).max())
    _, alpha, norm = orthogonal_polynomials((x - shift) / unit, degree)
    return OrthogonalPolynomial(shift, unit, alpha, norm)


def _knot_sequence(label: str, x: np.ndarray, num_inner: int, degree: int) -> np.ndarray:
    """Knots where R places them: repeated at the range of x, and inside at its quantiles (type 7)."""
    low, high = float(x.min()), float(x.max())
    if low == high:
        raise DataError(f"{label}: all values equal {low:g}; a spline needs at least two distinct values")
    inner = np.quantile(x, np.linspace(0, 1, num_inner + 2)[1:-1])
    if num_inner and (inner[0] <= low or inner[-1] >= high or (np.diff(inner) <= 0).any()):
        raise DataError(
            f"{label}: {num_inner} inner knots at quantiles of the data coincide with each other or with the "
            "boundary; use a smaller df"
        )
    return np.concatenate([np.full(degree + 1, low), inner, np.full(degree + 1, high)])


def _natural_spline(knots: np.ndarray) -> NaturalSpline:
    """Project the cubic B-splines off the two second derivatives at the boundary (Householder, as R does)."""
    curvature = _splines(knots, 3, knots[[0, -1]], derivative=2)[:, 1:]
    orthogonal, _ = np.linalg.qr(curvature.T, mode="complete")
    return NaturalSpline(knots, orthogonal[:, 2:])


def _splines(knots: np.ndarray, degree: int, x: np.ndarray, derivative: int = 0) -> np.ndarray:
    from scipy.interpolate import BSpline as ScipySpline  # slow to import, needed by splines only

    basis = ScipySpline(knots, np.eye(len(knots) - degree - 1), degree, extrapolate=True)
    return basis(x, nu=derivative)
