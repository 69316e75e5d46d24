r"""Functions of the parameters, with standard errors by the delta method.

A function h of all parameters phi = (beta, theta, log sigma) has the asymptotic variance

.. math:: \nabla h' \, \operatorname{Cov}(\hat\phi) \, \nabla h,

with its derivatives by automatic differentiation. The covariance has two blocks: that of the coefficients,
and that of the variance parameters from the exact Hessian (:mod:`jaxmixed.inference`). The estimates of the
two are asymptotically independent (the expected information between them is zero; Searle, Casella & McCulloch
1992, Variance Components, section 6.3), so nothing stands between the blocks. Variance parameters on the
boundary are held there, as in the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxmixed._distributions import t_p_values, t_quantiles
from jaxmixed.errors import DataError, DesignError, listed, printable
from jaxmixed.estimates import Estimates, TermEstimate
from jaxmixed.fixed_inference import FixedInference
from jaxmixed.inference import VarianceParameters, parameter_covariance
from jaxmixed.interval_scales import SCALES, IntervalScale
from jaxmixed.kernels import KernelCovariance
from jaxmixed.precision import double_precision
from jaxmixed.programs import ONCE, compiled_at
from jaxmixed.residual_inference import natural_at, natural_names

ROUNDING = 1e-13
"""A standard error below this share of the value is rounding."""

NonlinearScale = Literal["identity", "log", "logit", "atanh"]


class Parameters:
    """The parameters of a fit, as functions of them get them: JAX numbers and arrays, to be differentiated.

    ``p["Days"]`` is a coefficient; `beta`, `sigma` and `theta` are all of their kind; `cov`, `var`, `sd`,
    `corr` and `kernel` tell about the random effects of a grouping, `residual` about correlated residuals.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        terms: tuple[TermEstimate, ...],
        beta: Any,
        standard: list[Any],
        sigma: Any,
        residual: dict[str, Any] | None = None,
    ) -> None:
        self._names = names
        self._terms = terms
        self._standard = standard
        self.beta = beta
        self.sigma = sigma
        self._residual = residual or {}

    def __repr__(self) -> str:
        groups = ", ".join(repr(printable(label)) for label in self._labels) or "none"
        return f"<Parameters: {len(self._names)} coefficients; groupings {groups}>"

    def __getitem__(self, name: str) -> Any:
        """Coefficient of that name."""
        if name not in self._names:
            raise DataError(f"there is no coefficient {name!r}; the coefficients are {listed(self._names)}")
        value = self._names.index(name)
        return self.beta[value]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def _labels(self) -> list[str]:
        return list(dict.fromkeys(term.group for term in self._terms))

    @cached_property
    def theta(self) -> Any:
        """Parameters (k,) of the relative covariance factors, as those of the fit."""
        pieces = [
            term.covariance.transformed(own, jnp.asarray(term.frame, own.dtype))
            for term, own in zip(self._terms, self._standard, strict=True)
        ]
        return jnp.concatenate(pieces) if pieces else jnp.zeros(0)

    def _of(self, group: str) -> list[int]:
        found = [i for i, term in enumerate(self._terms) if term.group == group]
        if not found:
            raise DataError(f"there is no grouping {group!r}; the groupings are {listed(self._labels)}")
        return found

    def _root(self, group: str) -> Any:
        """Rows of a factor of the covariance matrix of a grouping's effects, of all its terms."""
        factors = []
        for i in self._of(group):
            own = self._standard[i]
            frame = jnp.asarray(self._terms[i].frame, own.dtype)
            factors.append(self.sigma * frame @ self._terms[i].covariance.factor(own))
        return jax.scipy.linalg.block_diag(*factors)

    def effects(self, group: str) -> tuple[str, ...]:
        """Names of the random effects of a grouping, in the order of its matrices."""
        return tuple(name for i in self._of(group) for name in self._terms[i].names)

    def _position(self, group: str, effect: str | int) -> int:
        names = self.effects(group)
        if isinstance(effect, int) and -len(names) <= effect < len(names):
            return effect % len(names)
        if names.count(str(effect)) != 1:
            several = " (several of that name: give its position)" if str(effect) in names else ""
            raise DataError(
                f"the random effects of {group!r} have no single {effect!r}{several}; they are"
                f" {listed(names)}"
            )
        return names.index(str(effect))

    def cov(self, group: str, effect: str | int | None = None, effect2: str | int | None = None) -> Any:
        """Covariance matrix (q, q) of a grouping's effects, or the covariance of two of them."""
        root = self._root(group)
        if effect is None:
            return root @ root.T
        i = self._position(group, effect)
        j = i if effect2 is None else self._position(group, effect2)
        return root[i] @ root[j]

    def var(self, group: str, effect: str | int = "(Intercept)") -> Any:
        """Variance of an effect, by default of the intercept."""
        return self.cov(group, effect)

    def sd(self, group: str, effect: str | int | None = None) -> Any:
        """Standard deviations (q,) of a grouping's effects, or that of one."""
        root = self._root(group)
        variances = jnp.sum(root * root, axis=1)
        # At a variance of zero the root has no derivative; the parameter is held there, so none is needed.
        positive = variances > 0
        sd = jnp.where(positive, jnp.sqrt(jnp.where(positive, variances, 1.0)), 0.0)
        return sd if effect is None else sd[self._position(group, effect)]

    def corr(self, group: str, effect: str | int | None = None, effect2: str | int | None = None) -> Any:
        """Correlation matrix (q, q) of a grouping's effects, or the correlation of two of them."""
        root = self._root(group)
        sd = self.sd(group)
        unit = root / jnp.where(sd > 0, sd, jnp.nan)[:, None]
        if effect is None or effect2 is None:
            return unit @ unit.T
        return unit[self._position(group, effect)] @ unit[self._position(group, effect2)]

    def kernel(self, group: str) -> dict[str, Any]:
        """Parameters of the kernel of a grouping by name, such as ``p.kernel("subject")["length"]``."""
        for i in self._of(group):
            covariance = self._terms[i].covariance
            if isinstance(covariance, KernelCovariance):
                return covariance.parameter_values(self._standard[i])
        raise DataError(f"no term of {group!r} has a kernel")

    def residual(self, name: str) -> Any:
        """Parameter of the residual structure, named as in ``fit.residual_parameters``: ``"phi1"``."""
        if name not in self._residual:
            known = listed(tuple(self._residual)) if self._residual else "none"
            raise DataError(f"there is no residual parameter {name!r}; the residual parameters are {known}")
        return self._residual[name]


