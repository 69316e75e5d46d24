r"""Coordinates in which traced arrays are summed accurately: X orthonormal, y centred, Z of unit size.

Cross-products square the condition number of what they are made of. The coordinates here are found from the
data and then *held*: no derivative passes through them. That is exact, for the likelihood does not depend on
the coordinates that it is computed in, so its derivatives along them vanish. Only sums over the rows are
taken, so rows that are spread over devices stay where they are.

References
----------
Bjorck (1967), BIT 7, 1-21 (modified Gram-Schmidt).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxmixed.covariance import Covariance


class Fixed(NamedTuple):
    """The columns [X y] in coordinates of their own (:class:`jaxmixed.statistics.SufficientStatistics`).

    Attributes
    ----------
    X : (n, p) array
        ``Xs``, where ``X = Xs @ basis``.
    y : (n,) array
        ``ys``, where ``y = X @ origin + scale * ys``.
    basis : (p, p) array
    log_det : scalar
        ``2 log |det basis|``.
    origin : (p,) array
    scale : scalar
    """

    X: Float[Array, "n p"]
    y: Float[Array, " n"]
    basis: Float[Array, "p p"]
    log_det: Float[Array, ""]
    origin: Float[Array, " p"]
    scale: Float[Array, ""]


def _gram_schmidt(
    X: Float[Array, "n p"], w: Float[Array, " n"]
) -> tuple[Float[Array, "p p"], Float[Array, "p p"]]:
    """Upper triangular R and its inverse, where ``X R^{-1}`` has orthonormal columns under the weights w."""
    p = X.shape[1]
    columns = jnp.arange(p)
    sizes = jnp.sqrt(w @ (X * X))
    nothing = 4 * jnp.finfo(X.dtype).eps * jnp.sqrt(jnp.asarray(len(w), X.dtype))

    def step(k, state):  # type: ignore[no-untyped-def]
        rest, R, inverse = state
        at = columns == k
        column = jnp.sum(jnp.where(at, rest, 0), axis=1)
        size = jnp.sqrt(w @ (column * column))
        # What repeats earlier columns is left as it is: the likelihood will say so.
        size = jnp.where(size > nothing * sizes[k], size, jnp.where(sizes[k] > 0, sizes[k], 1))
        unit, own = column / size, jnp.sum(jnp.where(at, inverse, 0), axis=1) / size
        products = jnp.where(columns > k, (w * unit) @ rest, 0)
        rest = jnp.where(at, unit[:, None], rest - unit[:, None] * products)
        inverse = jnp.where(at, own[:, None], inverse - own[:, None] * products)
        return rest, jnp.where(at[:, None], jnp.where(at, size, products), R), inverse

    start = (X, jnp.zeros((p, p), X.dtype), jnp.eye(p, dtype=X.dtype))
    _, R, inverse = jax.lax.fori_loop(0, p, step, start) if p else start
    return R, inverse


def fixed_coordinates(X: Float[Array, "n p"], y: Float[Array, " n"], w: Float[Array, " n"]) -> Fixed:
    """Orthonormal columns, and what least squares leave of the response, in units of its size.

    Parameters
    ----------
    X : (n, p) array
    y : (n,) array
    w : (n,) array
        Weight of each row.

    Returns
    -------
    Fixed
        `basis`, `log_det`, `origin` and `scale` are constants to differentiation.
    """
    hold = jax.lax.stop_gradient
    R, inverse = _gram_schmidt(hold(X), hold(w))
    Xs = X @ inverse
    coefficients = (hold(w) * hold(y)) @ hold(Xs)
    residual = y - Xs @ coefficients
    size = jnp.sqrt(hold(w) @ hold(residual) ** 2 / jnp.maximum(jnp.sum(hold(w)), 1))
    scale = jnp.where(size > 0, size, 1)
    log_det = 2 * jnp.sum(jnp.log(jnp.abs(jnp.diagonal(R))))
    return Fixed(Xs, residual / scale, R, log_det, inverse @ coefficients, scale)


def untouched(X: Float[Array, "n p"], y: Float[Array, " n"]) -> Fixed:
    """The columns as they are."""
    p, zero = X.shape[1], jnp.zeros((), y.dtype)
    return Fixed(X, y, jnp.eye(p, dtype=y.dtype), zero, jnp.zeros(p, y.dtype), zero + 1)


def random_coordinates(
    Z: Float[Array, "n q"], w: Float[Array, " n"], covariance: Covariance
) -> tuple[Float[Array, "n q"], Float[Array, "q q"]]:
    """Columns of a random-effects term in coordinates that its covariance structure is closed under.

    Parameters
    ----------
    Z : (n, q) array
    w : (n,) array
    covariance : Covariance

    Returns
    -------
    Zs : (n, q) array
    frame : (q, q) array
        ``Z = Zs @ frame``; a constant to differentiation.
    """
    held, q = jax.lax.stop_gradient(Z), Z.shape[1]
    w = jax.lax.stop_gradient(w)
    total = jnp.maximum(jnp.sum(w), 1)
    if covariance.coordinates == "any" and q > 1:
        R, inverse = _gram_schmidt(held, w / total)
        return Z @ inverse, R
    sizes = jnp.sqrt((w / total) @ (held * held))
    if covariance.coordinates == "scale":
        sizes = jnp.broadcast_to(jnp.sqrt(jnp.mean(sizes**2)), (q,))
    if covariance.coordinates == "none":
        sizes = jnp.ones(q, Z.dtype)
    sizes = jnp.where(sizes > 0, sizes, 1)
    return Z / sizes, jnp.diag(sizes)
