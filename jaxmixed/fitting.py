"""From reduced data to checked estimates on natural scales."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from jaxmixed import optim
from jaxmixed.covariance import STRUCTURES, Covariance
from jaxmixed.crossproducts import Reduction
from jaxmixed.diagnosis import TermLabel, closed_form, examine
from jaxmixed.errors import DesignError
from jaxmixed.estimates import Diagnostics, Estimates, ResidualEstimate, SampleWeights, TermEstimate
from jaxmixed.likelihood import LOG_2PI, Method
from jaxmixed.patterns import compress
from jaxmixed.residual_groups import ResidualLabels
from jaxmixed.residual_limits import examine_limits, held_at_limit
from jaxmixed.residual_starts import residual_start
from jaxmixed.search import (
    GRADIENT_TOLERANCE,
    Optimum,
    SingleRunner,
    is_determined,
    scaled_gradient,
    search,
)
from jaxmixed.starts import moment_start
from jaxmixed.statistics import SufficientStatistics

NO_RESIDUAL = 1e-8
"""A search that fails with a residual sum of squares below this share of the total was after one of zero."""

NEARLY_NONE = 1e-6
"""A search that fails with less than this share, where levels are related, was on its way to none."""

_NO_RESIDUAL_LEFT = (
    "the residual variance goes to zero: the related levels explain all that the fixed effects leave (a "
    "heritability of one); the estimates are those of the last step towards it"
)

_ZERO_RESIDUAL = (
    "The residual variance is zero: {}, so the likelihood is unbounded. Drop effects, or check "
    "that the response is recorded at the level of the rows."
)


def check_within(stats: SufficientStatistics, whole: np.ndarray, method: Method) -> None:
    """Refuse data without variation left inside the finest groups.

    Parameters
    ----------
    stats : SufficientStatistics
        Of every group, not compressed.
    whole : (p + 1, p + 1) array
        ``[X y]'[X y]``, from :func:`ungrouped`.
    method : {"reml", "ml"}

    Raises
    ------
    DesignError
    """
    X, Xy = stats.total[:-1, :-1], stats.total[:-1, -1]
    coefficients, _, rank, _ = np.linalg.lstsq(X, Xy, rcond=1e-12)
    if stats.total[-1, -1] - Xy @ coefficients > 1e-24 * whole[-1, -1]:
        return
    finest = np.count_nonzero(np.diagonal(stats.levels[0].root) > 0) if stats.levels else 0
    saturated = int(stats.nobs) - finest - rank <= 0
    few = any(term.level == 0 and term.covariance.name not in STRUCTURES for term in stats.terms)
    if saturated and (method == "reml" or few):
        # No row is left to estimate sigma within groups, but the restricted likelihood is bounded, and so is
        # the likelihood where a covariance function of few parameters has all rows to fit.
        return
    if not stats.levels:
        raise DesignError(_ZERO_RESIDUAL.format("the fixed effects reproduce every row"))
    reason = (
        "the fixed effects and the finest groups together reproduce every row"
        if saturated
        else "within the finest groups the response does not vary beyond what the fixed effects explain"
    )
    raise DesignError(_ZERO_RESIDUAL.format(reason))


def has_no_residual(schur: np.ndarray, whole: np.ndarray, share: float = NO_RESIDUAL) -> bool:
    """Whether the residual sum of squares of an optimum is rounding beside that of the fixed effects alone.

    Parameters
    ----------
    schur, whole : (p + 1, p + 1) arrays
        Schur complements at the optimum, and without random effects.
    share : float
        Of the sum of squares without random effects, below which there is none.

    Returns
    -------
    bool
    """
    rss = schur[-1, -1] - schur[-1, :-1] @ np.linalg.lstsq(schur[:-1, :-1], schur[:-1, -1])[0]
    return not rss > share * whole[-1, -1]


def _has_related(stats: SufficientStatistics) -> bool:
    return stats.root is not None and any(basis is not None for basis in stats.root.bases)


def _check_residual(found: Optimum, whole: np.ndarray, stats: SufficientStatistics) -> None:
    """Refuse crossed factors that together reproduce the response: the search ran until digits gave out."""
    if _has_related(stats) and stats.root is not None and len(stats.root.gram) >= stats.nobs:
        return  # with as many related levels as rows it is a limit that can be told, not an error
    flat = scaled_gradient(found.gradient, found.hessian) <= GRADIENT_TOLERANCE
    if np.isfinite(found.schur).all() and not flat and has_no_residual(found.schur, whole):
        reason = f"the fixed effects and the groups reproduce every row, but for {NO_RESIDUAL:g} of the total"
        raise DesignError(_ZERO_RESIDUAL.format(reason))


def _near_no_residual(
    diagnostics: Diagnostics, stats: SufficientStatistics, schur: np.ndarray, whole: np.ndarray
) -> Diagnostics:
    """Say it where a search goes on for ever because related levels explain all of the variation."""
    if not _has_related(stats) or not has_no_residual(schur, whole, NEARLY_NONE):
        return diagnostics
    assert stats.root is not None
    if diagnostics.converged and len(stats.root.gram) < stats.nobs:
        return diagnostics  # small, but told by levels with several rows
    messages = (_NO_RESIDUAL_LEFT, *diagnostics.messages)
    problems = ("no_residual", *diagnostics.problems)
    return replace(diagnostics, converged=False, messages=messages, problems=problems)


def ungrouped(stats: SufficientStatistics) -> np.ndarray:
    """``[X y]'[X y]``: the Schur complement without random effects."""
    schur = np.array(stats.total)
    r = len(schur)
    if stats.levels:
        cross = stats.levels[0].cross
        assert cross is not None  # statistics of every group, not yet compressed
        rows = np.asarray(cross)[:, -r:].transpose(1, 0, 2).reshape(r, -1)
        schur += rows @ rows.T
    return schur


