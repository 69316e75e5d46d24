r"""How the covariance of correlated residuals varies with its parameters.

The parameters are here :math:`x = (\rho, s)`, the free parameters of the structure and :math:`s = \log
\sigma^2`: the residuals of a group have, relative to the estimated :math:`\sigma^2`, the covariance
:math:`\Sigma(x) = e^s R(\rho)` with s = 0 at the estimates. Derivatives of anything along :math:`\Sigma` are
taken along straight lines :math:`\Sigma + \sum_a t_a D_a`, whose directions are derivatives of
:math:`\Sigma` of first and second order (:class:`Lines`).

Kenward & Roger's method depends on the parameters in which V is written, by its term of second derivatives.
They are the variances and covariances themselves where the structure's covariance matrices fill a linear
space (unstructured and banded ones with a standard deviation for each time; exchangeable, Toeplitz and moving
averages with one; variances that differ between groups), and there is no such term. Elsewhere they are the
variances and the natural parameters :math:`\psi` of the tables (an autocorrelation, a range), as in SAS's
PROC MIXED: in these

.. math::
    \sum_{ab} W^\psi_{ab} V^\psi_{ab} = \sum_{cd} W_{cd} V_{cd} - \sum_e c_e V_e, \qquad
    c = J^{-1} \Big(\sum_{cd} W_{cd}\, \partial_{cd} \psi\Big),

with J the Jacobian of :math:`\psi` in x, W the covariance of the parameters in x, and subscripts for
derivatives of V.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxmixed._types import AnyArray
from jaxmixed.crossproducts import Reduction
from jaxmixed.estimates import ResidualEstimate
from jaxmixed.linalg import inverse_and_logdet
from jaxmixed.precision import double_precision, to_host
from jaxmixed.programs import Program
from jaxmixed.residual_covariance import Occasions, ResidualCovariance
from jaxmixed.residual_statistics import CorrelatedRows, PatternMoments, SuccessiveRows
from jaxmixed.statistics import SufficientStatistics

CURVED = 1e-7
"""A second derivative less than this share of which is outside the span of the first ones lies in it."""

INDEFINITE = 1e-6
"""A negative eigenvalue of an information matrix of unit diagonal that is no rounding."""

MOST_ENTRIES = 100_000
"""Entries of the covariance matrices that are looked at for that."""

MOST_NUMBERS = 1 << 23
"""Numbers in the largest array of a batch of patterns."""


class Lines(NamedTuple):
    r"""Directions of :math:`\Sigma`: ``D_a = dS[first_a] + d2S[left_a, right_a]``.

    Attributes
    ----------
    free : (k,) array
        Where the derivatives are taken.
    first, left, right : (K, k + 1) arrays
        In the parameters x.
    """

    free: Float[Array, " k"]
    first: Float[Array, "K x"]
    left: Float[Array, "K x"]
    right: Float[Array, "K x"]

    @classmethod
    def along(cls, free: np.ndarray, first: np.ndarray) -> "Lines":
        """Directions of first order."""
        nothing = np.zeros_like(first)
        return cls(np.asarray(free), first, nothing, nothing)  # type: ignore[arg-type]


def _sigma(x: Float[Array, " x"], at: Occasions, covariance: ResidualCovariance) -> Float[Array, "t t u"]:
    return jnp.exp(x[-1]) * covariance.matrices(x[:-1], at)


def directions(
    lines: Lines, at: Occasions, covariance: ResidualCovariance
) -> tuple[Float[Array, "t t u"], Float[Array, "K t t u"]]:
    """R and the directions of its lines at some occasions; those are zero for rows that are not there."""
    free = jnp.asarray(lines.free)
    x = jnp.append(free, jnp.zeros((), free.dtype))

    def along(v: Array, left: Array, right: Array) -> Array:
        def slope(x: Array) -> Array:
            return jax.jvp(lambda x: _sigma(x, at, covariance), (x,), (left,))[1]

        first = jax.jvp(lambda x: _sigma(x, at, covariance), (x,), (v,))[1]
        return first + jax.jvp(slope, (x,), (right,))[1]

    both = at.present[:, None] & at.present[None, :]
    D = jax.vmap(along)(jnp.asarray(lines.first), jnp.asarray(lines.left), jnp.asarray(lines.right))
    return covariance.matrices(free, at), jnp.where(both, D, 0.0)


_DIRECTIONS = Program(lambda lines, at, *, covariance: directions(lines, at, covariance))

Changes = tuple[tuple[Float[AnyArray, "t t u"], Float[AnyArray, "K t t u"]], ...]
"""Of each part of the patterns in turn, R and its change along every line."""


def changes_along(lines: Lines, stats: SufficientStatistics) -> Changes:
    """R and its changes along any number of lines, at the occasions of the statistics.

    Parameters
    ----------
    lines : Lines
    stats : SufficientStatistics
        With a residual structure; padded as the program that takes the changes sees it.

    Returns
    -------
    Changes
    """
    residual = stats.residual
    assert isinstance(residual, PatternMoments | CorrelatedRows)
    step = len(lines.free) + 1  # all calls of one program
    K = len(lines.first)
    missing = [(0, -K % step), (0, 0)]
    padded = [np.pad(part, missing) for part in lines[1:]]
    found = []
    for part in (residual,) if isinstance(residual, PatternMoments) else residual.batches:
        blocks = []
        for start in range(0, len(padded[0]), step):
            own = Lines(lines.free, *(block[start : start + step] for block in padded))  # type: ignore[arg-type]
            with double_precision():
                R, D = to_host(_DIRECTIONS(own, part.at, covariance=residual.covariance))
            blocks.append(D)
        found.append((R, np.concatenate(blocks)[:K]))
    return tuple(found)


def whitened_along(
    t: Float[Array, " K"], changes: Changes, stats: SufficientStatistics
) -> SufficientStatistics:
    """Statistics of the model with independent residuals at a point of the lines (traced)."""
    assert isinstance(stats.residual, PatternMoments | CorrelatedRows)
    given = iter(changes)

    def precisions(at: Occasions) -> tuple[Array, Array]:
        R, D = next(given)
        inverse, logdet = inverse_and_logdet(R + jnp.tensordot(t, D, axes=1))
        both = at.present[:, None] & at.present[None, :]
        return jnp.where(both, inverse, 0.0), logdet

    return stats.residual.whitened_by(precisions, stats)


def of_any_covariance(state: Reduction) -> SufficientStatistics:
    """Statistics in which the correlated rows may have any covariance, not that of their family alone."""
    return state.stats if isinstance(state.compact.residual, SuccessiveRows) else state.compact


# The metric


def _natural(x: Float[Array, " x"], covariance: ResidualCovariance) -> Float[Array, " a"]:
    """Natural parameters of every stratum, then all variances relative to the estimated one, then exponents.

    Of a family's natural parameters the first ones, as many as it has free parameters.
    """
    parts, k = covariance.parts(x[:-1]), covariance.family.num_params
    own = [covariance.family.natural(parts.family[s])[:k] for s in range(covariance.strata)]
    variances = jnp.exp(x[-1] + 2 * parts.log_sd).ravel()
    exponents = parts.exponent if covariance.function != "none" else parts.exponent[:0]
    return jnp.concatenate([*own, variances, exponents])


def _natural_along(
    x: Float[Array, " x"], basis: Float[Array, "m x"], *, covariance: ResidualCovariance
) -> tuple[Array, Array]:
    """Derivatives of the natural parameters of first and second order along directions, (m, a)."""

    def along(v: Array) -> tuple[Array, Array]:
        def slope(x: Array) -> Array:
            return jax.jvp(lambda x: _natural(x, covariance), (x,), (v,))[1]

        return jax.jvp(slope, (x,), (v,))

    return jax.vmap(along)(basis)


_NATURAL_ALONG = Program(_natural_along)


def natural_drift(own: ResidualEstimate, W: np.ndarray) -> np.ndarray:
    """The vector c of the module's docstring.

    Parameters
    ----------
    own : ResidualEstimate
    W : (k + 1, k + 1) array
        Covariance of the parameters x.

    Returns
    -------
    (k + 1,) array
        Zero for parameters that are held.
    """
    values, vectors = np.linalg.eigh((W + W.T) / 2)
    x = np.append(own.free, 0.0)
    with double_precision():
        slopes, _ = to_host(_NATURAL_ALONG(x, unheld(own), covariance=own.covariance))
        _, bends = to_host(_NATURAL_ALONG(x, np.ascontiguousarray(vectors.T), covariance=own.covariance))
    return np.asarray(np.linalg.lstsq(slopes.T, values @ bends, rcond=None)[0])


class _Part(Protocol):
    """Some patterns, u of them, of t rows at most."""

    @property
    def at(self) -> Occasions:
        """Of the patterns."""
        ...

    @property
    def count(self) -> np.ndarray:
        """Number of groups of each, (u,)."""
        ...

    @abstractmethod
    def products(self, phi: np.ndarray) -> np.ndarray:
        """Sums over the groups of each pattern of ``X phi X'``, (u, t, t)."""
        ...

    @abstractmethod
    def contracted(self, S: np.ndarray) -> np.ndarray:
        """Sums over all groups of ``X' S X``, (m, p, p), with S (m, u, t, t)."""
        ...


