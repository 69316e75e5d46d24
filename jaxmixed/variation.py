r"""How the precision of the fixed effects varies with the covariance of the response.

Two sets of derivatives of :math:`A = X'V^{-1}X`, with V relative to sigma squared:

- in the parameters of the relative factors, for Satterthwaite's degrees of freedom
  (:func:`precision_slopes`);
- of first and second order along straight lines :math:`G + \sum_a t_a D_a` of the random effects' covariance
  itself, with those of :math:`\log|V|`, for Kenward & Roger's (:func:`vary`). V is linear in t, so that with
  :math:`V_a = Z D_a Z'`

.. math::
    \partial_a A = -X'V^{-1}V_aV^{-1}X, \qquad
    \partial_{ab} A = X'V^{-1}(V_aV^{-1}V_b + V_bV^{-1}V_a)V^{-1}X, \qquad
    \partial_{ab} \log|V| = -\operatorname{tr} V^{-1}V_aV^{-1}V_b,

which are all the traces and products that those methods ask for, and no matrix of the order of n is formed:
the derivatives go through the elimination of :mod:`jaxmixed.likelihood` group by group. G may be singular.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxmixed.covariance import Covariance
from jaxmixed.kernels import KernelCovariance
from jaxmixed.likelihood import covariance_middle, eliminate, eliminate_chain, remaining_root
from jaxmixed.linalg import independent_columns
from jaxmixed.precision import double_precision, to_host
from jaxmixed.programs import Program
from jaxmixed.residual_variation import Changes, Lines, changes_along, whitened_along
from jaxmixed.root import covariance_of_effects
from jaxmixed.statistics import SufficientStatistics, pad
from jaxmixed.toeplitz import ToeplitzCovariance

INDEPENDENT = 1e-9
"""A matrix less than this share of which is outside the span of others depends on them."""


def _precision(x: Float[Array, " k"], stats: SufficientStatistics) -> Float[Array, "p p"]:
    """``X'V^{-1}X`` at parameters of the factors of the standardised columns."""
    factors = [term.covariance.factor(part) for term, part in zip(stats.terms, stats.split(x), strict=True)]
    return eliminate(stats.assemble(factors), stats.at(x)).schur[:-1, :-1]


def _slopes(x: Float[Array, "B k"], stats: SufficientStatistics) -> tuple[Array, Array]:
    def one(x: Array) -> tuple[Array, Array]:
        def along(direction: Array) -> tuple[Array, Array]:
            found: tuple[Array, Array] = jax.jvp(lambda at: _precision(at, stats), (x,), (direction,))
            return found

        return jax.vmap(along, out_axes=(None, 0))(jnp.eye(len(x), dtype=x.dtype))

    return jax.vmap(one)(x)


_SLOPES = Program(_slopes)


def precision_slopes(
    standard: Float[np.ndarray, "B k"], stats: SufficientStatistics
) -> tuple[Float[np.ndarray, "B p p"], Float[np.ndarray, "B k p p"]]:
    """``X'V^{-1}X`` and its derivatives in the parameters of the factors, for several values of these.

    Parameters
    ----------
    standard : (B, k) array
        Parameters of the factors of the standardised columns; k > 0.
    stats : SufficientStatistics
        Host arrays, compressed or not.

    Returns
    -------
    value : (B, p, p) array
        In the coordinates of the statistics, V relative to sigma squared.
    slopes : (B, k, p, p) array
    """
    with double_precision():
        value, slopes = to_host(_SLOPES(standard, pad(stats)))
    return value, slopes


def _slopes_of_each(x: Float[Array, "B k"], own: SufficientStatistics) -> tuple[Array, Array]:
    def one(x: Array, stats: SufficientStatistics) -> tuple[Array, Array]:
        value, slopes = _slopes(x[None], stats)
        return value[0], slopes[0]

    return jax.vmap(one, in_axes=(0, -1))(x, own)


_SLOPES_OF_EACH = Program(_slopes_of_each)