class Units(NamedTuple):
    """From the coordinates of the statistics back to the data's; any leading axes, of many models.

    Attributes
    ----------
    basis : (..., p, p) array
        ``X = Xs @ basis``.
    log_det : (...) array
        ``2 log |det basis|``.
    origin : (..., p) array
        Coefficients already removed from the response.
    scale : (...) array
        Its unit.
    nobs, sum_log_weights : (...) array
    """

    basis: np.ndarray
    log_det: np.ndarray
    origin: np.ndarray
    scale: np.ndarray
    nobs: np.ndarray
    sum_log_weights: np.ndarray


def units_of(stats: SufficientStatistics) -> Units:
    """Units of the statistics of one data set."""
    return Units(
        *(np.asarray(stats.basis), np.asarray(stats.log_det_basis), np.asarray(stats.origin)),
        *(np.asarray(stats.scale), np.asarray(stats.nobs), np.asarray(stats.sum_log_weights)),
    )


def _solved(schur: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(X'V^{-1}X)^{-1}``, GLS coefficients and residual sum of squares, in the statistics' coordinates."""
    p = schur.shape[-1] - 1
    inverse = np.linalg.inv(schur[..., :p, :p])
    coefficients = (inverse @ schur[..., :p, p:])[..., 0]
    return inverse, coefficients, schur[..., p, p] - (schur[..., :p, p] * coefficients).sum(axis=-1)


def fixed_effects(schur: np.ndarray, units: Units, df: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """GLS estimates and their covariance in the data's units, and sigma, from the Schur complement.

    Parameters
    ----------
    schur : (..., p + 1, p + 1) array
    units : Units
    df : (...) array
        Degrees of freedom of sigma.

    Returns
    -------
    beta : (..., p) array
    covariance : (..., p, p) array
    sigma : (...) array
    """
    inverse, coefficients, rss = _solved(schur)
    sigma = units.scale * np.sqrt(rss / df)
    back = np.linalg.inv(units.basis)
    half = sigma[..., None, None] * back
    covariance = half @ inverse @ np.swapaxes(half, -1, -2)
    beta = units.origin + units.scale[..., None] * (back @ coefficients[..., None])[..., 0]
    return beta, (covariance + np.swapaxes(covariance, -1, -2)) / 2, sigma


def linear_deviance(schur: np.ndarray, units: Units, df: Any, method: Method) -> np.ndarray:
    """Deviance without random effects: :func:`jaxmixed.likelihood.profile` at theta = 0, on the host.

    Parameters
    ----------
    schur : (..., p + 1, p + 1) array
        ``[X y]'[X y]``, from :func:`ungrouped`.
    units : Units
    df : (...) array
    method : {"reml", "ml"}

    Returns
    -------
    (...) array
    """
    *_, rss = _solved(schur)
    value = df * (1 + LOG_2PI + np.log(rss / df) + 2 * np.log(units.scale)) - units.sum_log_weights
    if method == "reml":
        value = value + units.log_det + np.linalg.slogdet(schur[..., :-1, :-1])[1]
    return value


def _term_estimate(
    label: TermLabel, covariance: Covariance, standard: np.ndarray, basis: np.ndarray, sigma: float
) -> TermEstimate:
    """Estimates of a term in the data's units from its parameters in standardised coordinates."""
    frame = np.linalg.inv(basis)
    theta = covariance.transformed(standard, frame)
    scaled = sigma * (frame @ covariance.factor(standard))
    return TermEstimate(
        group=label.group,
        names=label.names,
        structure=covariance.name,
        factor=covariance.factor(theta),
        cov=scaled @ scaled.T,
        num_levels=label.num_levels,
        frame_index=label.frame_index,
        covariance=covariance,
        theta=theta,
        standard=standard,
        frame=frame,
    )


def _without_parameters(deviance: float, schur: np.ndarray) -> Optimum:
    """The optimum of a linear model, which has no covariance parameters."""
    none, zero = np.zeros(0), np.asarray(0)
    return Optimum(none, np.asarray(deviance), none, np.zeros((0, 0)), schur, none, zero, zero)


def _start(reduction: Reduction) -> np.ndarray:
    """Standardised parameters of moments, those of the residuals last."""
    design = reduction.design.residual
    if design is None or reduction.residual is None:
        return moment_start(reduction.compact)
    stats = replace(reduction.stats, residual=None)
    of_terms = moment_start(compress(stats)) if stats.terms else np.zeros(0)
    return np.concatenate([of_terms, residual_start(design, reduction.residual, bool(stats.terms))])


def _search(
    reduction: Reduction,
    whole: np.ndarray,
    method: Method,
    max_evaluations: int,
    start: np.ndarray | None,
) -> tuple[Optimum, int]:
    """Optimum in standardised coordinates, and the evaluations it took."""
    check_within(reduction.stats, whole, method)
    run = SingleRunner(reduction.compact, method, max_evaluations)
    begin = _start(reduction) if start is None else start
    found = search(run, begin[None]).take(0)
    _check_residual(found, whole, reduction.stats)
    if not np.isfinite(found.value):
        raise DesignError(
            "The likelihood is not finite at any starting value (moments, 0.2 and 4 times their factors, "
            "equal variances). Rescale the variables or simplify the random part"
            + ("." if reduction.design.residual is None else ", or the residual structure (a lower order).")
        )
    return found, run.evaluations


def _residual_estimate(
    found: Optimum, stats: SufficientStatistics, labels: ResidualLabels
) -> ResidualEstimate | None:
    if stats.residual is None:
        return None
    first, covariance = len(found.x) - stats.num_residual, stats.residual.covariance
    held = held_at_limit(covariance, found.x[first:], is_determined(found)[first:])
    return ResidualEstimate(covariance, found.x[first:], labels, held)


def _not_held(terms: tuple[TermEstimate, ...], residual: ResidualEstimate | None, size: int) -> np.ndarray:
    """Mask (k,) of the parameters that are not on a boundary."""
    held = [term.covariance.on_boundary(term.standard) for term in terms]
    joined = np.concatenate([np.zeros(0, dtype=bool), *held, *([] if residual is None else [residual.held])])
    return ~np.append(joined, np.zeros(size - len(joined), dtype=bool))


def fit(
    reduction: Reduction,
    labels: tuple[TermLabel, ...],
    x_names: tuple[str, ...],
    *,
    method: Method = "reml",
    weighted: bool = False,
    max_evaluations: int = optim.MAX_ITERATIONS,
    start: np.ndarray | None = None,
    residual_labels: ResidualLabels | None = None,
    sampling: SampleWeights | None = None,
) -> Estimates:
    """Maximise the (restricted) likelihood of reduced data and examine the result.

    Parameters
    ----------
    reduction : Reduction
        From :func:`jaxmixed.crossproducts.reduce_rows`.
    labels : tuple of TermLabel
        In the order of ``reduction.stats.terms``.
    x_names : tuple of str
        Names of all fixed-effect columns, aliased ones included.
    method : {"reml", "ml"}
    weighted : bool
        Whether precision weights were given.
    max_evaluations : int
        Limit on the evaluations of one run of the optimiser.
    start : (k,) array, optional
        Standardised parameters to start from; by default those of moments.
    residual_labels : ResidualLabels, optional
        Where residuals are correlated, what the parts of their structure are called.
    sampling : SampleWeights, optional
        Where rows and groups count other than once.

    Returns
    -------
    Estimates
        With covariances of the model, not robust ones.

    Raises
    ------
    DesignError
        If no residual variance is left, or the likelihood is finite at none of the starts.
    """
    stats, fixed = reduction.stats, reduction.fixed
    keep, condition = fixed.columns.keep, fixed.columns.condition
    n, p, k = float(stats.nobs), len(keep), stats.num_params
    df = n - (p if method == "reml" else 0)
    units, whole = units_of(stats), ungrouped(stats)
    without = float(linear_deviance(whole, units, df, method))
    found, evaluations = _without_parameters(without, whole), 0
    if k:
        found, evaluations = _search(reduction, whole, method, max_evaluations, start)
    beta, cov_beta, sigma = fixed_effects(found.schur, units, df)
    terms = tuple(
        _term_estimate(label, term.covariance, part, columns.basis, float(sigma))
        for label, term, part, columns in zip(
            labels, stats.terms, stats.split(found.x), reduction.columns, strict=True
        )
    )
    residual = None if residual_labels is None else _residual_estimate(found, stats, residual_labels)
    dropped = tuple(name for j, name in enumerate(x_names) if j not in set(keep.tolist()))
    diagnostics = closed_form(dropped, condition)
    if k:
        checked = (evaluations, dropped, condition)
        diagnostics = examine(found, labels, terms, reduction.columns, *checked, residual=residual)
        diagnostics = _near_no_residual(diagnostics, stats, found.schur, whole)
    if residual is not None and residual.held.any():
        run = SingleRunner(reduction.compact, method, 1)
        diagnostics = examine_limits(diagnostics, run, found.x, residual, float(sigma))
    return Estimates(
        method=method,
        beta=spread_columns(beta[None], keep, len(x_names))[0],
        cov_beta=spread_columns(cov_beta[None], keep, len(x_names))[0],
        sigma=float(sigma),
        theta=np.concatenate([np.zeros(0), *(term.theta for term in terms)]),
        terms=terms,
        deviance=float(found.value),
        llf=-float(found.value) / 2,
        linear_llf=-without / 2,
        nobs=len(reduction.design.X) if sampling is not None and sampling.kind == "sampling" else round(n),
        rank=p,
        free=_not_held(terms, residual, k),
        determined=is_determined(found),
        hessian=found.hessian,
        log_rss_gradient=found.log_rss_gradient,
        weighted=weighted,
        diagnostics=diagnostics,
        residual=residual,
        sampling=sampling,
    )


def spread_columns(values: np.ndarray, keep: np.ndarray, size: int) -> np.ndarray:
    """Values of the kept columns among all columns along every axis but the models', NaN for aliased ones.

    Parameters
    ----------
    values : (m, p) or (m, p, p) array
    keep : (p,) int array
    size : int

    Returns
    -------
    (m, size) or (m, size, size) array
    """
    if len(keep) == size:
        return values
    axes = values.ndim - 1
    full = np.full((len(values), *(size,) * axes), np.nan)
    full[np.ix_(np.arange(len(values)), *[keep] * axes)] = values
    return full