@dataclass(frozen=True, slots=True)
class _Moments:
    """Patterns by their cross-moments (t, t, u, p, p)."""

    at: Occasions
    count: np.ndarray
    moments: np.ndarray

    def products(self, phi: np.ndarray) -> np.ndarray:
        return np.moveaxis(np.tensordot(self.moments, phi, axes=2), -1, 0)

    def contracted(self, S: np.ndarray) -> np.ndarray:
        return np.asarray(np.tensordot(np.moveaxis(S, 1, -1), self.moments, axes=3))


@dataclass(frozen=True, slots=True)
class _Rows:
    """Patterns by the rows (g, t, p) of their groups."""

    at: Occasions
    count: np.ndarray
    pattern: np.ndarray
    X: np.ndarray

    def products(self, phi: np.ndarray) -> np.ndarray:
        t = self.X.shape[1]
        found = np.zeros((len(self.count), t, t))
        step = max(MOST_NUMBERS // t**2, 1)
        for first in range(0, len(self.X), step):
            own = slice(first, first + step)
            np.add.at(found, self.pattern[own], self.X[own] @ phi @ np.swapaxes(self.X[own], 1, 2))
        return found

    def contracted(self, S: np.ndarray) -> np.ndarray:
        g, t, p = self.X.shape
        found = np.zeros((len(S), p, p))
        step = max(MOST_NUMBERS // (t * max(t, p)), 1)
        for first in range(0, g, step):
            X, pattern = self.X[first : first + step], self.pattern[first : first + step]
            flat = X.reshape(-1, p).T
            for total, matrices in zip(found, S, strict=True):
                total += flat @ (matrices[pattern] @ X).reshape(-1, p)
        return found


def _parts(stats: SufficientStatistics, lines: int) -> Iterator[_Part]:
    """All patterns, as many at a time as so many lines leave memory for."""
    residual, p = stats.residual, stats.total.shape[0] - 1
    assert isinstance(residual, PatternMoments | CorrelatedRows)
    for part in (residual,) if isinstance(residual, PatternMoments) else residual.batches:
        count = np.asarray(part.count)
        used, t = int(np.count_nonzero(count)), len(part.at.times)
        step = max(MOST_NUMBERS // (lines * t**2), 1)
        for first in range(0, used, step):
            own = slice(first, first + step) if step < used else slice(None)
            at = jax.tree.map(lambda values, own=own: np.asarray(values)[..., own], part.at)
            if isinstance(part, PatternMoments):
                yield _Moments(at, count[own], np.asarray(part.moments)[:, :, own, :p, :p])
                continue
            real, pattern = int(count.sum()), np.asarray(part.pattern)
            groups = np.flatnonzero((pattern[:real] >= first) & (pattern[:real] < first + step))
            X = np.asarray(part.columns)[:, -p - 1 : -1, groups]
            yield _Rows(at, count[own], pattern[groups] - first, np.moveaxis(X, -1, 0).copy())


def _matrices(part: _Part, lines: Lines, covariance: ResidualCovariance) -> tuple[np.ndarray, np.ndarray]:
    """Precisions (u, t, t) of patterns, zero for rows that are not there, and directions (K, u, t, t)."""
    with double_precision():
        R, D = to_host(_DIRECTIONS(lines, part.at, covariance=covariance))
    present = np.asarray(part.at.present)
    both = present[:, None] & present[None, :]
    precision = np.linalg.inv(np.moveaxis(R, -1, 0)) * np.moveaxis(both, -1, 0)
    return (precision + np.swapaxes(precision, 1, 2)) / 2, np.moveaxis(D, -1, 1)


class _Entries:
    """Entries of the covariance matrices of all patterns: derivatives of first order and second ones, by row.

    A sample of them where they are many.
    """

    def __init__(self) -> None:
        self.found: list[np.ndarray] = []
        self.left = MOST_ENTRIES

    def add(self, count: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
        """Those of some patterns: (K, u, t, t) arrays."""
        rows, columns = np.tril_indices(first.shape[-1])
        both = np.concatenate([first, second])[:, count > 0]
        flat = both[:, :, rows, columns].reshape(len(both), -1).T
        flat = np.unique(flat[:: max(len(flat) // max(self.left, 1), 1)], axis=0)
        self.found.append(flat)
        self.left -= len(flat)

    def are_linear(self) -> bool:
        """Whether the second derivatives are combinations of the first ones, as in a linear space."""
        first, second = np.split(np.concatenate(self.found), 2, axis=1)
        scale = np.linalg.norm(first, axis=0)
        first = first[:, scale > 0] / scale[scale > 0]
        rest = second - first @ np.linalg.lstsq(first, second, rcond=None)[0]
        return bool(np.linalg.norm(rest) <= CURVED * np.linalg.norm(second))


def unheld(own: ResidualEstimate) -> np.ndarray:
    """The parameters x as directions, (k + 1, k + 1); zero for those held at the end of their range."""
    return np.diag(np.append(~own.held, True).astype(np.float64))


def _second_order(free: np.ndarray, along: np.ndarray) -> Lines:
    """Second derivatives along some directions, (m, k + 1)."""
    return Lines(np.asarray(free), np.zeros_like(along), along, along)  # type: ignore[arg-type]


def _rotation(size: int) -> np.ndarray:
    """An orthogonal matrix without any structure."""
    return np.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0])


def is_linear(stats: SufficientStatistics, own: ResidualEstimate) -> bool:
    """Whether the residuals' covariance matrices fill a linear space, as far as these occasions show it.

    Parameters
    ----------
    stats : SufficientStatistics
        With a residual structure.
    own : ResidualEstimate

    Returns
    -------
    bool
    """
    covariance, size, basis = own.covariance, len(own.free) + 1, unheld(own)
    lines, second = Lines.along(own.free, basis), _second_order(own.free, _rotation(size) @ basis)
    entries = _Entries()
    for part in _parts(stats, size):
        entries.add(part.count, _matrices(part, lines, covariance)[1], _matrices(part, second, covariance)[1])
    return entries.are_linear()


class RestrictedInformation(NamedTuple):
    """What Kenward & Roger's method takes of the parameters, V relative to sigma squared.

    Attributes
    ----------
    value : (p, p) array
        ``X'V^{-1}X`` in the coordinates of the statistics.
    slopes : (K, p, p) array
        Its derivatives.
    W : (K, K) array
        Inverse of the expected information of the restricted likelihood.
    products : (p, p) array
        ``sum_ab W_ab (Q_ab - V_ab / 4)``, the second with X'V^{-1} on both sides, in the metric.
    """

    value: np.ndarray
    slopes: np.ndarray
    W: np.ndarray
    products: np.ndarray


def inverse_information(information: np.ndarray) -> np.ndarray:
    """Inverse of an information matrix in units of its diagonal; zero for what has none.

    NaN if rounding has left a matrix that is no information, as where a variance is all but zero.
    """
    scale = np.sqrt(np.maximum(np.diagonal(information), 0.0))
    known = scale > 0
    scale = np.where(known, scale, 1.0)
    scaled = information / np.outer(scale, scale)
    if not np.isfinite(scaled).all() or np.linalg.eigvalsh(scaled).min() < -INDEFINITE:
        return np.full_like(information, np.nan)
    inverse = np.linalg.pinv(scaled, rcond=1e-12, hermitian=True)
    return np.asarray(inverse / np.outer(scale, scale) * np.outer(known, known))


def precision_by_patterns(
    stats: SufficientStatistics, own: ResidualEstimate
) -> tuple[np.ndarray, np.ndarray]:
    """``X'V^{-1}X`` of a model without random effects, and its derivatives in the parameters x.

    Parameters
    ----------
    stats : SufficientStatistics
        With a residual structure and without random effects.
    own : ResidualEstimate
        Parameters at the end of their range are held there.

    Returns
    -------
    value : (p, p) array
    slopes : (k + 1, p, p) array
    """
    size, p = len(own.free) + 1, stats.total.shape[0] - 1
    lines = Lines.along(own.free, unheld(own))
    value, slopes = np.zeros((p, p)), np.zeros((size, p, p))
    for part in _parts(stats, size):
        B, D = _matrices(part, lines, own.covariance)
        value += part.contracted(B[None])[0]
        slopes -= part.contracted(B @ D @ B)
    return value, slopes


def information_by_patterns(stats: SufficientStatistics, own: ResidualEstimate) -> RestrictedInformation:
    """Of a model without random effects; what it costs depends on the patterns, not on the groups.

    Parameters
    ----------
    stats : SufficientStatistics
        With a residual structure and without random effects.
    own : ResidualEstimate
        Parameters at the end of their range are held there.

    Returns
    -------
    RestrictedInformation
        In the parameters x.
    """
    covariance, size, p = own.covariance, len(own.free) + 1, stats.total.shape[0] - 1
    lines = Lines.along(own.free, unheld(own))
    value, slopes = precision_by_patterns(stats, own)
    phi = np.linalg.inv(value)
    information = np.zeros((size, size))
    for part in _parts(stats, size):
        B, D = _matrices(part, lines, covariance)
        E = B @ D
        other = part.count[:, None, None] * E - 2 * E @ (B @ part.products(phi))
        information += E.reshape(size, -1) @ np.swapaxes(other, 2, 3).reshape(size, -1).T
    through = phi @ slopes
    information += np.einsum("aij,bji->ab", through, through)
    W = inverse_information((information + information.T) / 4)
    if np.isnan(W).any():
        return RestrictedInformation(value, slopes, W, np.full_like(value, np.nan))
    products = np.zeros((p, p))
    for part in _parts(stats, size):
        B, D = _matrices(part, lines, covariance)
        E = B @ D
        mixed = np.tensordot(W, E, axes=1)
        products += part.contracted(np.einsum("auij,aujk->uik", E, mixed)[None] @ B)[0]
    products -= _bend(stats, own, W, slopes) / 4
    return RestrictedInformation(value, slopes, W, (products + products.T) / 2)


def _bend(
    stats: SufficientStatistics, own: ResidualEstimate, W: np.ndarray, slopes: np.ndarray
) -> np.ndarray:
    """``sum_ab W_ab X'V^{-1} V_ab V^{-1} X`` in the metric, (p, p)."""
    covariance, size = own.covariance, len(W)
    values, vectors = np.linalg.eigh(W)
    # Any root of W will do: of this one each column is a direction like any other.
    root = vectors * np.sqrt(np.maximum(values, 0.0)) @ _rotation(size)
    first = Lines.along(own.free, unheld(own))
    second = _second_order(own.free, np.ascontiguousarray(root.T))
    entries, bend = _Entries(), np.zeros_like(slopes[0])
    for part in _parts(stats, size):
        B, D = _matrices(part, second, covariance)
        entries.add(part.count, _matrices(part, first, covariance)[1], D)
        bend += part.contracted((B @ D.sum(axis=0) @ B)[None])[0]
    if entries.are_linear():
        return np.zeros_like(bend)
    return np.asarray(bend + np.tensordot(natural_drift(own, W), slopes, axes=1))
