"""From reduced data to checked estimates on natural scales."""

import numpy as np

from jaxmixed import optim
from jaxmixed.covariance import Covariance
from jaxmixed.crossproducts import Reduction
from jaxmixed.diagnosis import TermLabel, closed_form, examine, is_determined
from jaxmixed.errors import DesignError
from jaxmixed.estimates import Estimates, TermEstimate
from jaxmixed.likelihood import LOG_2PI, Method
from jaxmixed.search import GRADIENT_TOLERANCE, Optimum, Search, scaled_gradient
from jaxmixed.starts import moment_start
from jaxmixed.statistics import SufficientStatistics

NO_RESIDUAL = 1e-8
"""A search that fails with a residual sum of squares below this share of the total was after one of zero."""

_ZERO_RESIDUAL = (
    "The residual variance is zero: {}, so the likelihood is unbounded. Drop effects, or check "
    "that the response is recorded at the level of the rows."
)


def _check_within(stats: SufficientStatistics, ungrouped: np.ndarray, method: Method) -> None:
    """Refuse data without variation left inside the finest groups."""
    X, Xy = stats.total[:-1, :-1], stats.total[:-1, -1]
    coefficients, _, rank, _ = np.linalg.lstsq(X, Xy, rcond=1e-12)
    if stats.total[-1, -1] - Xy @ coefficients > 1e-24 * ungrouped[-1, -1]:
        return
    saturated = int(stats.nobs) - np.count_nonzero(np.diagonal(stats.levels[0].root) > 0) - rank <= 0
    if saturated and method == "reml":
        return  # no row is left to estimate sigma within groups, but the restricted likelihood is bounded
    reason = (
        "the fixed effects and the finest groups together reproduce every row"
        if saturated
        else "within the finest groups the response does not vary beyond what the fixed effects explain"
    )
    raise DesignError(_ZERO_RESIDUAL.format(reason))


def _check_residual(found: Optimum, ungrouped: np.ndarray) -> None:
    """Refuse crossed factors that together reproduce the response: the search ran until digits gave out."""
    schur = found.schur
    if not np.isfinite(schur).all() or scaled_gradient(found.gradient, found.hessian) <= GRADIENT_TOLERANCE:
        return
    rss = schur[-1, -1] - schur[-1, :-1] @ np.linalg.lstsq(schur[:-1, :-1], schur[:-1, -1])[0]
    if not rss > NO_RESIDUAL * ungrouped[-1, -1]:
        reason = f"the fixed effects and the groups reproduce every row, but for {NO_RESIDUAL:g} of the total"
        raise DesignError(_ZERO_RESIDUAL.format(reason))


def _ungrouped(stats: SufficientStatistics) -> np.ndarray:
    """``[X y]'[X y]``: the Schur complement without random effects."""
    schur = np.array(stats.total)
    r = len(schur)
    if stats.levels:
        cross = stats.levels[0].cross
        assert cross is not None  # statistics of every group, not yet compressed
        rows = np.asarray(cross)[:, -r:].transpose(1, 0, 2).reshape(r, -1)
        schur += rows @ rows.T
    return schur


def _fixed_effects(schur: np.ndarray, reduction: Reduction, df: int) -> tuple[np.ndarray, np.ndarray, float]:
    """GLS estimates and their covariance in the data's units, and sigma, from the Schur complement."""
    fixed, p = reduction.fixed, len(schur) - 1
    inverse = np.linalg.inv(schur[:p, :p])
    standardised = inverse @ schur[:p, p]
    rss = float(schur[p, p] - schur[:p, p] @ standardised)
    sigma = fixed.scale * float(np.sqrt(rss / df))
    back = np.linalg.inv(fixed.columns.basis)
    half = sigma * back
    covariance = half @ inverse @ half.T
    return fixed.origin + fixed.scale * (back @ standardised), (covariance + covariance.T) / 2, sigma


def _linear_deviance(schur: np.ndarray, reduction: Reduction, df: int, method: Method) -> float:
    """Deviance without random effects: :func:`jaxmixed.likelihood.profile` at theta = 0, on the host."""
    p = len(schur) - 1
    rss = schur[p, p] - schur[:p, p] @ np.linalg.solve(schur[:p, :p], schur[:p, p])
    value = -float(reduction.stats.sum_log_weights)
    value += df * (1 + LOG_2PI + np.log(rss / df) + 2 * np.log(reduction.fixed.scale))
    if method == "reml":
        value += reduction.fixed.columns.log_det + np.linalg.slogdet(schur[:p, :p])[1]
    return float(value)


