r"""Standard errors and intervals of variance parameters from the exact Hessian.

The optimiser leaves the Hessian :math:`H_p` of the deviance with sigma profiled out, and the gradient u of
the log residual sum of squares. With s = log sigma, the Hessian of the *unprofiled* deviance at the optimum
is

.. math::

   \begin{pmatrix} H_p + \nu u u' & -2 \nu u \\ -2 \nu u' & 4 \nu \end{pmatrix}, \qquad \nu = n \text{ or } n
   - p,

and twice its inverse is the covariance of (theta, log sigma). Theta stands here for the parameters of the
standardised columns (:mod:`jaxmixed.basis`). Every displayed scale follows by the delta method, exact because
reparameterising at a stationary point adds no term. Intervals are symmetric in log sd and atanh correlation,
as in Stata's ``mixed``. Parameters on the boundary are held there and get no standard error.
"""

from dataclasses import dataclass

import numpy as np

from jaxmixed._distributions import normal_quantile
from jaxmixed.estimates import Estimates

FLAT = 1e-8
"""An eigenvalue of the unit-diagonal Hessian below this is of a direction that the data do not determine."""

CORRELATION_BOUND = 1e-10
"""A correlation this close to +-1 is on the boundary."""


@dataclass(frozen=True, slots=True)
class VarianceInference:
    """Variance parameters with their covariances on three scales; the residual comes last.

    Attributes
    ----------
    index : tuple of (term, i, j)
        Lower-triangle elements, columnwise within a term; (-1, 0, 0) is the residual.
    values : (P,) array
        Variances and covariances.
    covariance : (P, P) array
        Sampling covariance of `values`; NaN on the boundary.
    sd_corr : (P,) array
        The same parameters as standard deviations and correlations.
    sd_corr_covariance : (P, P) array
    log_covariance : (P, P) array
        Sampling covariance of log standard deviations and atanh correlations.
    on_boundary : (P,) bool array
    """

    index: tuple[tuple[int, int, int], ...]
    values: np.ndarray
    covariance: np.ndarray
    sd_corr: np.ndarray
    sd_corr_covariance: np.ndarray
    log_covariance: np.ndarray
    on_boundary: np.ndarray


def parameter_covariance(estimates: Estimates) -> np.ndarray:
    """Covariance of (theta, log sigma) from the exact Hessian; zero for parameters held on the boundary.

    Parameters
    ----------
    estimates : Estimates

    Returns
    -------
    (k + 1, k + 1) array
        NaN for parameters that the Hessian does not determine.
    """
    k, df = estimates.num_theta, estimates.df
    keep = np.append(np.flatnonzero(estimates.free & estimates.determined), k)
    u = estimates.log_rss_gradient
    H = np.empty((k + 1, k + 1))
    H[:k, :k] = estimates.hessian + df * np.outer(u, u)
    H[:k, k] = H[k, :k] = -2 * df * u
    H[k, k] = 4 * df
    covariance = np.zeros((k + 1, k + 1))
    unknown = np.append(estimates.free & ~estimates.determined, False)
    covariance[unknown, unknown] = np.nan
    free = H[np.ix_(keep, keep)]
    scale = np.sqrt(np.maximum(np.diagonal(free), 0.0))
    scale[scale == 0] = 1.0
    eigenvalues, vectors = np.linalg.eigh(free / np.outer(scale, scale))
    flat = eigenvalues < FLAT
    inverse = (vectors[:, ~flat] / eigenvalues[~flat]) @ vectors[:, ~flat].T
    # A flat direction leaves the parameters that it moves without a standard error, and only those.
    undetermined = (np.abs(vectors[:, flat]) > 1e-4).any(axis=1)
    inverse[undetermined, :] = inverse[:, undetermined] = np.nan
    covariance[np.ix_(keep, keep)] = 2 * inverse / np.outer(scale, scale)
    return covariance


def _element_rows(
    estimates: Estimates,
) -> tuple[list[tuple[int, int, int]], np.ndarray, np.ndarray, np.ndarray]:
    """Index, relative covariances, and Jacobians in theta of the elements and of each one's two variances."""
    index: list[tuple[int, int, int]] = []
    values, slopes, diagonals = [], [], []
    start, k = 0, estimates.num_theta
    for number, term in enumerate(estimates.terms):
        jacobian = term.frame @ term.covariance.jacobian(term.standard)
        T = np.tensordot(term.standard, jacobian, axes=1)
        half = jacobian @ T.T
        dG = half + np.swapaxes(half, 1, 2)
        G = T @ T.T
        for i, j in term.covariance.elements():
            slope = np.zeros((3, k))
            slope[:, start : start + len(term.theta)] = dG[:, [i, i, j], [j, i, j]].T
            index.append((number, i, j))
            values.append((G[i, j], G[i, i], G[j, j]))
            slopes.append(slope[0])
            diagonals.append(slope[1:])
        start += len(term.theta)
    shape = (len(index), k)
    return (
        index,
        np.array(values).reshape(-1, 3),
        np.array(slopes).reshape(shape),
        np.array(diagonals).reshape(len(index), 2, k),
    )


