r"""Autocorrelations of stationary series, from partial autocorrelations, and back.

The partial autocorrelations :math:`r_1, \dots, r_p` of a series are any numbers between -1 and 1, one to one
with the coefficients of a stationary autoregression and with the autocorrelations :math:`\rho_1, \dots,
\rho_p` that make a positive definite matrix (Barndorff-Nielsen and Schou 1973, Journal of Multivariate
Analysis 3, 408-419, theorem 2; Monahan 1984, Biometrika 71, 403-404; Box, Jenkins and Reinsel 1994, Time
Series Analysis, 3rd edition, section 3.2 and appendix A3.2 for Durbin and Levinson's recursion).

Functions of JAX arrays come first: sums, products and one division, so that they are smooth wherever they
are admissible, also at coefficients of zero. Those of host arrays, which look for starting values, follow.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

WRITTEN_OUT = 3
"""Largest order of a recursion that is written out: beyond it that takes longer to compile than a loop."""

NEAREST = 0.99
"""Partial autocorrelations to start from are no nearer to one than this."""

_FREQUENCIES = 512  # at which a spectral density is looked at
_LEAST_DENSITY = 0.01  # of a start, relative to that of independent values
_INNOVATIONS = 60  # steps of the innovations algorithm


class Autoregression(NamedTuple):
    """An autoregression of order p.

    Attributes
    ----------
    coefficients : (p,) array
        phi of ``x_t = sum_k phi_k x_{t-k} + e_t``.
    autocorrelations : (p,) array
        At the lags 1 to p.
    """

    coefficients: Float[Array, " p"]
    autocorrelations: Float[Array, " p"]


def autoregression(partial: Float[Array, " p"]) -> Autoregression:
    """The stationary autoregression of order p >= 1 with given partial autocorrelations.

    By Durbin and Levinson's recursion, the order rising by one at each step.

    Parameters
    ----------
    partial : (p,) array
        Between -1 and 1.

    Returns
    -------
    Autoregression

    Examples
    --------
    >>> found = autoregression(jnp.array([0.5, 0.25]))
    >>> found.coefficients.tolist(), found.autocorrelations.tolist()
    ([0.375, 0.25], [0.5, 0.4375])
    """
    order = partial.shape[0]
    return _written_out(partial) if order <= WRITTEN_OUT else _looped(partial)


def _written_out(partial: Float[Array, " p"]) -> Autoregression:
    """Scalar by scalar."""
    steps = list(partial)
    phi, rho, innovation = steps[:1], steps[:1], 1 - steps[0] * steps[0]
    for own in steps[1:]:
        rho = [*rho, own * innovation + sum(a * b for a, b in zip(phi, reversed(rho), strict=True))]
        phi = [*(a - own * b for a, b in zip(phi, reversed(phi), strict=True)), own]
        innovation = innovation * (1 - own * own)
    return Autoregression(jnp.stack(phi), jnp.stack(rho))


def _looped(partial: Float[Array, " p"]) -> Autoregression:
    """In a loop over the order, which takes the same time to compile for all of them."""
    order = partial.shape[0]
    index = jnp.arange(order)

    def step(k, state):  # type: ignore[no-untyped-def]
        phi, rho, innovation = state
        earlier, back = index < k, jnp.maximum(k - 1 - index, 0)
        own = partial[k]
        ahead = own * innovation + jnp.sum(jnp.where(earlier, phi * rho[back], 0))
        phi = jnp.where(earlier, phi - own * phi[back], jnp.where(index == k, own, 0))
        return phi, jnp.where(index == k, ahead, rho), innovation * (1 - own * own)

    zeros = jnp.zeros_like(partial)
    phi, rho, _ = jax.lax.fori_loop(0, order, step, (zeros, zeros, jnp.ones((), partial.dtype)))
    return Autoregression(phi, rho)


def autoregressive_table(partial: Float[Array, " p"], longest: int) -> Float[Array, " lags"]:
    """Autocorrelations of an autoregression at the lags 0 to `longest`.

    From lag to lag, by the Yule-Walker equations.

    Parameters
    ----------
    partial : (p,) array
        Partial autocorrelations; p >= 1.
    longest : int

    Returns
    -------
    (longest + 1,) array

    Examples
    --------
    >>> autoregressive_table(jnp.array([0.5]), 3).tolist()
    [1.0, 0.5, 0.25, 0.125]
    """
    phi, first = autoregression(partial)

    def step(latest, _):  # type: ignore[no-untyped-def]
        ahead = jnp.sum(phi * latest)
        return jnp.concatenate([ahead[None], latest[:-1]]), ahead

    # A loop compiles in a fraction of the time of anything that doubles what it has, and is no slower.
    _, later = jax.lax.scan(step, first[::-1], length=max(longest - len(first), 0))
    return jnp.concatenate([jnp.ones(1, partial.dtype), first, later])[: longest + 1]


def moving_average(partial: Float[Array, " q"]) -> Float[Array, " q"]:
    r"""Coefficients theta of the invertible moving average ``x_t = e_t + sum_k theta_k e_{t-k}``.

    Invertible if :math:`-\theta` are the coefficients of a stationary autoregression. Its partial
    autocorrelations are the negative of `partial`, so that the last coefficient is the last of `partial`.

    Parameters
    ----------
    partial : (q,) array
        Between -1 and 1; q >= 1.

    Returns
    -------
    (q,) array

    Examples
    --------
    >>> moving_average(jnp.array([0.5])).tolist()
    [0.5]
    """
    return -autoregression(-partial).coefficients


def _products_by_lag(theta: Float[Array, " q"]) -> list[Float[Array, ""]]:
    """Autocovariances of a moving average at the lags 0 to q, for innovations of variance one."""
    weights = jnp.concatenate([jnp.ones(1, theta.dtype), theta])
    size = weights.shape[0]
    return [jnp.sum(weights[: size - lag] * weights[lag:]) for lag in range(size)]


def moving_average_table(partial: Float[Array, " q"], longest: int) -> Float[Array, " lags"]:
    """Autocorrelations of a moving average at the lags 0 to `longest`: zero beyond q.

    Parameters
    ----------
    partial : (q,) array
        As for :func:`moving_average`.
    longest : int

    Returns
    -------
    (longest + 1,) array

    Examples
    --------
    >>> moving_average_table(jnp.array([0.0, 1.0]), 3).tolist()
    [1.0, 0.0, 0.5, 0.0]
    """
    covariances = jnp.stack(_products_by_lag(moving_average(partial)))
    return padded_table(covariances / covariances[0], longest)


def mixed_table(
    partial: Float[Array, " p"], partial_ma: Float[Array, " q"], longest: int
) -> Float[Array, " lags"]:
    r"""Autocorrelations of a mixed process, ARMA(p, q) with p, q >= 1, at the lags 0 to `longest`.

    It is the moving average of an autoregression with autocorrelations :math:`\rho`, whose autocovariances
    are proportional to :math:`\sum_{|m| \le q} c_m\, \rho_{|k + m|}`, c the autocovariances of the moving
    average itself (Brockwell and Davis 1991, Time Series, 2nd edition, proposition 3.1.1): no equations are
    to be solved.

    Parameters
    ----------
    partial : (p,) array
        Partial autocorrelations of the autoregression.
    partial_ma : (q,) array
        As for :func:`moving_average`.
    longest : int

    Returns
    -------
    (longest + 1,) array

    Examples
    --------
    >>> mixed_table(jnp.array([0.5]), jnp.array([0.0]), 2).tolist()
    [1.0, 0.5, 0.25]
    """
    c = _products_by_lag(moving_average(partial_ma))
    q = len(c) - 1
    rho = autoregressive_table(partial, longest + q)
    lags = np.arange(longest + 1)
    covariances = c[0] * rho[lags]
    for m in range(1, q + 1):
        covariances = covariances + c[m] * (rho[lags + m] + rho[np.abs(lags - m)])
    return covariances / covariances[0]


def padded_table(correlations: Float[Array, " a"], longest: int) -> Float[Array, " lags"]:
    """A table of correlations from lag 0, cut or continued with zeros to the lag `longest`.

    Examples
    --------
    >>> padded_table(jnp.array([1.0, 0.5]), 3).tolist()
    [1.0, 0.5, 0.0, 0.0]
    """
    own = correlations[: longest + 1]
    return jnp.concatenate([own, jnp.zeros(longest + 1 - own.shape[0], own.dtype)])


# On the host, for starting values


def limited(values: np.ndarray) -> np.ndarray:
    """Correlations that are no nearer to one than `NEAREST`.

    Examples
    --------
    >>> limited(np.array([0.2, -1.3])).tolist()
    [0.2, -0.99]
    """
    return np.clip(values, -NEAREST, NEAREST)


def partial_autocorrelations(autocorrelations: np.ndarray) -> np.ndarray:
    """Partial autocorrelations of autocorrelations at the lags 1 to p, each limited to `NEAREST`.

    So what comes back is admissible even if the autocorrelations, being estimates, are not.

    Parameters
    ----------
    autocorrelations : (p,) array

    Returns
    -------
    (p,) array

    Examples
    --------
    >>> partial_autocorrelations(np.array([0.5, 0.4])).round(3).tolist()
    [0.5, 0.2]
    """
    phi, partial, innovation = np.zeros(0), [], 1.0
    given: list[float] = []
    for wanted in autocorrelations:
        ahead = float(phi @ given[::-1]) if given else 0.0
        own = float(limited(np.array((wanted - ahead) / innovation)))
        # What is kept is the autocorrelation that the limited partial one has.
        given.append(ahead + own * innovation)
        phi = np.append(phi - own * phi[::-1], own)
        innovation *= 1 - own * own
        partial.append(own)
    return np.array(partial)


def partial_of_coefficients(coefficients: np.ndarray) -> np.ndarray:
    """Partial autocorrelations of an autoregression, each limited to `NEAREST`.

    Examples
    --------
    >>> partial_of_coefficients(np.array([0.4, 0.2])).round(3).tolist()
    [0.5, 0.2]
    """
    phi, partial = np.array(coefficients, dtype=np.float64), np.zeros(len(coefficients))
    for k in reversed(range(len(phi))):
        partial[k] = limited(phi[k])
        phi = (phi[:k] + partial[k] * phi[:k][::-1]) / (1 - partial[k] ** 2)
    return partial


def made_definite(autocorrelations: np.ndarray) -> np.ndarray:
    """Autocorrelations at the lags 1 to q, zero beyond, shrunk until their matrices are positive definite.

    These are where the spectral density, ``1 + 2 sum_k rho_k cos(k w)``, is positive at all frequencies w.

    Parameters
    ----------
    autocorrelations : (q,) array

    Returns
    -------
    (q,) array

    Examples
    --------
    >>> made_definite(np.array([0.3])).tolist(), made_definite(np.array([0.7])).round(3).tolist()
    ([0.3], [0.495])
    """
    angles = np.linspace(0, np.pi, _FREQUENCIES)[:, None] * np.arange(1, len(autocorrelations) + 1)
    lowest = float((2 * np.cos(angles) @ autocorrelations).min())
    return autocorrelations * min(1.0, (_LEAST_DENSITY - 1) / lowest if lowest < 0 else 1.0)


def moving_average_partial(autocorrelations: np.ndarray) -> np.ndarray:
    """Parameters of :func:`moving_average` near autocorrelations at the lags 1 to q, zero beyond.

    Correlations that no moving average has are moved towards zero. The coefficients come from the innovations
    algorithm (Brockwell and Davis 1991, proposition 5.2.2).

    Parameters
    ----------
    autocorrelations : (q,) array

    Returns
    -------
    (q,) array

    Examples
    --------
    >>> moving_average_partial(np.array([0.4])).round(3).tolist()
    [0.5]
    """
    q = len(autocorrelations)
    rho = np.concatenate([[1.0], made_definite(autocorrelations)])
    theta, variance = np.zeros((_INNOVATIONS + 1, q)), np.ones(_INNOVATIONS + 1)
    for n in range(1, _INNOVATIONS + 1):
        # theta[n, j - 1] belongs to the innovation j steps back.
        for lag in range(min(n, q), 0, -1):
            earlier = [
                theta[n - lag, i - lag - 1] * theta[n, i - 1] * variance[n - i]
                for i in range(lag + 1, min(n, q) + 1)
            ]
            theta[n, lag - 1] = (rho[lag] - sum(earlier)) / variance[n - lag]
        steps = np.arange(1, min(n, q) + 1)
        variance[n] = max(1.0 - np.sum(theta[n, steps - 1] ** 2 * variance[n - steps]), _LEAST_DENSITY)
    return -partial_of_coefficients(-theta[-1])


def mixed_partial(autocorrelations: np.ndarray, p: int, q: int) -> tuple[np.ndarray, np.ndarray]:
    """Partial parameters of ARMA(p, q) near autocorrelations at the lags 1 to p + q.

    The autoregression by the Yule-Walker equations of the lags beyond q (Brockwell and Davis 1991, section
    8.3), the moving average from what they leave.

    Parameters
    ----------
    autocorrelations : (p + q,) array
    p, q : int

    Returns
    -------
    autoregressive, moving_average : (p,) and (q,) arrays

    Examples
    --------
    >>> [part.round(3).tolist() for part in mixed_partial(np.array([0.5, 0.25]), 1, 1)]
    [[0.5], [0.0]]
    """
    rho = np.concatenate([[1.0], autocorrelations])
    k = np.arange(q + 1, q + p + 1)
    equations = rho[np.abs(k[:, None] - np.arange(1, p + 1))]
    partial = partial_of_coefficients(np.linalg.lstsq(equations, rho[k], rcond=0.05)[0])
    weights = np.concatenate([[1.0], -coefficients_of(partial)])
    apart = np.arange(p + 1)[:, None] - np.arange(p + 1)
    left = [weights @ rho[np.minimum(np.abs(lag + apart), p + q)] @ weights for lag in range(q + 1)]
    if left[0] <= _LEAST_DENSITY:
        return partial, np.zeros(q)
    return partial, moving_average_partial(np.array(left[1:]) / left[0])


def autocorrelations_of(partial: np.ndarray) -> np.ndarray:
    """Autocorrelations at the lags 1 to p from partial autocorrelations, on the host.

    Examples
    --------
    >>> autocorrelations_of(np.array([0.5, 0.25])).tolist()
    [0.5, 0.4375]
    """
    rho: list[float] = []
    innovation = 1.0
    for k, own in enumerate(partial):
        phi = coefficients_of(partial[:k])
        rho.append(float(own * innovation + phi @ rho[::-1]) if k else float(own))
        innovation *= 1 - own * own
    return np.array(rho)


def coefficients_of(partial: np.ndarray) -> np.ndarray:
    """Coefficients of an autoregression from its partial autocorrelations, on the host.

    Examples
    --------
    >>> coefficients_of(np.array([0.5, 0.2])).round(3).tolist()
    [0.4, 0.2]
    """
    phi = np.zeros(0)
    for own in partial:
        phi = np.append(phi - own * phi[::-1], own)
    return phi
