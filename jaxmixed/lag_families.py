"""Stationary residual correlations at whole times: looked up by lag."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxmixed import autocorrelations as series
from jaxmixed._types import AnyArray
from jaxmixed.residual_family import MODERATE, Family, Scale, apart, numbered, observed, on_scale


def _by_lag(times: np.ndarray, products: np.ndarray, counts: np.ndarray, longest: int) -> np.ndarray:
    """Correlations at the lags 1 to `longest`; on a line between lags that occur."""
    values, weights = observed(products, counts)
    known = weights > 0
    order = np.argsort(times[known])
    lags = np.concatenate([[0.0], times[known][order]])
    return np.interp(np.arange(1.0, longest + 1), lags, np.concatenate([[1.0], values[known][order]]))


def _coefficient_scales(count: int) -> tuple[Scale, ...]:
    """Of coefficients: a single one lies between -1 and 1; several are bounded by each other."""
    return on_scale("atanh" if count == 1 else "identity", count)


class _Lagged(Family):
    """A stationary correlation at whole times: tables are correlations at the lags 0 to `longest`."""

    longest: int
    time_kind = "whole"

    def look_up(
        self,
        tables: Float[Array, "S lags"],
        stratum: Int[AnyArray, ""],
        times: Float[AnyArray, " t"],
        present: Bool[AnyArray, " t"],
    ) -> Float[Array, "t t"]:
        del present
        lags = jnp.rint(apart(times)).astype(jnp.int32)
        # Rows that pad may be farther from the others than any two that are there.
        return tables[stratum, jnp.minimum(lags, self.longest)]

    def initial(self) -> np.ndarray:
        return np.where(np.arange(self.num_params) == 0, np.arctanh(MODERATE), 0.0)


@dataclass(frozen=True)
class Autoregressive(_Lagged):
    """AR(p) at whole times, ``e_t = sum_k phi_k e_{t-k} + u_t``; AR(1) has correlations phi**lag.

    Free parameters are inverse hyperbolic tangents of the partial autocorrelations.

    Attributes
    ----------
    order : int
        p, at least 1.
    longest : int
        Longest lag that occurs, or more.

    Examples
    --------
    >>> Autoregressive(1, 2).correlation(jnp.arctanh(jnp.array([0.5])), jnp.array([0.0, 2.0]))[0].tolist()
    [1.0, 0.25]
    """

    order: int
    longest: int

    @property
    def is_markov(self) -> bool:
        return self.order == 1

    @property
    def name(self) -> str:
        return f"AR({self.order})"

    @property
    def num_params(self) -> int:
        return self.order

    @property
    def scales(self) -> tuple[Scale, ...]:
        return _coefficient_scales(self.order)

    def table(self, free: Float[Array, " k"]) -> Float[Array, " lags"]:
        return series.autoregressive_table(jnp.tanh(free), self.longest)

    def natural(self, free: Float[Array, " k"]) -> Float[Array, " a"]:
        return series.autoregression(jnp.tanh(free)).coefficients

    def names(self, labels: Sequence[str]) -> tuple[str, ...]:
        del labels
        return numbered("phi", self.order)

    def start(self, times: np.ndarray, products: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return np.arctanh(series.partial_autocorrelations(_by_lag(times, products, counts, self.order)))


@dataclass(frozen=True)
class MovingAverage(_Lagged):
    """MA(q) at whole times, ``e_t = u_t + sum_k theta_k u_{t-k}``: no correlation beyond the lag q.

    Of the coefficients that give the same correlations those of the invertible process. Free parameters are
    as for AR(q) with the coefficients ``-theta``, with their signs changed: ``theta1`` is the hyperbolic
    tangent of that of MA(1).

    Attributes
    ----------
    order : int
        q, at least 1.
    longest : int
        Longest lag that occurs, or more.

    Examples
    --------
    >>> free = jnp.arctanh(jnp.array([0.5]))
    >>> [round(float(rho), 4) for rho in MovingAverage(1, 2).correlation(free, jnp.arange(3.0))[0]]
    [1.0, 0.4, 0.0]
    """

    order: int
    longest: int

    @property
    def name(self) -> str:
        return f"MA({self.order})"

    @property
    def num_params(self) -> int:
        return self.order

    @property
    def scales(self) -> tuple[Scale, ...]:
        return _coefficient_scales(self.order)

    def table(self, free: Float[Array, " k"]) -> Float[Array, " lags"]:
        return series.moving_average_table(jnp.tanh(free), self.longest)

    def natural(self, free: Float[Array, " k"]) -> Float[Array, " a"]:
        return series.moving_average(jnp.tanh(free))

    def names(self, labels: Sequence[str]) -> tuple[str, ...]:
        del labels
        return numbered("theta", self.order)

    def start(self, times: np.ndarray, products: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return np.arctanh(series.moving_average_partial(_by_lag(times, products, counts, self.order)))


@dataclass(frozen=True)
class AutoregressiveMovingAverage(_Lagged):
    """ARMA(p, q) at whole times, ``e_t = sum_k phi_k e_{t-k} + u_t + sum_k theta_k u_{t-k}``.

    Free parameters are those of AR(p), then those of MA(q). Where the two parts have a root in common it
    cancels, and the likelihood is flat along it.

    Attributes
    ----------
    ar, ma : int
        p and q, at least 1 each.
    longest : int
        Longest lag that occurs, or more.

    Examples
    --------
    >>> AutoregressiveMovingAverage(1, 1, 3).names(())
    ('phi1', 'theta1')
    """

    ar: int
    ma: int
    longest: int

    @property
    def name(self) -> str:
        return f"ARMA({self.ar}, {self.ma})"

    @property
    def num_params(self) -> int:
        return self.ar + self.ma

    @property
    def scales(self) -> tuple[Scale, ...]:
        return _coefficient_scales(self.ar) + _coefficient_scales(self.ma)

    def table(self, free: Float[Array, " k"]) -> Float[Array, " lags"]:
        partial = jnp.tanh(free)
        return series.mixed_table(partial[: self.ar], partial[self.ar :], self.longest)

    def natural(self, free: Float[Array, " k"]) -> Float[Array, " a"]:
        partial = jnp.tanh(free)
        phi = series.autoregression(partial[: self.ar]).coefficients
        return jnp.concatenate([phi, series.moving_average(partial[self.ar :])])

    def names(self, labels: Sequence[str]) -> tuple[str, ...]:
        del labels
        return numbered("phi", self.ar) + numbered("theta", self.ma)

    def start(self, times: np.ndarray, products: np.ndarray, counts: np.ndarray) -> np.ndarray:
        rho = _by_lag(times, products, counts, self.num_params)
        return np.arctanh(np.concatenate(series.mixed_partial(rho, self.ar, self.ma)))


@dataclass(frozen=True)
class Toeplitz(_Lagged):
    """A free correlation for every lag up to an order, none beyond.

    Free parameters are inverse hyperbolic tangents of the partial autocorrelations. If no lag beyond the
    order occurs, every value is admissible. Otherwise a matrix of more than ``order + 1`` rows with zeros
    beyond the order may be indefinite: the likelihood is NaN there, a step that an optimiser takes back.

    Partial autocorrelations admit what is positive definite at *all* times up to the order. If no group has
    rows at all of these, more is possible: with ``complete=False`` free parameters are inverse hyperbolic
    tangents of the autocorrelations themselves, and the likelihood is NaN where those of a group are
    indefinite.

    Attributes
    ----------
    order : int
        Longest lag with a correlation, at least 1.
    longest : int
        Longest lag that occurs, or more.
    complete : bool
        Whether some group has rows at ``order + 1`` times in a row.

    Examples
    --------
    >>> Toeplitz(2, 3).correlation(jnp.arctanh(jnp.array([0.5, 0.0])), jnp.arange(4.0))[0].tolist()
    [1.0, 0.5, 0.25, 0.0]
    """

    order: int
    longest: int
    complete: bool = True

    @property
    def name(self) -> str:
        return f"Toeplitz({self.order})"

    @property
    def num_params(self) -> int:
        return self.order

    @property
    def scales(self) -> tuple[Scale, ...]:
        return on_scale("atanh", self.order)

    def table(self, free: Float[Array, " k"]) -> Float[Array, " lags"]:
        one = jnp.ones(1, free.dtype)
        return series.padded_table(jnp.concatenate([one, self.natural(free)]), self.longest)

    def natural(self, free: Float[Array, " k"]) -> Float[Array, " a"]:
        values = jnp.tanh(free)
        return series.autoregression(values).autocorrelations if self.complete else values

    def names(self, labels: Sequence[str]) -> tuple[str, ...]:
        del labels
        return numbered("rho", self.order)

    def initial(self) -> np.ndarray:
        return np.zeros(self.order)  # definite whatever the order

    def start(self, times: np.ndarray, products: np.ndarray, counts: np.ndarray) -> np.ndarray:
        rho = _by_lag(times, products, counts, self.order)
        found = series.partial_autocorrelations(
            rho if self.order >= self.longest else series.made_definite(rho)
        )
        return np.arctanh(found if self.complete else series.autocorrelations_of(found))