def precision_slopes_of_each(
    standard: Float[np.ndarray, "B k"], own: SufficientStatistics
) -> tuple[Float[np.ndarray, "B p p"], Float[np.ndarray, "B k p p"]]:
    """As :func:`precision_slopes`, of models with statistics of their own.

    Parameters
    ----------
    standard : (B, k) array
    own : SufficientStatistics
        Of all models, padded alike, along a last axis.

    Returns
    -------
    value : (B, p, p) array
    slopes : (B, k, p, p) array
    """
    with double_precision():
        value, slopes = to_host(_SLOPES_OF_EACH(standard, own))
    return value, slopes


Direction = Mapping[int, np.ndarray]
"""A direction of the random effects' covariance: for some terms, by number, a symmetric change (q, q)."""


class Variation(NamedTuple):
    """Derivatives along K directions, V relative to sigma squared.

    Attributes
    ----------
    value : (p, p) array
        ``A = X'V^{-1}X`` in the coordinates of the statistics.
    first : (K, p, p) array
        Derivatives of A.
    second : (K, K, p, p) array
    logdet_first : (K,) array
        Derivatives of log|V|.
    logdet_second : (K, K) array
    """

    value: np.ndarray
    first: np.ndarray
    second: np.ndarray
    logdet_first: np.ndarray
    logdet_second: np.ndarray

    def leading(self, count: int) -> "Variation":
        """Derivatives along the first directions alone."""
        own = slice(0, count)
        return Variation(
            self.value,
            self.first[own],
            self.second[own, own],
            self.logdet_first[own],
            self.logdet_second[own, own],
        )


def _along_pairs(
    factors: list[Float[Array, "q q"]],
    changes: list[Float[Array, "K q q"]],
    pairs: Int[Array, "P 2"],
    stats: SufficientStatistics,
    along: Changes | None,
) -> tuple[Array, ...]:
    """A; and, for pairs (a, b) of directions, the derivatives along a and those along a and b."""

    def moments(t: Float[Array, " K"]) -> tuple[Array, Array]:
        G = [T @ T.T + jnp.tensordot(t, D, axes=1) for T, D in zip(factors, changes, strict=True)]
        plain = stats if along is None else whitened_along(t, along, stats)
        chain, depth = eliminate_chain(G, plain, covariance_middle), len(plain.levels)
        logdet = chain.logdet - plain.sum_log_weights
        if plain.root is None:
            return logdet, chain.schur[:-1, :-1]
        root = remaining_root(chain, plain.root)
        cross = jnp.asarray(root.cross)[:, :-1]
        K, of_root = covariance_of_effects(factors[depth:], G[depth:], jnp.asarray(root.gram), root.shapes)
        return logdet + of_root, chain.schur[:-1, :-1] - cross.T @ K @ cross

    size = changes[0].shape[0]
    zero = jnp.zeros(size, stats.total.dtype)

    def of_pair(pair: Int[Array, "2"]) -> tuple[Array, ...]:
        a, b = jax.nn.one_hot(pair, size, dtype=zero.dtype)
        (first_logdet, first), (second_logdet, second) = jax.jvp(
            lambda t: jax.jvp(moments, (t,), (a,))[1], (zero,), (b,)
        )
        return first_logdet, first, second_logdet, second

    return moments(zero)[1], *jax.lax.map(of_pair, pairs)


_PAIRS = Program(_along_pairs)


def vary(
    factors: Sequence[np.ndarray],
    directions: Sequence[Direction],
    stats: SufficientStatistics,
    pairs: np.ndarray | None = None,
    lines: Lines | None = None,
) -> Variation:
    """Derivatives of ``X'V^{-1}X`` and log|V| along straight lines of the random effects' covariance.

    Parameters
    ----------
    factors : sequence of (q, q) arrays
        Relative factor of each term, in the standardised columns.
    directions : sequence of Direction
        Of the relative covariances of the terms; one at least.
    stats : SufficientStatistics
        Host arrays, compressed or not.
    pairs : (P, 2) int array, optional
        Pairs of directions whose second derivatives are wanted, by default all. Others are NaN.
    lines : Lines, optional
        How the covariance of correlated residuals changes along each direction.

    Returns
    -------
    Variation
    """
    padded = pad(stats)
    K = len(directions)
    blocks = [np.zeros((K, width, width)) for width in stats.widths]
    T = [np.zeros((width, width)) for width in stats.widths]
    for term, own in zip(stats.terms, factors, strict=True):
        rows = slice(term.start, term.start + term.covariance.q)
        T[term.level][rows, rows] = own
    for position, direction in enumerate(directions):
        for number, change in direction.items():
            term = stats.terms[number]
            rows = slice(term.start, term.start + term.covariance.q)
            blocks[term.level][position, rows, rows] = change
    wanted = np.stack(np.triu_indices(K), axis=1) if pairs is None else pairs
    along = None if lines is None else changes_along(lines, padded)
    with double_precision():
        value, *rest = to_host(_PAIRS(T, blocks, np.asarray(wanted), padded, along))
    p = len(value)
    a, b = wanted.T
    first, second = np.full((K, p, p), np.nan), np.full((K, K, p, p), np.nan)
    logdet_first, logdet_second = np.full(K, np.nan), np.full((K, K), np.nan)
    logdet_first[a], first[a] = rest[0], rest[1]
    logdet_second[a, b] = logdet_second[b, a] = rest[2]
    second[a, b] = second[b, a] = rest[3]
    return Variation(value, first, second, logdet_first, logdet_second)