@dataclass(frozen=True, eq=False)
class _Values:
    """Values (m,) of a function of the parameters, their Jacobians, and names of the values."""

    values: np.ndarray
    by_beta: np.ndarray
    by_variances: np.ndarray
    names: list[str]


def nonlinear_combination(
    estimates: Estimates,
    inference: FixedInference,
    fn: Callable[[Parameters], Any],
    scale: NonlinearScale = "identity",
    level: float = 0.95,
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Table of functions of the parameters; see `Testing.nlcom`, which calls this.

    Parameters
    ----------
    estimates : Estimates
    inference : FixedInference
        Covariance of the coefficients.
    fn, scale, level, names
        As of the method.

    Returns
    -------
    pandas.DataFrame
    """
    if scale not in SCALES:
        raise DataError(f"scale is {scale!r}; choose one of {', '.join(map(repr, SCALES))}")
    if not callable(fn):
        raise DataError(
            f"nlcom() takes a function of the parameters, such as lambda p: p['x1'] / p['x2'], not {fn!r};"
            " for linear combinations written as text there is lincom()"
        )
    t_quantiles(level, np.array([np.inf]))  # refuses what is no level, before any work
    found = _differentiated(estimates, inference, fn)
    labels = found.names if names is None else [str(name) for name in names]
    if len(labels) != len(found.values):
        raise DataError(f"names= has {len(labels)} names for {len(found.values)} values of the function")
    variance = _variance(inference.cov, found.by_beta)
    covariance = parameter_covariance(VarianceParameters.of(estimates))[0]
    variance = variance + _variance(covariance, found.by_variances)
    df = np.full(len(found.values), np.inf)
    # A function of coefficients alone is, to first order, a linear one.
    linear = ~found.by_variances.any(axis=1) & np.isfinite(variance)
    df[linear] = inference.df(found.by_beta[linear])
    return _table(found.values, variance, df, SCALES[scale], level, pd.Index(labels))


def _differentiated(
    estimates: Estimates, inference: FixedInference, fn: Callable[[Parameters], Any]
) -> _Values:
    """Values and Jacobians of a user's function, in float64."""
    kept = inference.kept
    own = estimates.residual
    pieces = [np.where(kept, inference.beta, 0.0), *(term.standard for term in estimates.terms)]
    pieces += [] if own is None else [own.free]
    at = np.concatenate([*pieces, [np.log(estimates.sigma)]])
    ends = np.cumsum([len(piece) for piece in pieces])
    structure: list[Any] = []

    def flat(parameters: jax.Array) -> tuple[jax.Array, jax.Array]:
        beta, *standard = jnp.split(parameters[:-1], ends[:-1])
        residual: dict[str, Any] = {}
        if own is not None:
            at = jnp.append(standard.pop(), parameters[-1])
            names = natural_names(own.covariance, own.labels)
            residual = dict(zip(names, natural_at(at, own.covariance), strict=True))
        given = Parameters(
            inference.names,
            estimates.terms,
            jnp.where(kept, beta, jnp.nan),
            standard,
            jnp.exp(parameters[-1]),
            residual,
        )
        leaves, structure[:] = _leaves(fn(given), fn)
        joined = jnp.concatenate([leaf.ravel() for leaf in leaves])
        return joined, joined

    def jacobian_and_values(parameters: jax.Array) -> tuple[jax.Array, jax.Array]:
        found: tuple[jax.Array, jax.Array] = jax.jacfwd(flat, has_aux=True)(parameters)
        return found

    with double_precision():
        try:
            jacobian, values = compiled_at(jacobian_and_values, (at,), {}, ONCE)(at)
        except jax.errors.JAXTypeError as error:
            raise DataError(
                "the function given to nlcom() cannot be differentiated by JAX: write it in jax.numpy (no"
                f" numpy, float() or if on its values); {str(error).splitlines()[0]}"
            ) from error
        jacobian, values = np.asarray(jacobian), np.asarray(values)
    num_beta = ends[0]
    by_beta = np.where(kept, jacobian[:, :num_beta], 0.0)
    return _Values(values, by_beta, jacobian[:, num_beta:], structure)


def _leaves(result: Any, fn: Callable[..., Any]) -> tuple[list[jax.Array], list[str]]:
    """Arrays of a result, and a name for each of their elements."""
    named = result if isinstance(result, dict) else {_name(fn): result}
    leaves, names = [], []
    for name, value in named.items():
        try:
            array = jnp.asarray(value, dtype=jnp.float64)
        except (TypeError, ValueError):
            raise DataError(
                f"the function given to nlcom() returned a {type(value).__name__} for {name!r}; it must"
                " return a number, an array or a dict of these"
            ) from None
        leaves.append(array)
        places = np.ndindex(array.shape)
        names += [name if not array.ndim else f"{name}[{', '.join(map(str, at))}]" for at in places]
    if not names:
        raise DataError("the function given to nlcom() returned nothing")
    return leaves, names


def _name(fn: Callable[..., Any]) -> str:
    name = fn.__name__ if hasattr(fn, "__name__") else "value"
    return "value" if name == "<lambda>" else str(name)


def _variance(covariance: np.ndarray, J: np.ndarray) -> np.ndarray:
    """Diagonal of J C J'; NaN for what moves with a parameter whose covariance is unknown."""
    unknown = np.isnan(np.diagonal(covariance))
    known = np.where(np.isnan(covariance), 0.0, covariance)
    variance = np.einsum("mi,ij,mj->m", J, known, J)
    return np.where((J[:, unknown] != 0).any(axis=1), np.nan, np.maximum(variance, 0.0))


def _table(
    values: np.ndarray,
    variance: np.ndarray,
    df: np.ndarray,
    scale: IntervalScale,
    level: float,
    index: pd.Index,
) -> pd.DataFrame:
    outside = (values < scale.low) | (values > scale.high)
    if outside.any():
        raise DesignError(
            f"{index[outside][0]!r} is {values[outside][0]:.6g}, outside of the range of the scale"
            f" ({scale.low:g} to {scale.high:g}); choose another scale"
        )
    # What no free parameter moves, such as a correlation held at 1, still has derivatives: rounding.
    std_error = np.sqrt(variance)
    std_error = np.where(std_error > ROUNDING * np.abs(values), std_error, np.nan)
    with np.errstate(all="ignore"):
        half = t_quantiles(level, df) * std_error * scale.slope(values)
        low, high = scale.inverse(scale.forward(values) - half), scale.inverse(scale.forward(values) + half)
        tested = np.where(scale is SCALES["identity"], values / std_error, np.nan)
    columns = {
        "estimate": values,
        "std_error": std_error,
        "df": df,
        "statistic": tested,
        "p_value": t_p_values(tested, df),
        "conf_low": low,
        "conf_high": high,
    }
    return pd.DataFrame(columns, index=index)
