r"""The likelihood with one parameter held, maximised over all others.

Nothing is profiled out in advance but the coefficients: the criterion is a function of theta and s = log
sigma,

.. math:: D = \log|V| + \nu\,(\log 2\pi + 2 s) + e^{-2s}\, r^2(S) + [\text{REML: } \log|S_{XX}|],

with V relative to :math:`\sigma^2`, S the Schur complement of [X y] and :math:`r^2` the residual sum of
squares that it leaves. Variance parameters are held by :mod:`jaxmixed.profile_constraints`. A coefficient
:math:`\beta_j = b` is held by taking its column out and :math:`b x_j` off the response, which is a linear map
of [X y] and so of S (:class:`Regression`). Under REML this is the criterion of the model without the column,
with n - p + 1 degrees of freedom, in which the remaining coefficients are integrated out: likelihood ratios
of coefficients from it are those of Welham & Thompson. Its maximiser over b may differ a little from the
estimate, at which theta is that of the whole model.

Gradients and Hessians are exact; points of any parameters are evaluated together, by one program.

References
----------
Bates & Watts (1988), Nonlinear Regression Analysis and its Applications, chapter 6. Bates, Maechler, Bolker &
Walker (2015), Journal of Statistical Software 67(1), section 5.1. Welham & Thompson (1997), Journal of the
Royal Statistical Society B 59, 701-714.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxmixed import curvature, optim
from jaxmixed.covariance import Unstructured
from jaxmixed.crossproducts import Reduction
from jaxmixed.estimates import Estimates
from jaxmixed.fitting import ungrouped
from jaxmixed.likelihood import LOG_2PI, Method, eliminate
from jaxmixed.linalg import inverse_and_logdet
from jaxmixed.precision import double_precision, to_host
from jaxmixed.profile_constraints import Everything, Map
from jaxmixed.programs import Program
from jaxmixed.statistics import SufficientStatistics, pad

LANES = 16
"""Points evaluated together, where a point is cheap; otherwise one by one."""

HEAVY = 200_000
"""Numbers that an evaluation of one point holds, from which on it is no longer cheap."""


class Regression(NamedTuple):
    """Which regression of [X y] is left when a coefficient is held, in the coordinates of the statistics.

    Attributes
    ----------
    A : (r, r) array
        S becomes ``A'SA + diag(unit)``. Its last column, of the response, is ``offset + c * move``.
    move : (r,) array
    unit : (r,) array
        One for a column that is taken out, else zero.
    df : float
        Degrees of freedom of sigma.
    constant : float
        What the criterion contains besides.
    """

    A: np.ndarray
    move: np.ndarray
    unit: np.ndarray
    df: float
    constant: float

    def at(self, c: float) -> np.ndarray:
        """The linear map of [X y] at a held coordinate."""
        A = self.A.copy()
        A[:, -1] += c * self.move
        return A


@dataclass(frozen=True, slots=True)
class Lane:
    """A parameter to hold, as the criterion sees it.

    Attributes
    ----------
    map : Map
    regression : Regression
    frames : tuple of (q, q) arrays
        Left factor of every term's T.
    """

    map: Map
    regression: Regression
    frames: tuple[np.ndarray, ...]


class Values(NamedTuple):
    """The criterion at n points, a row each: derivatives along (theta, log sigma), and S."""

    value: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    schur: np.ndarray


def _regression(
    S: Float[Array, "r r"], A: Float[Array, "r r"], unit: Float[Array, " r"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """``log|S_XX|`` and the residual sum of squares of a linear map of [X y]."""
    p = S.shape[0] - 1
    own = A.T @ S @ A + jnp.diag(unit)
    inverse, logdet = inverse_and_logdet(own[:p, :p])
    return logdet, own[p, p] - own[p, :p] @ (inverse @ own[:p, p])


def _at_point(
    x: Array,
    s: Array,
    frames: tuple[Array, ...],
    A: Array,
    unit: Array,
    df: Array,
    stats: SufficientStatistics,
    *,
    method: Method,
) -> tuple[Array, Array, Array, Array]:
    """The criterion at one point, less constants, with its derivatives."""
    precision = jnp.exp(-2 * s)

    def outer(S: Array) -> tuple[Array, Array]:
        logdet, rss = _regression(S, A, unit)
        return precision * rss + (logdet if method == "reml" else 0.0), rss

    def whole(x: Array) -> tuple[Array, tuple[Array, Array]]:
        parts = zip(frames, stats.terms, stats.split(x), strict=True)
        factors = stats.assemble([frame @ term.covariance.factor(part) for frame, term, part in parts])
        plain = stats.at(x)
        logdet, schur, *_ = eliminate(factors, plain)
        of_residuals = stats.sum_log_weights - plain.sum_log_weights
        value, rss = outer(schur)
        return logdet + of_residuals + value, (rss, schur)

    if stats.root is None or stats.residual is not None:
        at = optim.evaluate(whole, x)
    else:
        at = curvature.evaluate(x, stats, outer=outer, frames=frames)
    (rss, schur), (d_rss, _) = at.aux, at.aux_tangents
    gradient = jnp.append(at.gradient, 2 * df - 2 * precision * rss)
    mixed = -2 * precision * d_rss
    hessian = jnp.block([[at.hessian, mixed[:, None]], [mixed[None], 4 * precision * rss]])
    return at.value + 2 * df * s, gradient, hessian, schur


def _at_points(
    x: Float[Array, "n k"],
    s: Float[Array, " n"],
    frames: tuple[Float[Array, "n q q"], ...],
    A: Float[Array, "n r r"],
    unit: Float[Array, "n r"],
    df: Float[Array, " n"],
    stats: SufficientStatistics,
    *,
    method: Method,
) -> tuple[Array, ...]:
    if len(x) > 1:
        axes = (0, 0, 0, 0, 0, 0, None)
        return jax.vmap(partial(_at_point, method=method), in_axes=axes)(x, s, frames, A, unit, df, stats)
    # Branches of the closed forms stay branches where nothing is vectorised.
    first = tuple(frame[0] for frame in frames)
    found = _at_point(x[0], s[0], first, A[0], unit[0], df[0], stats, method=method)
    return tuple(array[None] for array in found)


PROGRAM = Program(_at_points)
"""The compiled criterion, one executable per structure, size of the statistics and number of points."""


class Criterion:
    """The deviance of a fit's data at any parameters.

    Parameters
    ----------
    reduction : Reduction
    estimates : Estimates

    Attributes
    ----------
    evaluations : int
        Points evaluated so far.
    """

    def __init__(self, reduction: Reduction, estimates: Estimates) -> None:
        self.reduction, self.estimates = reduction, estimates
        self.method: Method = "reml" if estimates.method == "reml" else "ml"
        self.stats = pad(reduction.compact)
        self.p, self.k = len(reduction.stats.total) - 1, self.stats.num_params
        self.scale = float(self.stats.scale)
        self.evaluations = 0
        self._whole = ungrouped(reduction.stats) if self.k == 0 else None
        self.lanes = 1 if self._size() > HEAVY else LANES

    def _size(self) -> int:
        """Numbers that one evaluation holds, roughly."""
        r, k = self.p + 1, self.k + 1
        size = r * r * k * (k + 1)
        for level in self.stats.levels:
            q, _, m = level.root.shape
            size += q * (q + r) * m * (k + 1)
        if self.stats.root is not None:
            size += len(self.stats.root.gram) ** 2 * (k + 3)
        return size

    @cached_property
    def rows(self) -> list[np.ndarray]:
        """Positions in theta of the rows of triangular factors."""
        found, start = [], 0
        for term in self.estimates.terms:
            structure: object = term.covariance
            if isinstance(structure, Unstructured):
                elements = np.array(structure.elements())
                found += [start + np.flatnonzero(elements[:, 0] == i) for i in range(1, structure.q)]
            start += term.covariance.num_params
        return found

    @property
    def estimate(self) -> np.ndarray:
        """(theta, log sigma) of the fit, theta of the standardised columns, sigma in units of the scale."""
        return np.append(self.estimates.standard, np.log(self.estimates.sigma / self.scale))

    @property
    def plain_frames(self) -> tuple[np.ndarray, ...]:
        """Identities: T is of the standardised columns."""
        return tuple(np.eye(term.covariance.q) for term in self.estimates.terms)

    def whole_regression(self) -> Regression:
        """No coefficient is held."""
        zero = np.zeros(self.p + 1)
        constant = float(self.stats.log_det_basis) if self.method == "reml" else 0.0
        df = float(self.estimates.df)
        return Regression(np.eye(self.p + 1), zero, zero, df, self._constant(df) + constant)

    def regression_without(self, column: int) -> tuple[Regression, float, float]:
        """The regression in which a coefficient is held.

        Parameters
        ----------
        column : int
            Among the columns in use.

        Returns
        -------
        Regression
        origin, slope : float
            The coefficient is ``origin + slope * c`` of the held coordinate c.
        """
        p, basis = self.p, np.asarray(self.stats.basis)
        Q, R = np.linalg.qr(np.delete(basis, column, axis=1), mode="complete")
        Q, alone, R = Q[:, : p - 1], Q[:, p - 1], np.diagonal(R)
        size = float(alone @ basis[:, column])
        A, move, unit = np.zeros((p + 1, p + 1)), np.zeros(p + 1), np.zeros(p + 1)
        A[:p, : p - 1], A[p, p], unit[p - 1] = Q, 1.0, 1.0
        move[:p] = -alone * np.sign(size)
        df, constant = float(self.estimates.nobs), 0.0
        if self.method == "reml":
            df += 1 - p
            constant = 2 * float(np.log(np.abs(R)).sum())
        found = Regression(A, move, unit, df, self._constant(df) + constant)
        return found, float(np.asarray(self.stats.origin)[column]), self.scale / abs(size)

    def _constant(self, df: float) -> float:
        return df * (LOG_2PI + 2 * np.log(self.scale)) - float(self.stats.sum_log_weights)

    def __call__(self, lanes: Sequence[Lane], z: np.ndarray, c: np.ndarray) -> Values:
        """The criterion at n points.

        Parameters
        ----------
        lanes : sequence of Lane
            One for each point.
        z : (n, k + 1) array
            (theta, log sigma) of its factors.
        c : (n,) array
            Held coordinates.

        Returns
        -------
        Values
        """
        self.evaluations += len(lanes)
        A = np.stack([lane.regression.at(own) for lane, own in zip(lanes, c, strict=True)])
        constant = np.array([lane.regression.constant for lane in lanes])
        if self._whole is not None:
            found = self._linear(lanes, z[:, -1], A)
        else:
            chunks = [
                self._chunk(lanes[i : i + self.lanes], z[i : i + self.lanes], A[i : i + self.lanes])
                for i in range(0, len(lanes), self.lanes)
            ]
            found = Values(*(np.concatenate(parts) for parts in zip(*chunks, strict=True)))
        return found._replace(value=found.value + constant)

    def _chunk(self, lanes: Sequence[Lane], z: np.ndarray, A: np.ndarray) -> Values:
        n = len(lanes)
        rows = np.minimum(np.arange(self.lanes), n - 1)
        frames = tuple(np.stack([lanes[i].frames[t] for i in rows]) for t in range(len(self.estimates.terms)))
        unit = np.stack([lanes[i].regression.unit for i in rows])
        df = np.array([lanes[i].regression.df for i in rows])
        with double_precision():
            arguments = (z[rows, :-1], z[rows, -1], frames, A[rows], unit, df, self.stats)
            found = to_host(PROGRAM(*arguments, method=self.method))
        return Values(*(array[:n] for array in found))

    def _linear(self, lanes: Sequence[Lane], s: np.ndarray, A: np.ndarray) -> Values:
        """The criterion of a model without random effects."""
        assert self._whole is not None
        unit = np.stack([np.diag(lane.regression.unit) for lane in lanes])
        df = np.array([lane.regression.df for lane in lanes])
        own = A.swapaxes(1, 2) @ self._whole @ A + unit
        p = self.p
        solved = np.linalg.solve(own[:, :p, :p], own[:, :p, p:])[..., 0]
        rss = own[:, p, p] - (own[:, p, :p] * solved).sum(axis=1)
        value = 2 * df * s + rss * np.exp(-2 * s)
        if self.method == "reml":
            value += np.linalg.slogdet(own[:, :p, :p])[1]
        slope, bend = 2 * df - 2 * rss * np.exp(-2 * s), 4 * rss * np.exp(-2 * s)
        schur = np.repeat(self._whole[None], len(lanes), axis=0)
        return Values(value, slope[:, None], bend[:, None, None], schur)

    def residual_direction(self, lane: Lane, c: float, schur: np.ndarray) -> np.ndarray:
        """``(-gamma, 1)`` with gamma the coefficients in the statistics' coordinates, the held one included.

        Parameters
        ----------
        lane : Lane
        c : float
        schur : (r, r) array

        Returns
        -------
        (r,) array
        """
        A, p = lane.regression.at(c), self.p
        own = A.T @ schur @ A + np.diag(lane.regression.unit)
        return np.asarray(A @ np.append(-np.linalg.solve(own[:p, :p], own[:p, p]), 1.0))

    def coefficients(self, direction: np.ndarray) -> np.ndarray:
        """Coefficients in the data's units from :meth:`residual_direction`, (..., p)."""
        solved = np.linalg.solve(np.asarray(self.stats.basis), -direction[..., : self.p, None])[..., 0]
        return np.asarray(self.stats.origin) + self.scale * solved


def everything(criterion: Criterion) -> Lane:
    """The lane in which nothing is held."""
    return Lane(Everything(), criterion.whole_regression(), criterion.plain_frames)
