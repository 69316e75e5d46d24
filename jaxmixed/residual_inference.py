r"""Parameters of residual structures on natural scales, with standard errors from the exact Hessian.

The optimiser's parameters are free real numbers; tables show autocorrelations, ranges, correlations and
standard deviations. Their Jacobian in (free parameters, log sigma) is exact, and with the covariance of those
(:func:`jaxmixed.inference.parameter_covariance`) gives standard errors by the delta method. Intervals are
symmetric in atanh of correlations, in logarithms of ranges and standard deviations and in logits of shares,
as in Stata's ``mixed`` and nlme's ``intervals``; other parameters have symmetric ones.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxmixed._distributions import normal_quantile
from jaxmixed.estimates import Estimates, ResidualEstimate
from jaxmixed.inference import VarianceParameters, parameter_covariance, propagated
from jaxmixed.interval_scales import SCALES
from jaxmixed.precision import double_precision, to_host
from jaxmixed.programs import Program
from jaxmixed.residual_covariance import ResidualCovariance
from jaxmixed.residual_families import Scale
from jaxmixed.residual_groups import ResidualDesign, ResidualLabels
from jaxmixed.sizes import grid_size

AT_LIMIT = 1e-10
"""A correlation or share this close to the end of its range is there, and has no interval."""

_PREFIXES = {"atanh": "atanh ", "log": "ln ", "logit": "logit ", "identity": ""}


class ResidualInference(NamedTuple):
    """Natural parameters of a residual structure.

    Attributes
    ----------
    names : tuple of str
        ``phi1``, ``rho``, ``corr[1,2]`` ..., of each stratum; then ``sd[level]``, in the units of the
        response; then ``delta`` of the variance function.
    scales : tuple of str
        Scale on which the interval of each is symmetric.
    values : (a,) array
    covariance : (a, a) array
        Sampling covariance; NaN for parameters that the data do not determine, or that are held at a limit.
    slopes : (a, k + 1) array
        Derivatives in the optimiser's k parameters (those of the terms first) and log sigma.
    """

    names: tuple[str, ...]
    scales: tuple[Scale, ...]
    values: np.ndarray
    covariance: np.ndarray
    slopes: np.ndarray


def has_sds(covariance: ResidualCovariance) -> bool:
    """Whether rows of weight one have several standard deviations; a single one is sigma."""
    return covariance.levels * covariance.strata > 1


def natural_names(covariance: ResidualCovariance, labels: ResidualLabels) -> tuple[str, ...]:
    """Names of the natural parameters, in the order of all tables.

    Parameters
    ----------
    covariance : ResidualCovariance
    labels : ResidualLabels

    Returns
    -------
    tuple of str

    Examples
    --------
    >>> from jaxmixed.residual_families import Unstructured
    >>> labels = ResidualLabels("unstructured", times=("1", "2"), levels=("1", "2"), strata=("F", "M"))
    >>> natural_names(ResidualCovariance(Unstructured(2), levels=2), labels)
    ('corr[1,2]', 'sd[1]', 'sd[2]')
    >>> natural_names(ResidualCovariance(Unstructured(2), strata=2), labels)
    ('corr[1,2][F]', 'corr[1,2][M]', 'sd[F]', 'sd[M]')
    """
    own = covariance.family.names(labels.times)
    strata = labels.strata if covariance.strata > 1 else ("",)
    names = [f"{name}[{stratum}]" if stratum else name for stratum in strata for name in own]
    if has_sds(covariance):
        levels = labels.levels if covariance.levels > 1 else ("",)
        names += [f"sd[{','.join(filter(None, (s, v)))}]" for s in strata for v in levels]
    if covariance.function != "none":
        names += [f"delta[{stratum}]" if stratum else "delta" for stratum in strata]
    return tuple(names)


def natural_scales(covariance: ResidualCovariance) -> tuple[Scale, ...]:
    """Scale on which the interval of each natural parameter is symmetric."""
    sds = covariance.strata * covariance.levels if has_sds(covariance) else 0
    deltas = covariance.strata if covariance.function != "none" else 0
    log: Scale = "log"
    identity: Scale = "identity"
    return covariance.family.scales * covariance.strata + (log,) * sds + (identity,) * deltas


def held_naturals(covariance: ResidualCovariance, held: np.ndarray) -> np.ndarray:
    """Which natural parameters are what they are because a free one is held.

    Parameters
    ----------
    covariance : ResidualCovariance
    held : (k,) bool array
        Free parameters.

    Returns
    -------
    (a,) bool array
        Those that belong to a free parameter which is held: of the family, of a level's or stratum's standard
        deviation, of the variance function.
    """
    family, S, V = covariance.family, covariance.strata, covariance.levels
    k, others = family.num_params, len(family.scales) - family.num_params
    size = (len(held) - S + 1) // S
    block, between = held[: S * size].reshape(S, size), np.append(False, held[S * size :])
    of_family = np.concatenate([block[:, :k], np.zeros((S, others), dtype=bool)], axis=1)
    first = np.zeros((S, 1), dtype=bool)
    sds = np.concatenate([first, block[:, k : k + V - 1]], axis=1) | between[:, None]
    found = [of_family.ravel()]
    found += [sds.ravel()] if has_sds(covariance) else []
    found += [block[:, -1]] if covariance.function != "none" else []
    return np.concatenate(found)


def free_names(covariance: ResidualCovariance, labels: ResidualLabels) -> tuple[str, ...]:
    """Names of the optimiser's parameters, each by the natural parameter that it is closest to.

    Parameters
    ----------
    covariance : ResidualCovariance
    labels : ResidualLabels

    Returns
    -------
    tuple of str
        As long as the free parameters: of each stratum those of the family, then the standard deviations
        relative to the first level's and the exponent; last, those of the strata.

    Examples
    --------
    >>> from jaxmixed.residual_families import Autoregressive
    >>> labels = ResidualLabels("AR(1)", levels=("a", "b"), strata=("F", "M"))
    >>> free_names(ResidualCovariance(Autoregressive(1, 1), levels=2, strata=2), labels)
    ('phi1[F]', 'sd ratio[F,b]', 'phi1[M]', 'sd ratio[M,b]', 'sd ratio[M]')
    """
    own = covariance.family.names(labels.times)[: covariance.family.num_params]
    strata = labels.strata if covariance.strata > 1 else ("",)
    names = []
    for stratum in strata:
        end = f"[{stratum}]" if stratum else ""
        before = f"{stratum}," if stratum else ""
        names += [f"{name}{end}" for name in own]
        names += [f"sd ratio[{before}{level}]" for level in labels.levels[1 : covariance.levels]]
        names += [f"delta{end}"] if covariance.function != "none" else []
    return (*names, *(f"sd ratio[{stratum}]" for stratum in strata[1:]))


def natural_at(at: Float[Array, " k+1"], covariance: ResidualCovariance) -> Float[Array, " a"]:
    """Natural parameters as a function of (free parameters, log sigma); traced."""
    parts = covariance.parts(at[:-1])
    found = [covariance.family.natural(parts.family[s]) for s in range(covariance.strata)]
    if has_sds(covariance):
        found.append(jnp.exp(at[-1] + parts.log_sd).ravel())
    if covariance.function != "none":
        found.append(jnp.asarray(parts.exponent))
    return jnp.concatenate(found)


def _values_and_slopes(
    at: Float[Array, " k+1"], *, covariance: ResidualCovariance
) -> tuple[Float[Array, " a"], Float[Array, "a k+1"]]:
    def both(x: Array) -> tuple[Array, Array]:
        values = natural_at(x, covariance)
        return values, values

    slopes, values = jax.jacfwd(both, has_aux=True)(at)
    return values, slopes


_VALUES_AND_SLOPES = Program(_values_and_slopes)


def natural_values(
    covariance: ResidualCovariance, free: np.ndarray, sigma: float
) -> tuple[np.ndarray, np.ndarray]:
    """Natural parameters and their derivatives.

    Parameters
    ----------
    covariance : ResidualCovariance
    free : (k_r,) array
    sigma : float

    Returns
    -------
    values : (a,) array
    slopes : (a, k_r + 1) array
        In the free parameters and log sigma.

    Examples
    --------
    >>> from jaxmixed.residual_families import Autoregressive
    >>> values, slopes = natural_values(
    ...     ResidualCovariance(Autoregressive(1, 1), levels=2), np.array([0.5, 0.1]), 2.0
    ... )
    >>> values.round(3), slopes.round(3)
    (array([0.462, 2.   , 2.21 ]), array([[0.786, 0.   , 0.   ],
           [0.   , 0.   , 2.   ],
           [0.   , 2.21 , 2.21 ]]))
    """
    at = np.append(np.asarray(free, dtype=np.float64), np.log(sigma))
    with double_precision():
        values, slopes = to_host(_VALUES_AND_SLOPES(at, covariance=covariance))
    return values, slopes


@np.errstate(all="ignore")
def residual_inference(estimates: Estimates) -> ResidualInference:
    """Natural parameters of the residual structure of a fit, with their sampling covariance.

    Parameters
    ----------
    estimates : Estimates

    Returns
    -------
    ResidualInference
        Without parameters where residuals are independent and have one variance.
    """
    own = estimates.residual
    k = len(estimates.free)
    if own is None:
        return ResidualInference((), (), np.zeros(0), np.zeros((0, 0)), np.zeros((0, k + 1)))
    values, of_residual = natural_values(own.covariance, own.free, estimates.sigma)
    slopes = np.zeros((len(values), k + 1))
    slopes[:, k - len(own.free) :] = of_residual
    covariance = parameter_covariance(VarianceParameters.of(estimates))[0]
    # What only parameters at a limit move has no standard error, rather than one of zero.
    moved = (slopes != 0) & np.append(estimates.free, True)
    held = ~moved.any(axis=1) | held_naturals(own.covariance, own.held)
    found = propagated(covariance[None], slopes[None], held[None])[0]
    names = natural_names(own.covariance, own.labels)
    return ResidualInference(names, natural_scales(own.covariance), values, found, slopes)


def _is_inside(scale: Scale, value: float) -> bool:
    """Whether a parameter is not at an end of its range."""
    margin = AT_LIMIT if scale in ("atanh", "logit") else 0.0  # others have units
    return bool(SCALES[scale].low + margin < value < SCALES[scale].high - margin)


@np.errstate(all="ignore")
def residual_intervals(found: ResidualInference, level: float = 0.95) -> dict[str, np.ndarray]:
    """Columns of the table of residual parameters.

    Parameters
    ----------
    found : ResidualInference
    level : float
        Confidence level.

    Returns
    -------
    dict of str to (a,) array
        ``estimate, std_error, conf_low, conf_high``.

    Raises
    ------
    DataError
        If `level` is not between 0 and 1.
    """
    z = normal_quantile(level)
    errors = np.sqrt(np.diagonal(found.covariance))
    low, high = np.full((2, len(found.values)), np.nan)
    for a, (name, value) in enumerate(zip(found.scales, found.values, strict=True)):
        if _is_inside(name, value):
            own = SCALES[name]
            center, half = own.forward(value), z * errors[a] * abs(own.slope(value))
            low[a], high[a] = own.inverse(center - half), own.inverse(center + half)
    return {"estimate": found.values, "std_error": errors, "conf_low": low, "conf_high": high}


def _essential(estimates: Estimates) -> list[int]:
    """Positions of the natural parameters that together with sigma say all."""
    if estimates.residual is None:
        return []
    covariance = estimates.residual.covariance
    family, strata = covariance.family, covariance.strata
    own = len(family.scales)
    found = [s * own + i for s in range(strata) for i in range(family.num_params)]
    rest = range(strata * own + has_sds(covariance), len(natural_scales(covariance)))
    return [*found, *rest]


@np.errstate(all="ignore")
def scaled_slopes(estimates: Estimates) -> tuple[tuple[str, ...], np.ndarray]:
    """Natural parameters on the scales of their intervals: names, and derivatives (a, k + 1).

    Parameters
    ----------
    estimates : Estimates

    Returns
    -------
    names : tuple of str
        ``atanh phi1``, ``ln sd[2]`` ... Left out are the standard deviation that is sigma, and parameters
        of a family that are functions of its others.
    slopes : (a, k + 1) array
        In the optimiser's parameters and log sigma; not numbers where a parameter is at a limit.
    """
    found, names, rows = residual_inference(estimates), [], []
    for a in _essential(estimates):
        scale, value = found.scales[a], found.values[a]
        names.append(_PREFIXES[scale] + found.names[a])
        rows.append(found.slopes[a] * (SCALES[scale].slope(value) if _is_inside(scale, value) else np.nan))
    return tuple(names), np.array(rows).reshape(len(rows), len(estimates.free) + 1)


def _mean_variance(
    free: Float[Array, " k"],
    levels: Int[Array, " m"],
    covariate: Float[Array, " m"],
    stratum: Int[Array, " m"],
    share: Float[Array, " m"],
    *,
    covariance: ResidualCovariance,
) -> tuple[Float[Array, ""], Float[Array, " k"]]:
    def mean(x: Array) -> Array:
        return jnp.sum(share * jnp.exp(2 * covariance.log_sds(x, levels, covariate, stratum)))

    return jax.value_and_grad(mean)(free)


_MEAN_VARIANCE = Program(_mean_variance)


class MeanVariance(NamedTuple):
    """Mean over rows of the residual variances, relative to sigma squared.

    Attributes
    ----------
    value : float
    slopes : (k_r,) array
        In the free residual parameters.
    """

    value: float = 1.0
    slopes: np.ndarray = np.zeros(0)


def mean_variance(own: ResidualEstimate | None, design: ResidualDesign | None) -> MeanVariance:
    """Mean over the rows of their residual variances (of rows of weight 1), relative to sigma squared.

    Parameters
    ----------
    own : ResidualEstimate or None
    design : ResidualDesign or None
        Of the rows.

    Returns
    -------
    MeanVariance
    """
    if own is None or design is None:
        return MeanVariance()
    rows = np.stack([design.levels, design.stratum, design.covariate + 0.0], axis=1)
    cells, counts = np.unique(rows, axis=0, return_counts=True)
    size = grid_size(len(cells))
    padded, share = np.ones((size, 3)), np.zeros(size)
    padded[: len(cells)], share[: len(cells)] = cells, counts / counts.sum()
    padded[len(cells) :, :2] = 0.0
    levels, stratum = padded[:, :2].astype(np.int64).T
    with double_precision():
        value, slopes = to_host(
            _MEAN_VARIANCE(own.free, levels, padded[:, 2], stratum, share, covariance=own.covariance)
        )
    return MeanVariance(float(value), slopes)