def variance_inference(estimates: Estimates) -> VarianceInference:
    """Variance parameters on the scales of the tables, with exact-Hessian covariances.

    Parameters
    ----------
    estimates : Estimates

    Returns
    -------
    VarianceInference
    """
    C = parameter_covariance(estimates)
    index, relative, slopes, diagonal_slopes = _element_rows(estimates)
    P, k, sigma = len(index) + 1, estimates.num_theta, estimates.sigma
    values = np.append(relative[:, 0] * sigma**2, sigma**2)
    J_value, J_log, J_natural = np.zeros((P, k + 1)), np.zeros((P, k + 1)), np.zeros((P, k + 1))
    J_value[:-1, :k] = slopes * sigma**2
    J_value[:, k] = 2 * values
    sd_corr, boundary = np.empty(P), np.zeros(P, dtype=bool)
    sd_corr[-1] = sigma
    J_log[-1, k], J_natural[-1, k] = 1.0, sigma
    for row, (_, i, j) in enumerate(index):
        g, gi, gj = relative[row]
        di, dj = diagonal_slopes[row]
        if i == j:
            sd_corr[row], boundary[row] = sigma * np.sqrt(max(g, 0.0)), g <= 0
            if g > 0:
                J_log[row, :k], J_log[row, k] = di / (2 * g), 1.0
                J_natural[row] = sd_corr[row] * J_log[row]
            continue
        boundary[row] = gi <= 0 or gj <= 0
        sd_corr[row] = np.nan
        if not boundary[row]:
            rho = float(np.clip(g / np.sqrt(gi * gj), -1.0, 1.0))
            sd_corr[row], boundary[row] = rho, abs(rho) >= 1 - CORRELATION_BOUND
            J_natural[row, :k] = slopes[row] / np.sqrt(gi * gj) - rho / 2 * (di / gi + dj / gj)
            if not boundary[row]:
                J_log[row] = J_natural[row] / (1 - rho**2)

    def propagate(J: np.ndarray, undefined: np.ndarray) -> np.ndarray:
        unknown = np.isnan(np.diagonal(C))
        result = J @ np.where(np.isnan(C), 0.0, C) @ J.T
        undefined = undefined | (J[:, unknown] != 0).any(axis=1)
        result[undefined, :] = np.nan
        result[:, undefined] = np.nan
        return result

    # A covariance beside a correlation of +-1 still varies along the boundary; one beside a variance of zero
    # does not.
    zero = np.append([min(gi, gj) <= 0 for _, gi, gj in relative], False).astype(bool)
    return VarianceInference(
        index=(*index, (-1, 0, 0)),
        values=values,
        covariance=propagate(J_value, zero),
        sd_corr=sd_corr,
        sd_corr_covariance=propagate(J_natural, boundary),
        log_covariance=propagate(J_log, boundary),
        on_boundary=boundary,
    )


def variance_table(
    vi: VarianceInference, estimates: Estimates, level: float = 0.95
) -> dict[str, list[object]]:
    """Columns of the table of variance parameters, with Stata's intervals.

    Parameters
    ----------
    vi : VarianceInference
    estimates : Estimates
    level : float
        Confidence level.

    Returns
    -------
    dict of str to list
        Columns ``group, effect, effect2, estimate, std_error, conf_low, conf_high`` (variances and
        covariances) and ``sd_or_corr`` with its ``_std_error, _conf_low, _conf_high``; the residual is the
        last row.
    """
    z = normal_quantile(level)
    columns: dict[str, list[object]] = {
        name: []
        for name in (
            *("group", "effect", "effect2", "estimate", "std_error", "conf_low", "conf_high"),
            *("sd_or_corr", "sd_or_corr_std_error", "sd_or_corr_conf_low", "sd_or_corr_conf_high"),
        )
    }
    errors = np.sqrt(np.diagonal(vi.covariance))
    natural_errors = np.sqrt(np.diagonal(vi.sd_corr_covariance))
    log_errors = np.sqrt(np.diagonal(vi.log_covariance))
    for row, (number, i, j) in enumerate(vi.index):
        value, natural, half = vi.values[row], vi.sd_corr[row], z * log_errors[row]
        if i == j:
            with np.errstate(over="ignore"):  # a variance hardly above zero has an interval without end
                factor = np.exp(half)
                limits = (value / factor**2, value * factor**2)
            natural_limits = (natural / factor, natural * factor)
        else:
            limits = (value - z * errors[row], value + z * errors[row])
            center = np.arctanh(natural) if not vi.on_boundary[row] else np.nan
            natural_limits = (np.tanh(center - half), np.tanh(center + half))
        term = estimates.terms[number] if number >= 0 else None
        common = term is not None and term.structure in ("identity", "exchangeable") and len(term.names) > 1
        label = None if term is None else " ".join(term.names) if common else term.names[j]
        columns["group"].append("Residual" if term is None else term.group)
        columns["effect"].append(label)
        columns["effect2"].append(None if term is None or i == j else label if common else term.names[i])
        entries = (value, errors[row], *limits, natural, natural_errors[row], *natural_limits)
        for name, entry in zip(list(columns)[3:], entries, strict=True):
            columns[name].append(float(entry))
    return columns