def _term_estimate(
    label: TermLabel, covariance: Covariance, standard: np.ndarray, basis: np.ndarray, sigma: float
) -> TermEstimate:
    """Estimates of a term in the data's units from its parameters in standardised coordinates."""
    frame = np.linalg.inv(basis)
    root = frame @ np.tensordot(standard, covariance.jacobian(standard), axes=1)
    theta = covariance.from_factor(root)
    scaled = sigma * root
    return TermEstimate(
        group=label.group,
        names=label.names,
        structure=covariance.name,
        factor=np.tensordot(theta, covariance.jacobian(theta), axes=1),
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


def _search(
    reduction: Reduction, ungrouped: np.ndarray, method: Method, max_evaluations: int
) -> tuple[Optimum, int]:
    """Optimum in standardised coordinates, and the evaluations it took."""
    _check_within(reduction.stats, ungrouped, method)
    search = Search(reduction.compact, method, max_evaluations)
    found = search.optimum(moment_start(reduction.compact))
    _check_residual(found, ungrouped)
    if not np.isfinite(found.value):
        raise DesignError(
            "The likelihood is not finite at any starting value (moments, and 0.2 and 4 times their "
            "factors). Rescale the variables or simplify the random part."
        )
    return found, search.evaluations


def fit(
    reduction: Reduction,
    labels: tuple[TermLabel, ...],
    x_names: tuple[str, ...],
    *,
    method: Method = "reml",
    weighted: bool = False,
    max_evaluations: int = optim.MAX_ITERATIONS,
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

    Returns
    -------
    Estimates

    Raises
    ------
    DesignError
        If no residual variance is left, or the likelihood is finite at none of the starts.
    """
    stats, fixed = reduction.stats, reduction.fixed
    keep, condition = fixed.columns.keep, fixed.columns.condition
    n, p, k = int(stats.nobs), len(keep), stats.num_params
    df = n - (p if method == "reml" else 0)
    ungrouped = _ungrouped(stats)
    linear_deviance = _linear_deviance(ungrouped, reduction, df, method)
    found, evaluations = _without_parameters(linear_deviance, ungrouped), 0
    if k:
        found, evaluations = _search(reduction, ungrouped, method, max_evaluations)
    beta, cov_beta, sigma = _fixed_effects(found.schur, reduction, df)
    terms = tuple(
        _term_estimate(label, term.covariance, part, columns.basis, sigma)
        for label, term, part, columns in zip(
            labels, stats.terms, stats.split(found.x), reduction.columns, strict=True
        )
    )
    dropped = tuple(name for j, name in enumerate(x_names) if j not in set(keep.tolist()))
    diagnostics = closed_form(dropped, condition)
    if k:
        diagnostics = examine(
            found,
            labels,
            terms,
            reduction.columns,
            evaluations=evaluations,
            dropped=dropped,
            condition=condition,
        )
    return Estimates(
        method=method,
        beta=_spread(beta, keep, len(x_names)),
        cov_beta=_spread(cov_beta, keep, len(x_names)),
        sigma=sigma,
        theta=np.concatenate([np.zeros(0), *(term.theta for term in terms)]),
        terms=terms,
        deviance=float(found.value),
        llf=-float(found.value) / 2,
        linear_llf=-linear_deviance / 2,
        nobs=n,
        rank=p,
        free=np.concatenate(
            [np.zeros(0, dtype=bool), *(~term.covariance.on_boundary(term.standard) for term in terms)]
        ),
        determined=is_determined(found),
        hessian=found.hessian,
        log_rss_gradient=found.log_rss_gradient,
        weighted=weighted,
        diagnostics=diagnostics,
    )


def _spread(values: np.ndarray, keep: np.ndarray, size: int) -> np.ndarray:
    """Values of the kept columns among all columns, NaN for aliased ones."""
    full = np.full((size,) * values.ndim, np.nan)
    full[np.ix_(*[keep] * values.ndim)] = values
    return full
