r"""Families of residual correlation: from free parameters and the times of one group to a correlation matrix.

A family is static (hashable, free of arrays, without names of the user's data). Its parameters are free real
numbers, every value of which is admissible:

* autocorrelations come from partial autocorrelations (:mod:`jaxmixed.autocorrelations`);
* unstructured and banded matrices from the canonical partial correlations of each label with the earlier
  ones, that is from a Cholesky factor whose rows have unit length (Lewandowski, Kurowicka and Joe 2009,
  Journal of Multivariate Analysis 100, 1989-2001, section 2.4; Pinheiro and Bates 1996, Statistics and
  Computing 6, 289-296, for factors in general). On the scale of the inverse hyperbolic tangent the
  likelihood is nearly a parabola in each of them;
* ranges from logarithms, shares from logits.

The one exception is a Toeplitz matrix that is zero beyond some lag: see :class:`Toeplitz`. What tables show
are *natural* parameters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxmixed._types import AnyArray
from jaxmixed.autocorrelations import limited
from jaxmixed.errors import DesignError
from jaxmixed.label_families import AnteDependence, Banded, Unstructured
from jaxmixed.lag_families import Autoregressive, AutoregressiveMovingAverage, MovingAverage, Toeplitz
from jaxmixed.precision import double_precision, to_host
from jaxmixed.programs import Program
from jaxmixed.residual_family import (
    FARTHEST,
    LOGIT_FARTHEST,
    MODERATE,
    Family,
    Scale,
    TimeKind,
    apart,
    mean_correlation,
    observed,
)
from jaxmixed.supports import Correlation, Fixed, Length, Positive, Support, Unit

__all__ = [
    "FARTHEST",
    "AnteDependence",
    "Autoregressive",
    "AutoregressiveMovingAverage",
    "Banded",
    "Custom",
    "Exchangeable",
    "Exponential",
    "Family",
    "Independent",
    "MovingAverage",
    "Scale",
    "TimeKind",
    "Toeplitz",
    "Unstructured",
    "time_unit",
]

_ROUNDING = 1e-8  # of a function's own arithmetic, in the checks of its matrix

# Without times


@dataclass(frozen=True)
class Independent(Family):
    """No correlation."""

    name = "independent"
    num_params = 0
    scales = ()
    time_kind = "unused"
    is_markov = True

    def table(self, free: Float[Array, " k"]) -> Float[Array, " 0"]:
        return free

    def look_up(
        self,
        tables: Float[Array, "S 0"],
        stratum: Int[AnyArray, ""],
        times: Float[AnyArray, " t"],
        present: Bool[AnyArray, " t"],
    ) -> Float[Array, "t t"]:
        del stratum, present
        return jnp.eye(len(times), dtype=tables.dtype)

    def natural(self, free: Float[Array, " k"]) -> Float[Array, " a"]:
        return free

    def names(self, labels: Sequence[str]) -> tuple[str, ...]:
        del labels
        return ()

    def initial(self) -> np.ndarray:
        return np.zeros(0)

    def start(self, times: np.ndarray, products: np.ndarray, counts: np.ndarray) -> np.ndarray:
        del times, products, counts
        return self.initial()


@dataclass(frozen=True)
class Exchangeable(Family):
    r"""One correlation rho between any two rows of a group.

    It may be negative, down to :math:`-1/(t - 1)` in groups of t rows: rho goes from that bound to one as the
    hyperbolic tangent of the free parameter goes from -1 to 1.

    Attributes
    ----------
    largest : int
        Rows t of the largest group, at least 2.

    Examples
    --------
    >>> Exchangeable(3).correlation(jnp.array([0.0]), jnp.arange(2.0))[0].tolist()
    [1.0, 0.25]
    """

    largest: int
    name = "exchangeable"
    num_params = 1
    scales = ("atanh",)
    time_kind = "unused"

    @property
    def _low(self) -> float:
        return -1.0 / (max(self.largest, 2) - 1)

    def table(self, free: Float[Array, " k"]) -> Float[Array, " 1"]:
        return self.natural(free)

    def look_up(
        self,
        tables: Float[Array, "S 1"],
        stratum: Int[AnyArray, ""],
        times: Float[AnyArray, " t"],
        present: Bool[AnyArray, " t"],
    ) -> Float[Array, "t t"]:
        del present
        return jnp.where(jnp.eye(len(times), dtype=bool), 1, tables[stratum, 0])

    def natural(self, free: Float[Array, " k"]) -> Float[Array, " a"]:
        return self._low + (1 - self._low) * (1 + jnp.tanh(free)) / 2

    def names(self, labels: Sequence[str]) -> tuple[str, ...]:
        del labels
        return ("rho",)

    def initial(self) -> np.ndarray:
        return self._free(MODERATE)

    def start(self, times: np.ndarray, products: np.ndarray, counts: np.ndarray) -> np.ndarray:
        del times
        return self._free(mean_correlation(products, counts))

    def _free(self, rho: float) -> np.ndarray:
        share = (rho - self._low) / (1 - self._low)  # of the way from the lower bound to one
        return np.arctanh(limited(np.array([2 * share - 1])))


# In continuous time


@dataclass(frozen=True)
class Exponential(Family):
    r"""Correlations :math:`(1 - \nu) \exp(-d / \mathrm{range})` at distance d in continuous time.

    Without a nugget :math:`\nu = 0`. Free parameters are the logarithm of the range in `unit`, and the logit
    of the nugget.

    Attributes
    ----------
    nugget : bool
    unit : float
        A typical distance between times (:func:`time_unit`), so that the free parameter is near zero whatever
        times are measured in.

    Examples
    --------
    >>> round(float(Exponential().correlation(jnp.array([0.0]), jnp.array([0.0, 1.0]))[0, 1]), 4)
    0.3679
    """

    nugget: bool = False
    unit: float = 1.0
    time_kind = "real"

    @property
    def is_markov(self) -> bool:
        return not self.nugget

    @property
    def name(self) -> str:
        return "exponential with nugget" if self.nugget else "exponential"

    @property
    def farthest(self) -> tuple[float, ...]:
        # Errors much smoother than the process leave no room for a nugget: then 1e-5 costs likelihood.
        return (FARTHEST, LOGIT_FARTHEST)[: self.num_params]

    @property
    def num_params(self) -> int:
        return 2 if self.nugget else 1

    @property
    def scales(self) -> tuple[Scale, ...]:
        return ("log", "logit", "logit") if self.nugget else ("log", "logit")

    def table(self, free: Float[Array, " k"]) -> Float[Array, " 2"]:
        """The rate of decay per unit, and the share of what is not nugget."""
        share = _logistic(-free[1:]) if self.nugget else jnp.ones(1, free.dtype)
        return jnp.concatenate([jnp.exp(-free[:1]), share])

    def look_up(
        self,
        tables: Float[Array, "S 2"],
        stratum: Int[AnyArray, ""],
        times: Float[AnyArray, " t"],
        present: Bool[AnyArray, " t"],
    ) -> Float[Array, "t t"]:
        del present
        distance = apart(times) / self.unit
        decayed = tables[stratum, 1] * jnp.exp(-distance * tables[stratum, 0])
        return jnp.where(jnp.eye(len(times), dtype=bool), 1, decayed)

    def natural(self, free: Float[Array, " k"]) -> Float[Array, " a"]:
        """Range, nugget, and the correlation (but for the nugget) at distance one."""
        distance = jnp.exp(free[:1]) * self.unit
        shares = [_logistic(free[1:])] if self.nugget else []
        return jnp.concatenate([distance, *shares, jnp.exp(-1 / distance)])

    def names(self, labels: Sequence[str]) -> tuple[str, ...]:
        del labels
        return ("range", "nugget", "rho") if self.nugget else ("range", "rho")

    def initial(self) -> np.ndarray:
        return np.zeros(self.num_params) if not self.nugget else np.array([0.0, -2.0])

    def start(self, times: np.ndarray, products: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Least squares over a grid of ranges (and nuggets), weighted by counts and nearness."""
        values, weights = observed(products, counts)
        if not weights.sum() > 0:
            return self.initial()
        weights = weights * (self.unit / np.maximum(times, self.unit)) ** 2
        log_range = np.linspace(-4.0, 8.0, 97)
        decay = np.exp(-times / self.unit * np.exp(-log_range)[:, None])
        share = np.ones(len(log_range))
        if self.nugget:
            squares = np.maximum(decay**2 @ weights, np.finfo(float).tiny)
            share = np.clip(decay @ (weights * values) / squares, 0.05, 0.95)
        best = int(np.argmin((values - share[:, None] * decay) ** 2 @ weights))
        logit = np.log1p(-share[best]) - np.log(share[best]) if self.nugget else 0.0
        return np.array([log_range[best], logit])[: self.num_params]


