"""The dense Gaussian density of the mixed model in JAX, from its definition, for JAX to differentiate.

Like :mod:`tests.support.dense` everything goes through the n x n covariance matrix of y; nothing is shared
with the library. Every array but the group codes may be traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Rows(NamedTuple):
    """Data of a mixed model: what may be traced."""

    y: jax.Array  # (n,)
    X: jax.Array  # (n, p)
    Z: tuple[jax.Array, ...]  # (n, q) of each factor, finest first
    weights: jax.Array  # (n,)


def covariance(
    rows: Rows, codes: Sequence[np.ndarray], covs: Sequence[jax.Array], variance: jax.Array | float
) -> jax.Array:
    """V, the covariance matrix of y, at covariances and a residual variance on one scale."""
    V = jnp.diag(variance / rows.weights)
    for Z, code, cov in zip(rows.Z, codes, covs, strict=True):
        V = V + jnp.where(code[:, None] == code[None, :], Z @ cov @ Z.T, 0.0)
    return V


def _gls(rows: Rows, V: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Information of the fixed effects, and the residual at their estimate."""
    solved = jnp.linalg.solve(V, rows.X)
    information = rows.X.T @ solved
    return information, rows.y - rows.X @ jnp.linalg.solve(information, solved.T @ rows.y)


def log_density(
    rows: Rows,
    codes: Sequence[np.ndarray],
    covs: Sequence[jax.Array],
    sigma: jax.Array,
    beta: jax.Array | None,
) -> jax.Array:
    """Log-likelihood at absolute covariances; the restricted one if `beta` is None."""
    V = covariance(rows, codes, covs, sigma**2)
    n, p = rows.X.shape
    if beta is None:
        information, r = _gls(rows, V)
        constant = (n - p) * jnp.log(2 * jnp.pi) + jnp.linalg.slogdet(information)[1]
    else:
        r, constant = rows.y - rows.X @ beta, n * jnp.log(2 * jnp.pi)
    return -0.5 * (constant + jnp.linalg.slogdet(V)[1] + r @ jnp.linalg.solve(V, r))


def profiled_deviance(
    rows: Rows, codes: Sequence[np.ndarray], relative: Sequence[jax.Array], method: str
) -> jax.Array:
    """-2 log-likelihood maximised over the fixed effects and sigma, at relative covariances."""
    V = covariance(rows, codes, relative, 1.0)
    information, r = _gls(rows, V)
    n, p = rows.X.shape
    df = n - p if method == "reml" else n
    value = jnp.linalg.slogdet(V)[1] + df * (1 + jnp.log(2 * jnp.pi * (r @ jnp.linalg.solve(V, r)) / df))
    return value + (jnp.linalg.slogdet(information)[1] if method == "reml" else 0.0)


def one_way_fit(rows: Rows, codes: np.ndarray) -> tuple[jax.Array, ...]:
    """Maximum of the restricted likelihood with one random intercept a group, the first column of Z ignored.

    In the eigenvectors of V, which do not depend on its one parameter, V is diagonal. The maximum is found on
    a grid and refined by Newton's steps, of which two are differentiated: they make its derivatives right up
    to the third order (each squares the error).

    Returns
    -------
    theta, beta, sigma, loglik, effects (m,)
    """
    n, p = rows.X.shape
    root = jnp.sqrt(rows.weights)
    same = (codes[:, None] == codes[None, :]).astype(float)
    values, turn = jnp.linalg.eigh(jax.lax.stop_gradient(root[:, None] * same * root))

    def at(theta: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        d, X, y = 1 / (1 + theta**2 * values), turn.T @ (root[:, None] * rows.X), turn.T @ (root * y)
        A = X.T @ (d[:, None] * X)
        beta = jnp.linalg.solve(A, X.T @ (d * y))
        variance = jnp.sum(d * (y - X @ beta) ** 2) / (n - p)
        value = -jnp.sum(jnp.log(d)) - jnp.sum(jnp.log(rows.weights)) + jnp.linalg.slogdet(A)[1]
        return value + (n - p) * (1 + jnp.log(2 * jnp.pi * variance)), beta, jnp.sqrt(variance)

    def newton(theta: jax.Array, y: jax.Array) -> jax.Array:
        def slope(theta: jax.Array) -> jax.Array:
            return jax.grad(lambda theta: at(theta, y)[0])(theta)

        g, H = jax.jvp(slope, (theta,), (jnp.ones_like(theta),))
        return theta - g / H

    held = jax.lax.stop_gradient(rows.y)
    grid = jnp.linspace(0, 4, 401)
    theta = grid[jnp.argmin(jax.vmap(lambda theta: at(theta, held)[0])(grid))]
    theta = jax.lax.fori_loop(0, 8, lambda _, theta: newton(theta, held), theta)
    theta = newton(newton(jax.lax.stop_gradient(theta), rows.y), rows.y)
    value, beta, sigma = at(theta, rows.y)
    m = int(codes.max()) + 1
    residual = jax.ops.segment_sum(rows.weights * (rows.y - rows.X @ beta), codes, m)
    size = jax.ops.segment_sum(rows.weights, codes, m)
    return theta, beta, sigma, -value / 2, theta**2 * residual / (1 + theta**2 * size)
