r"""Covariance functions: effects at positions (times, places) that are alike the nearer they are.

A :class:`Kernel` is a function from its natural parameters and positions :math:`s_1, \dots, s_t` to the
correlations of what happens there; it is not bound to data. Bound to positions, one for each column of a
random-effects term, it is a covariance structure like any other (:class:`jaxmixed.covariance.Covariance`):

.. math:: G = \tau^2 K(\phi; s_1, \dots, s_q), \qquad T = \tau\, K(\phi)^{1/2},

with free parameters theta = (tau, phi), each element of phi on the whole real line (the logarithm of a
length, the inverse hyperbolic tangent of a correlation). The sign of tau does not matter, so a variance of
zero is an interior point, where phi is undetermined.

**A kernel of one's own** is a function of a dict of scalars and an array of positions, written in
``jax.numpy``, and a support with a starting value for each parameter::

    def rational_quadratic(params, positions):
        apart = positions[:, None] - positions[None, :]
        return (1 + apart**2 / (2 * params["shape"] * params["length"] ** 2)) ** -params["shape"]


    smooth = jm.kernels.kernel(
        rational_quadratic, {"length": jm.kernels.Length(), "shape": jm.kernels.Positive(1.0)}
    )
    jm.mixed("y ~ week + (0 + C(week) | subject)", data, covariance={"subject": smooth})

It must be smooth in the parameters, give a symmetric positive semidefinite (t, t) matrix for all of them, and
use no numpy. Write distances so that their derivatives are finite: the root of a squared distance of zero has
none. Programs are compiled once for each function *object*: define it once, at the top of a module, rather
than as a lambda where it is used.

References
----------
Rasmussen & Williams (2006), Gaussian Processes for Machine Learning, chapter 4.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxmixed._types import AnyArray
from jaxmixed.kernel_covariance import Kernel, KernelCovariance, kernel
from jaxmixed.supports import Correlation, Fixed, Length, Positive, Real, Support, Unit
from jaxmixed.toeplitz import toeplitz

__all__ = [
    "Correlation",
    "Fixed",
    "Kernel",
    "KernelCovariance",
    "Length",
    "Positive",
    "Real",
    "Support",
    "Unit",
    "ar1",
    "exponential",
    "kernel",
    "matern32",
    "squared_exponential",
    "toeplitz",
]


# Built in


def _separations(positions: Float[AnyArray, "t ..."]) -> Float[Array, "t t"]:
    """Squared distances."""
    points = positions[:, None] if positions.ndim == 1 else positions
    apart = points[:, None, :] - points[None, :, :]
    return jnp.sum(apart * apart, axis=-1)


def _distances(positions: Float[AnyArray, "t ..."]) -> Float[Array, "t t"]:
    """Distances, whose derivatives at zero are zero."""
    squares = _separations(positions)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def _squared_exponential(params: dict[str, Any], positions: Any) -> Array:
    return jnp.exp(-_separations(positions) / (2 * params["length"] ** 2))


def _exponential(params: dict[str, Any], positions: Any) -> Array:
    return jnp.exp(-_distances(positions) / params["length"])


def _matern32(params: dict[str, Any], positions: Any) -> Array:
    scaled = jnp.sqrt(3.0) * _distances(positions) / params["length"]
    return (1 + scaled) * jnp.exp(-scaled)


def _ar1(params: dict[str, Any], positions: Any) -> Array:
    lag = jax.lax.stop_gradient(jnp.abs(positions[:, None] - positions[None, :]))
    # A power of zero is one, and does not depend on what is raised to it, whatever that is.
    return jnp.where(lag > 0, params["rho"] ** jnp.where(lag > 0, lag, 1), 1)


def _length(start: float | None) -> dict[str, Support | Fixed]:
    return {"length": Length(start)}


def squared_exponential(length: float | None = None) -> Kernel:
    r"""Very smooth functions: correlation :math:`\exp(-d^2 / (2 \ell^2))` at distance d.

    Parameters
    ----------
    length : float, optional
        Starting value of the length scale, in the unit of the positions.

    Returns
    -------
    Kernel

    Examples
    --------
    >>> squared_exponential().at([0.0, 1.0, 2.0]).natural_names
    ('length',)
    """
    return kernel(_squared_exponential, _length(length), "squared_exponential")


def exponential(length: float | None = None) -> Kernel:
    r"""Continuous, rough functions (Ornstein-Uhlenbeck): correlation :math:`\exp(-d / \ell)` at distance d.

    On equally spaced positions it is :func:`ar1` with ``rho = exp(-1 / length)``.

    Parameters
    ----------
    length : float, optional
        Starting value of the distance at which the correlation is 1/e, in the unit of the positions.

    Returns
    -------
    Kernel

    Examples
    --------
    >>> K = exponential().matrix({"length": 2.0}, jnp.array([0.0, 2.0]))
    >>> round(float(K[0, 1]), 4)
    0.3679
    """
    return kernel(_exponential, _length(length), "exponential")


def matern32(length: float | None = None) -> Kernel:
    r"""Functions with one derivative: correlation :math:`(1 + x) e^{-x}`, :math:`x = \sqrt 3\, d / \ell`.

    Parameters
    ----------
    length : float, optional
        Starting value of the length scale, in the unit of the positions.

    Returns
    -------
    Kernel

    Examples
    --------
    >>> matern32().at([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).q
    3
    """
    return kernel(_matern32, _length(length), "matern32")


def ar1(rho: float = 0.3) -> Kernel:
    r"""First-order autoregression: correlation :math:`\rho^{|s - t|}` between whole-numbered times.

    Parameters
    ----------
    rho : float
        Starting value of the correlation of neighbours, which may be negative.

    Returns
    -------
    Kernel

    Examples
    --------
    >>> ar1().matrix({"rho": -0.5}, jnp.arange(3.0))
    Array([[ 1.  , -0.5 ,  0.25],
           [-0.5 ,  1.  , -0.5 ],
           [ 0.25, -0.5 ,  1.  ]], dtype=float32)
    """
    return kernel(_ar1, {"rho": Correlation(rho)}, "ar1", integer_positions=True)


ORDERED: dict[str, Callable[[], Kernel]] = {"ar1": ar1, "toeplitz": toeplitz}
"""Kernels over ordered levels, by the names with which formulas and ``covariance=`` ask for them."""