def _logistic(free: Float[Array, "*m"]) -> Float[Array, "*m"]:
    return (1 + jnp.tanh(free / 2)) / 2


def time_unit(distances: np.ndarray) -> float:
    """A power of two near the median of distances, for :class:`Exponential`.

    Distances of similar data have the same unit, so that they share compiled programs.

    Parameters
    ----------
    distances : (d,) array
        Between times of the same group.

    Returns
    -------
    float

    Examples
    --------
    >>> time_unit(np.array([7.0, 7.5, 0.0])), time_unit(np.zeros(0))
    (8.0, 1.0)
    """
    positive = distances[distances > 0]
    return float(2.0 ** np.rint(np.log2(np.median(positive)))) if len(positive) else 1.0


# Of one's own

Function = Callable[[dict[str, Any], Any], Any]


@dataclass(frozen=True, repr=False)
class Custom(Family):
    """Correlations that a function of the user's gives.

    Hashable; equal where the function object, the parameters and the options are. Free parameters are
    distances from the starting values, on the free scales of the parameters' supports.

    Attributes
    ----------
    function : callable
        ``(params, times) -> (t, t)`` in ``jax.numpy``, of a dict of scalars and the times, (t,), of one
        group, which are different from each other and rising.
    parameters : tuple of (name, support)
        See :mod:`jaxmixed.supports`; those that are `Fixed` are not estimated.
    cholesky : bool
        Whether the function gives a lower Cholesky factor of the correlations, and not these.
    label : str
        Name in tables.

    Examples
    --------
    >>> def damped(params, times):
    ...     return params["rho"] ** jnp.abs(times[:, None] - times[None, :])
    >>> family = Custom(damped, (("rho", Correlation(0.5)),))
    >>> family.correlation(jnp.zeros(1), jnp.array([0.0, 2.0]))[0].tolist()
    [1.0, 0.25]
    """

    function: Function
    parameters: tuple[tuple[str, Support | Fixed], ...]
    cholesky: bool = False
    label: str = "custom"
    time_kind = "real"

    def __repr__(self) -> str:
        # The address of the function keeps programs with it out of other processes.
        options = f"cholesky={self.cholesky}, function at {id(self.function):#x}"
        return f"Custom({self.label!r}, {dict(self.parameters)!r}, {options})"

    @property
    def name(self) -> str:
        return self.label

    @property
    def free_parameters(self) -> tuple[tuple[str, Support], ...]:
        """Parameters that are estimated."""
        return tuple((name, own) for name, own in self.parameters if isinstance(own, Support))

    @property
    def num_params(self) -> int:
        return len(self.free_parameters)

    @property
    def scales(self) -> tuple[Scale, ...]:
        return tuple(_scale_of(own) for _, own in self.free_parameters)

    @property
    def farthest(self) -> tuple[float, ...]:
        return tuple(own.farthest for _, own in self.free_parameters)

    def table(self, free: Float[Array, " k"]) -> Float[Array, " k"]:
        return self.natural(free)

    def look_up(
        self,
        tables: Float[Array, "S k"],
        stratum: Int[AnyArray, ""],
        times: Float[AnyArray, " t"],
        present: Bool[AnyArray, " t"],
    ) -> Float[Array, "t t"]:
        params: dict[str, Any] = {name: own.value for name, own in self.parameters if isinstance(own, Fixed)}
        params |= {name: tables[stratum, a] for a, (name, _) in enumerate(self.free_parameters)}
        matrix = jnp.asarray(self.function(params, _rising(times, present, tables.dtype))).astype(
            tables.dtype
        )
        return matrix @ matrix.T if self.cholesky else matrix

    def natural(self, free: Float[Array, " k"]) -> Float[Array, " a"]:
        own = self.free_parameters
        values = [support.natural(_centre(support) + free[a]) for a, (_, support) in enumerate(own)]
        return jnp.stack(values).astype(free.dtype) if values else free

    def names(self, labels: Sequence[str]) -> tuple[str, ...]:
        del labels
        return tuple(name for name, _ in self.free_parameters)

    def initial(self) -> np.ndarray:
        return np.zeros(self.num_params)

    def start(self, times: np.ndarray, products: np.ndarray, counts: np.ndarray) -> np.ndarray:
        del times, products, counts
        return self.initial()

    def at(self, times: np.ndarray) -> "Custom":
        """With starting values for lengths that have none: a power of two near a quarter of the times' range.

        Parameters
        ----------
        times : (n,) array

        Returns
        -------
        Custom

        Examples
        --------
        >>> Custom(lambda params, times: None, (("length", Length()),)).at(np.array([0.0, 9.0])).parameters
        (('length', Length(start=2.0)),)
        """
        length = Length(2.0 ** float(np.rint(np.log2(Length().start_at(times)))))
        bound = (
            (name, length if isinstance(own, Length) and own.start is None else own)
            for name, own in self.parameters
        )
        return replace(self, parameters=tuple(bound))


