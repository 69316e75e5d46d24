r"""Parts of the variance of an observation, and shares of their sum with standard errors.

A term adds :math:`z' \sigma^2 G z` to the variance of an observation with covariates z, or on average over
rows :math:`\sigma^2 \operatorname{tr}(G M)`, M the mean of the :math:`z z'` (Johnson 2014, Methods in Ecology
and Evolution 5(9), 944-946). Its derivatives in the parameters of every structure are exact, so that any
share of the variance has a standard error by the delta method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxmixed.estimates import Estimates
from jaxmixed.inference import VarianceParameters, parameter_covariance
from jaxmixed.residual_inference import MeanVariance

if TYPE_CHECKING:
    from jaxmixed.frame import GroupDesign


@dataclass(frozen=True, slots=True, eq=False)
class VarianceParts:
    """Parts of a variance with their sampling covariance.

    Attributes
    ----------
    values : (m,) array
    covariance : (m, m) array
        NaN for parts that depend on a parameter which the data do not determine. Parameters on the boundary
        are held.
    """

    values: np.ndarray
    covariance: np.ndarray

    def preceded(self, value: float, variance: float) -> VarianceParts:
        """The same with another part, independent of these, before them."""
        covariance = np.zeros((len(self.values) + 1,) * 2)
        covariance[0, 0], covariance[1:, 1:] = variance, self.covariance
        return VarianceParts(np.append(value, self.values), covariance)

    def share(self, inside: Sequence[int], half_width: float) -> tuple[float, float, float, float]:
        """Some parts over all: estimate, standard error and limits, symmetric on the logit scale.

        Parameters
        ----------
        inside : sequence of int
            Positions of the parts.
        half_width : float
            Half-width of the interval in standard errors.

        Returns
        -------
        estimate, std_error, conf_low, conf_high : float
            NaN but for the estimate where the share is 0 or 1, or no free parameter moves it.
        """
        total, part = float(self.values.sum()), float(self.values[list(inside)].sum())
        gradient = np.full(len(self.values), -part / total**2)
        gradient[list(inside)] += 1 / total
        variance, estimate = float(gradient @ self.covariance @ gradient), part / total
        if not variance > 0 or not 0 < estimate < 1:
            return estimate, math.nan, math.nan, math.nan
        std_error = math.sqrt(variance)
        logit, step = math.log(part / (total - part)), half_width * std_error / (estimate * (1 - estimate))
        return estimate, std_error, _expit(logit - step), _expit(logit + step)


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def mean_moment(group: GroupDesign) -> np.ndarray:
    """Mean (q, q) over the rows of the outer product of a term's covariates.

    With related levels, weighted by the diagonal element of each row's level in their matrix.
    """
    Z = group.Z
    if group.relationship is not None:
        Z = Z * np.sqrt(np.diagonal(group.relationship.matrix))[group.codes, None]
    return np.asarray(Z.T @ Z / len(Z))


def variance_parts(
    estimates: Estimates, moments: Sequence[np.ndarray], residual: MeanVariance
) -> VarianceParts:
    """Parts of the terms, in the order of the estimates, and that of the residual, the last one.

    Parameters
    ----------
    estimates : Estimates
    moments : sequence of (q, q) arrays
        For each term the (mean of the) outer product of an observation's covariates.
    residual : MeanVariance
        Of the residuals.

    Returns
    -------
    VarianceParts

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    >>> variance_parts(fit.estimates, [np.eye(1)], MeanVariance()).values.round(1).tolist()
    [1378.2, 960.5]
    """
    sigma2, k = estimates.sigma**2, len(estimates.free)
    values, jacobian = np.zeros(len(moments) + 1), np.zeros((len(moments) + 1, k + 1))
    start = 0
    for place, (term, moment) in enumerate(zip(estimates.terms, moments, strict=True)):
        size = len(term.standard)
        root = term.frame @ term.covariance.factor(term.standard)
        slopes = term.frame @ term.covariance.jacobian(term.standard)
        values[place] = sigma2 * np.einsum("ij,ia,ja->", moment, root, root)
        jacobian[place, start : start + size] = 2 * sigma2 * np.einsum("ij,kia,ja->k", moment, slopes, root)
        start += size
    values[-1] = sigma2 * residual.value
    jacobian[-1, k - len(residual.slopes) : k] = sigma2 * residual.slopes
    jacobian[:, -1] = 2 * values  # in log sigma
    covariance = parameter_covariance(VarianceParameters.of(estimates))[0]
    unknown = np.isnan(np.diagonal(covariance))
    found = jacobian @ np.where(np.isnan(covariance), 0.0, covariance) @ jacobian.T
    undetermined = (jacobian[:, unknown] != 0).any(axis=1)
    found[undetermined] = found[:, undetermined] = np.nan
    return VarianceParts(values, found)
