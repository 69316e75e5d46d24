r"""Toeplitz covariances: one variance, and one correlation for each distance between ordered levels.

.. math:: G_{ij} = \tau^2 \rho_{|t_i - t_j|}

The free parameters are :math:`\tau` and the inverse hyperbolic tangents of the *partial* autocorrelations
:math:`\pi_1, \pi_2, \dots`, which may take any values between -1 and 1 and give all positive definite
Toeplitz matrices, each once (Barndorff-Nielsen & Schou 1973, Journal of Multivariate Analysis 3, 408-419).
What tables show are the autocorrelations, which the Durbin-Levinson recursion makes of them.
"""

from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxmixed.autocorrelations import autoregression, partial_autocorrelations
from jaxmixed.covariance import PIVOT_TOLERANCE, Natural
from jaxmixed.errors import DesignError
from jaxmixed.kernel_covariance import Kernel, KernelCovariance, on_host, static_positions
from jaxmixed.programs import Program
from jaxmixed.supports import Correlation, Fixed, Support

_START = 0.3
"""First partial autocorrelation of a search that knows nothing better; the others start at zero."""


@dataclass(frozen=True, slots=True)
class ToeplitzCovariance(KernelCovariance):
    """One variance and one correlation for each lag: theta = (tau, atanh of partial autocorrelations).

    Attributes
    ----------
    kernel : Kernel
        With one correlation ``rho<lag>`` for each lag that occurs.
    positions : tuple
        Of q whole numbers.
    """

    @property
    def lags(self) -> tuple[int, ...]:
        """The lags that occur, all multiples of the first."""
        return lags_between(self.positions)

    def parameter_values(self, theta: Float[Array, " k"]) -> dict[str, Any]:
        rho = self.autocorrelations(theta)
        return {name: rho[a] for a, name in enumerate(self.natural_names)}

    def autocorrelations(self, theta: Float[Array, " k"]) -> Float[Array, " lags"]:
        """Correlations at the lags that occur, from the free parameters (traced)."""
        return autoregression(jnp.tanh(self._limited(theta[1:]))).autocorrelations

    def names(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        del columns
        return (self.name, *(f"partial {name}" for name in self.natural_names))

    def further_starts(self, theta: np.ndarray) -> np.ndarray:
        """None: moments give a start for each correlation."""
        return theta[None][:0]

    def from_covariance(
        self, G: np.ndarray, tolerance: float = PIVOT_TOLERANCE, floor: float = 0.0
    ) -> np.ndarray:
        """The Toeplitz matrix of the mean variance and of the mean covariance at each lag, or near it."""
        directions = self.directions()
        sums = np.einsum("...ij,aij->...a", G, directions)
        means = sums / directions.sum(axis=(1, 2))
        variance = np.maximum(means[..., :1], 0.0)
        rho = means[..., 1:] / np.where(variance > 0, variance, np.inf)
        tau = np.sqrt(variance)
        free = np.arctanh(np.apply_along_axis(partial_autocorrelations, -1, rho))
        free = np.where(variance > 0, free, self.initial()[1:])
        return self.canonical(np.concatenate([tau, free], axis=-1), tolerance, floor)

    def directions(self) -> np.ndarray:
        """Matrices (1 + lags, q, q), in which G is linear: ones where two levels are so far apart."""
        positions = np.asarray(self.positions)
        apart = np.abs(positions[:, None] - positions)
        return (apart == np.array([0, *self.lags])[:, None, None]).astype(np.float64)

    def natural(self, theta: np.ndarray) -> Natural:
        """Autocorrelations; without any variance there is nothing that they could be of: NaN."""
        nothing = theta[..., :1] == 0
        found = on_host(NATURALS, self, theta)
        value = np.where(nothing, np.nan, found[..., 0])
        slope = np.maximum(1 - found[..., 0] ** 2, np.finfo(float).tiny)
        with np.errstate(divide="ignore"):
            return Natural(value, slope, np.arctanh(value), found[..., 1:] / slope[..., None], np.tanh)


def _naturals(thetas: Float[Array, "m k"], *, structure: ToeplitzCovariance) -> tuple[Array]:
    values = jax.vmap(structure.autocorrelations)(thetas)
    slopes = jax.vmap(jax.jacfwd(structure.autocorrelations))(thetas)
    return (jnp.concatenate([values[..., None], slopes], axis=-1),)


NATURALS = Program(_naturals)
"""Autocorrelations at many parameters and, beside each, its derivatives, (m, lags, 1 + k)."""


@cache
def lags_between(positions: tuple[Any, ...]) -> tuple[int, ...]:
    """The distinct distances between whole numbers, in rising order.

    Examples
    --------
    >>> lags_between((0, 2, 6))
    (2, 4, 6)
    """
    values = np.asarray(positions, dtype=np.int64)
    return tuple(np.unique(np.abs(values[:, None] - values))[1:].tolist())


def _at_lags(params: dict[str, Any], positions: Any) -> Array:
    """Correlations by lag: the parameter ``rho<lag>``, which must be there for each lag that occurs."""
    lag = jnp.abs(positions[:, None] - positions[None, :])
    found = jnp.where(lag == 0, 1.0, 0.0)
    for name, value in params.items():
        found = found + jnp.where(lag == int(name.removeprefix("rho")), value, 0.0)
    return found


@dataclass(frozen=True, slots=True, repr=False)
class _Toeplitz(Kernel):
    """The kernel before it has positions, which say how many parameters it has."""

    def at(self, positions: Any) -> ToeplitzCovariance:
        """Covariance structure of effects at whole-numbered positions, one for each.

        Parameters
        ----------
        positions : (q,) array
            Different from each other; equally spaced, or such that all lags up to the longest occur.

        Returns
        -------
        ToeplitzCovariance

        Raises
        ------
        DesignError
            If positions are not distinct whole numbers, or lags between those that occur do not.

        Examples
        --------
        >>> toeplitz().at([0, 1, 3]).natural_names
        ('rho1', 'rho2', 'rho3')
        """
        where = static_positions(self, positions)
        if isinstance(where[0], tuple):
            raise DesignError(f"the positions of the kernel {self.name!r} must be one number for each effect")
        if len(where) < 2:
            raise DesignError(f"the structure {self.name!r} needs at least two positions, and there is one")
        lags = lags_between(where)
        unit = gcd(*lags)
        gap = next((lag for lag in range(unit, lags[-1], unit) if lag not in lags), None)
        if gap is not None:
            raise DesignError(
                f"no two positions of the structure {self.name!r} are {gap} apart, so that nothing is known "
                f"of the correlation there; the distances that occur are {', '.join(map(str, lags[:10]))}"
                f"{', ...' if len(lags) > 10 else ''}. Take 'ar1' or jm.kernels.exponential() for such "
                "positions"
            )
        parameters: tuple[tuple[str, Support | Fixed], ...] = tuple(
            (f"rho{lag}", Correlation(_START if lag == lags[0] else 0.0)) for lag in lags
        )
        return ToeplitzCovariance(Kernel(_at_lags, parameters, self.name, True, True), where)


def toeplitz() -> Kernel:
    r"""A correlation of its own for each lag: :math:`\rho_{|s - t|}` between whole-numbered times.

    It contains :func:`jaxmixed.kernels.ar1` and the exchangeable structure, and is positive definite for all
    values of its free parameters (partial autocorrelations). Its parameters are known when it has positions.

    Returns
    -------
    Kernel

    Examples
    --------
    >>> structure = toeplitz().at([8, 10, 12, 14])
    >>> structure.natural_names, structure.num_params
    (('rho2', 'rho4', 'rho6'), 4)
    """
    return _Toeplitz(_at_lags, (), "toeplitz", integer_positions=True)