def _scale_of(support: Support) -> Scale:
    if isinstance(support, Positive):
        return "log"
    if isinstance(support, Correlation):
        return "atanh"
    return "logit" if isinstance(support, Unit) else "identity"


def _centre(support: Support) -> float:
    """Free value of the start."""
    return support.free(support.start_at(np.zeros(1)))


def _rising(times: Float[AnyArray, " t"], present: Bool[AnyArray, " t"], dtype: Any) -> Float[Array, " t"]:
    """Times with those of rows that pad after all others, so that a function sees different times only."""
    here = jnp.asarray(present)
    own = jnp.where(here, jnp.asarray(times, dtype), 0)
    last = jnp.max(jnp.where(here, own, jnp.min(own)))
    return jnp.where(here, own, last + jnp.cumsum(~here))


_CORRELATIONS = Program(lambda free, times, *, family: (family.correlation(free, times),))


def check_custom(family: Custom, times: np.ndarray) -> None:
    """Refuse a function that gives no correlation matrix at its starting values.

    Parameters
    ----------
    family : Custom
    times : (t,) array
        Of one group, different from each other and rising.

    Raises
    ------
    DesignError
        If what the function gives is not a correlation matrix (or a Cholesky factor of one), or it cannot
        be traced.

    Examples
    --------
    >>> ones = Custom(lambda params, times: jnp.ones((2, 2)), (), label="ones")
    >>> try:
    ...     check_custom(ones, np.arange(2.0))
    ... except DesignError as error:
    ...     print(error)
    the residual structure 'ones' at its starting values {} gives a matrix that is not positive definite
    """
    t, what = len(times), f"the residual structure {family.label!r} at its starting values"
    with double_precision():
        starts = np.asarray(family.natural(jnp.asarray(family.initial())))
        values = {name: round(float(v), 6) for name, v in zip(family.names(()), starts, strict=True)}
        try:
            (C,) = to_host(
                _CORRELATIONS(family.initial(), np.asarray(times, dtype=np.float64), family=family)
            )
        except KeyError as error:
            raise DesignError(
                f"the residual structure {family.label!r} uses the parameter {error.args[0]!r}; its "
                f"parameters are {', '.join(map(repr, values)) or 'none'}"
            ) from None
        except jax.errors.JAXTypeError as error:
            raise DesignError(
                f"the residual structure {family.label!r} must be written in jax.numpy, without numpy and "
                "without branches on values, so that it can be differentiated"
            ) from error
    problem = None
    if C.shape != (t, t):
        problem = f"has the shape {C.shape} for {t} times, not ({t}, {t})"
    elif not np.isfinite(C).all():
        problem = "has elements that are not finite"
    elif np.abs(C - C.T).max() > _ROUNDING:
        problem = "is not symmetric"
    elif np.abs(np.diagonal(C) - 1).max() > _ROUNDING:
        worst = np.diagonal(C).flat[np.abs(np.diagonal(C) - 1).argmax()]
        problem = (
            f"has {worst:.6g} on its diagonal, not 1; standard deviations that differ are given by "
            "variance_by= or variance="
        )
    elif np.linalg.eigvalsh(C)[0] <= _ROUNDING:
        problem = "is not positive definite"
    if problem:
        raise DesignError(f"{what} {values} gives a matrix that {problem}")
