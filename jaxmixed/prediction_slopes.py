r"""How predictions move with the variance parameters, in units of the uncertainty of these.

Estimated fixed effects and predicted random effects are functions of the parameters theta of the relative
factors; their derivatives go through the elimination in forward mode, one pass for each parameter, and are
no larger than the effects themselves. A prediction is linear in the effects, so that its derivative J is the
same combination of theirs, and

.. math:: J \operatorname{Cov}(\hat\theta) J'

is what the estimation of the variance parameters adds to its variance. The variance at the estimated
parameters falls short of that at the true ones by as much again, to the same order, so that an estimate of
the mean squared error adds it twice.

References
----------
Kackar & Harville (1984), Journal of the American Statistical Association 79, 853-862, equation 2.9, for the
expansion; Prasad & Rao (1990), the same journal 85, 163-171, for the bias.
"""

from typing import NamedTuple

import numpy as np

from jaxmixed.effects import by_term
from jaxmixed.estimates import Estimates
from jaxmixed.inference import VarianceParameters, parameter_covariance
from jaxmixed.prediction_error import ErrorModel
from jaxmixed.root import semidefinite_root


class PredictionSlopes(NamedTuple):
    """Derivatives of the effects along f directions of the variance parameters.

    The directions are columns of a root of the parameters' covariance, so that the variance of a combination
    of effects is the sum of squares of its derivatives.

    Attributes
    ----------
    beta : (f, p) array
        Of the fixed effects; zero for dropped (aliased) ones.
    modes : tuple of (f, m, q) arrays
        Of the predicted random effects, term by term.
    directions : (f, k) array
        Of the standardised parameters.
    """

    beta: np.ndarray
    modes: tuple[np.ndarray, ...]
    directions: np.ndarray


def uncertain_directions(covariance: np.ndarray) -> np.ndarray | None:
    """Directions of the parameters whose outer products add up to their covariance.

    Parameters
    ----------
    covariance : (k, k) array
        Zero for parameters that are held, NaN for those that the data do not determine.

    Returns
    -------
    (f, k) array or None
        None where a parameter is not determined.

    Examples
    --------
    >>> uncertain_directions(np.diag([4.0, 0.0, 9.0])).tolist()
    [[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]]
    """
    moving = np.diagonal(covariance) != 0  # NaN, of a parameter that is not determined, moves too
    own = covariance[np.ix_(moving, moving)]
    if not np.isfinite(own).all():
        return None
    directions = np.zeros((len(own), len(covariance)))
    if len(own):
        directions[:, moving] = semidefinite_root(own)[0].T
    return directions


def prediction_slopes(errors: ErrorModel, estimates: Estimates) -> PredictionSlopes:
    """Derivatives of all estimated effects, in units of the uncertainty of the variance parameters.

    Parameters
    ----------
    errors : ErrorModel
        Of the fit.
    estimates : Estimates

    Returns
    -------
    PredictionSlopes
        Parameters on the boundary are held there. NaN where the data do not determine a parameter.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> from jaxmixed.prediction_error import error_model
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    >>> slopes = prediction_slopes(error_model(fit.state, fit.estimates), fit.estimates)
    >>> slopes.beta.shape, slopes.modes[0].shape
    ((1, 2), (1, 18, 1))
    """
    state = errors.reduction
    covariance = parameter_covariance(VarianceParameters.of(estimates))[0, :-1, :-1]
    directions = uncertain_directions(covariance)
    f = 1 if directions is None else len(directions)
    beta = np.zeros((f, len(estimates.beta)))
    sizes = [(f, len(state.positions[term.level]), term.covariance.q) for term in state.stats.terms]
    modes = tuple(np.zeros(size) for size in sizes)
    if directions is None:
        unknown = tuple(values + np.nan for values in modes)
        return PredictionSlopes(beta + np.nan, unknown, np.full((1, len(covariance)), np.nan))
    columns, frames, scale = state.fixed.columns, state.stats.frames, float(state.stats.scale)
    for number, direction in enumerate(directions):
        found = errors.tangent(direction)
        beta[number, columns.keep] = scale * np.linalg.solve(columns.basis, found.beta)
        levels = [
            scale * np.linalg.solve(frame, mode) for frame, mode in zip(frames, found.modes, strict=True)
        ]
        for target, values in zip(modes, by_term(tuple(levels), state, 1), strict=True):
            target[number] = values
    return PredictionSlopes(beta, modes, directions)