class Metric(NamedTuple):
    """Parameters in which the covariance of a term's effects is linear, as far as it is linear in any.

    Attributes
    ----------
    slopes : (a, q, q) array
        Derivatives of G in them.
    curvatures : (a, a, q, q) array or None
        Second derivatives, None where there are none.
    """

    slopes: np.ndarray
    curvatures: np.ndarray | None


def linear_directions(covariance: Covariance) -> np.ndarray:
    """Symmetric matrices (a, q, q) whose combinations are the covariances of a structure with linear factors.

    Examples
    --------
    >>> from jaxmixed.covariance import Unstructured
    >>> linear_directions(Unstructured(2)).tolist()
    [[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]]
    """
    E = covariance.jacobian(np.zeros(covariance.num_params))
    products = np.einsum("aij,bkj->abik", E, E)
    a, b = np.triu_indices(len(E))
    candidates = products[a, b] + products[b, a]
    flat = candidates.reshape(len(a), covariance.q**2)
    chosen = independent_columns(flat.T, INDEPENDENT * np.linalg.norm(flat, axis=1))
    return candidates[chosen] / np.abs(candidates[chosen]).max(axis=(1, 2), keepdims=True)


def metric(covariance: Covariance, standard: np.ndarray) -> Metric:
    """Directions of a term's covariance in the metric of variances and covariances.

    Effects whose variance is zero stay as they are. Beside its variance a kernel has parameters of which the
    covariance is no linear function, on their natural scales.

    Parameters
    ----------
    covariance : Covariance
    standard : (k,) array
        Parameters of the factor of the standardised columns.

    Returns
    -------
    Metric
    """
    if isinstance(covariance, ToeplitzCovariance):
        directions = covariance.directions()
    elif isinstance(covariance, KernelCovariance):
        return _kernel_metric(covariance, standard)
    else:
        directions = linear_directions(covariance)
    T = covariance.factor(standard)
    zero = ~T.any(axis=1)
    touched = np.abs(directions[:, zero]).sum(axis=(1, 2)) > 0
    return Metric(directions[~touched], None)


def _kernel_metric(covariance: KernelCovariance, standard: np.ndarray) -> Metric:
    variance = float(standard[0]) ** 2
    q, names = covariance.q, covariance.natural_names
    if variance == 0:
        return Metric(np.zeros((0, q, q)), None)
    natural = covariance.natural(standard).value

    def matrix(values: Array) -> Array:
        params = {name: values[a] for a, name in enumerate(names)}
        return covariance.kernel.matrix(params, jnp.asarray(covariance.positions, values.dtype))

    with double_precision():
        at = jnp.asarray(natural)
        K = np.asarray(matrix(at))
        first = np.moveaxis(np.asarray(jax.jacfwd(matrix)(at)), -1, 0)
        second = np.moveaxis(np.asarray(jax.jacfwd(jax.jacfwd(matrix))(at)), (-2, -1), (0, 1))
    size = 1 + len(names)
    curvatures = np.zeros((size, size, q, q))
    curvatures[0, 1:] = curvatures[1:, 0] = first
    curvatures[1:, 1:] = variance * second
    return Metric(np.concatenate([K[None], variance * first]), curvatures if names else None)
