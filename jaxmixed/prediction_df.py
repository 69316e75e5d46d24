r"""Satterthwaite's degrees of freedom of the variance of a prediction.

The variance of a prediction error is a function V of the variance parameters: the joint covariance of the
errors of the estimates, the variances of what the prediction leaves out, the residual variance. With g its
gradient and C the covariance of the estimated parameters,

.. math:: \nu = 2 V^2 / (g' C g)

matches the first two moments of a multiple of chi-squared (Satterthwaite 1946, Biometrics Bulletin 2,
110-114), which for functions of the fixed effects alone is the method of that name. g is exact, by forward
differentiation of the recursion of the errors (:mod:`jaxmixed.prediction_error`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxmixed.estimates import Estimates
from jaxmixed.inference import VarianceParameters, parameter_covariance
from jaxmixed.prediction_error import ErrorModel, RowErrors
from jaxmixed.prediction_slopes import uncertain_directions


class RowChanges(NamedTuple):
    """How rows to predict move with residual parameters.

    Attributes
    ----------
    rows : callable or None
        Gives the errors of the derivatives of a block of rows; None where their columns do not move.
    variance : (n,) array or float
        Derivative of what their own residual adds to the variance, relative to sigma squared.
    """

    rows: Callable[[slice], RowErrors] | None
    variance: np.ndarray | float


NewEffects = tuple[int, np.ndarray, np.ndarray | float]
"""Effects of levels without data: position of the term, columns (n, q), and how often each row has them."""


def prediction_df(
    errors: ErrorModel,
    estimates: Estimates,
    blocks: Callable[[], Iterator[tuple[slice, RowErrors]]],
    new_effects: Sequence[NewEffects],
    variance: np.ndarray,
    changes: Callable[[np.ndarray], RowChanges | None] = lambda direction: None,
) -> np.ndarray:
    """Degrees of freedom of the variances of predictions.

    Parameters
    ----------
    errors : ErrorModel
    estimates : Estimates
    blocks : callable
        Gives the rows' errors, block by block.
    new_effects : sequence of NewEffects
        What else the predictions vary with, besides errors and residuals.
    variance : (n,) array
        Of the prediction errors, all parts together.
    changes : callable, optional
        How the rows themselves move along a direction (k,) of the standardised parameters.

    Returns
    -------
    (n,) array
        Parameters on the boundary are held there. NaN where the data do not determine a parameter, or the
        variance is missing.
    """
    directions = uncertain_directions(parameter_covariance(VarianceParameters.of(estimates))[0])
    if directions is None:
        return np.full(len(variance), np.nan)
    total = np.zeros(len(variance))
    for *direction, log_sigma in directions:
        slope = np.zeros(len(variance))
        tangent = errors.tangent(np.array(direction))
        change = changes(np.array(direction))
        for block, rows in blocks():
            moved = errors.row_tangent(rows, tangent)
            slope[block] = rows.product(rows, tangent) + 2 * moved.product(rows, errors.parts)
            if change is not None and change.rows is not None:
                slope[block] += 2 * change.rows(block).product(rows, errors.parts)
        slope += 0.0 if change is None else change.variance
        priors = covariance_slopes(estimates, np.array(direction))
        for i, Z, times in new_effects:
            slope += times * np.einsum("ni,ij,nj->n", Z, priors[i], Z)
        total += (estimates.sigma**2 * slope + 2 * variance * log_sigma) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(2 * variance**2 / total)


def covariance_slopes(estimates: Estimates, direction: np.ndarray) -> list[np.ndarray]:
    """Derivative (q, q) of each term's relative covariance along a direction of the standardised parameters.

    Parameters
    ----------
    estimates : Estimates
    direction : (k,) array
    """
    found, start = [], 0
    for term in estimates.terms:
        stop = start + len(term.standard)
        factor = term.frame @ np.asarray(term.covariance.factor(term.standard))
        change = np.tensordot(direction[start:stop], term.frame @ term.covariance.jacobian(term.standard), 1)
        product = change @ factor.T
        found.append(product + product.T)
        start = stop
    return found
