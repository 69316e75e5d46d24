"""All parameters of a model in one row of numbers: coefficients, then variance parameters on two scales."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxmixed.estimates import Estimates
from jaxmixed.fitted import Fitted
from jaxmixed.inference import (
    VarianceParameters,
    element_slopes,
    natural_parameters,
    parameter_covariance,
    variance_inference,
    variance_labels,
)
from jaxmixed.many_estimates import ManyEstimates
from jaxmixed.residual_inference import natural_names, natural_values


class Parameters(NamedTuple):
    """The parameters of a model, in the order of all tables.

    Attributes
    ----------
    names : tuple of str
        Coefficients; then ``sd(x | group)`` and ``corr(x, z | group)``; then ``var`` and ``cov``; then a
        kernel's own parameters, ``length(kernel | group)``; then those of correlated residuals.
    kinds : tuple of str
        "fixed", "sd", "corr", "var", "cov", "kernel" or "residual".
    groups : tuple of str
        Grouping, "" of a coefficient.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    groups: tuple[str, ...]

    def places(self, *kinds: str) -> np.ndarray:
        """Positions of the parameters of some kinds."""
        return np.flatnonzero(np.isin(self.kinds, kinds))


def parameters_of(fit: Fitted, residual: bool = False) -> Parameters:
    """Names of all parameters of a fit; with those of correlated residuals, the last ones, if asked for.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    >>> parameters_of(fit).names[:4]
    ('(Intercept)', 'Days', 'sd((Intercept) | Subject)', 'sd(Residual)')
    """
    names, kinds = list(fit.frame.x_names), ["fixed"] * len(fit.frame.x_names)
    groups = [""] * len(names)
    terms = fit.estimates.terms
    index = [(t, i, j) for t, term in enumerate(terms) for i, j in term.covariance.elements()]
    labels = variance_labels(
        (*index, (-1, 0, 0)), [(term.group, term.names, term.covariance.homogeneous) for term in terms]
    )
    for one, other in (("sd", "corr"), ("var", "cov")):
        for group, first, second in zip(*labels.values(), strict=True):
            kind = one if second is None else other
            effects = group if first is None else first if second is None else f"{first}, {second}"
            names.append(f"{kind}({effects})" if first is None else f"{kind}({effects} | {group})")
            kinds.append(kind)
            groups.append(str(group))
    for term in terms:
        own = term.covariance.natural_names
        names += [f"{name}({term.structure} | {term.group})" for name in own]
        kinds += ["kernel"] * len(own)
        groups += [term.group] * len(own)
    structure = fit.estimates.residual
    if residual and structure is not None:
        own = natural_names(structure.covariance, structure.labels)
        names += own
        kinds += ["residual"] * len(own)
        groups += [structure.labels.group or ""] * len(own)
    return Parameters(tuple(names), tuple(kinds), tuple(groups))


@np.errstate(all="ignore")
def variance_values(found: ManyEstimates) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations and correlations (m, P), variances and covariances (m, P); the residual's last."""
    relative = []
    for covariance, standard, frame in zip(
        found.covariances, found.split(found.standard), found.frames, strict=True
    ):
        root = frame @ covariance.factor(standard)
        rows = np.array(covariance.elements())
        G = root @ np.swapaxes(root, 1, 2)
        i, j = rows.T
        relative.append(np.stack([G[:, i, j], G[:, i, i], G[:, j, j]]))
        relative[-1][0, :, i == j] = relative[-1][1, :, i == j]
    whole = np.concatenate([*relative, np.ones((3, len(found), 1))], axis=2)
    diagonal = np.array([i == j for c in found.covariances for i, j in c.elements()] + [True])
    sigma = found.sigma[:, None]
    product = np.sqrt(whole[1] * whole[2])
    corr = np.where(product > 0, np.clip(whole[0] / product, -1.0, 1.0), np.nan)
    return np.where(diagonal, sigma * np.sqrt(whole[0]), corr), sigma**2 * whole[0]


def all_values(found: ManyEstimates) -> np.ndarray:
    """Values of all parameters, (m, P)."""
    own = [
        covariance.natural(standard).value
        for covariance, standard in zip(found.covariances, found.split(found.standard), strict=True)
    ]
    return np.concatenate([found.beta, *variance_values(found), *own], axis=1)


def estimated_values(estimates: Estimates) -> np.ndarray:
    """Estimates of all parameters of one fit, (P,).

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    >>> estimated_values(fit.estimates)[2:4].round(2)
    array([37.12, 30.99])
    """
    parameters = VarianceParameters.of(estimates)
    found = variance_inference(parameters).model(0)
    own = [natural.estimate[0] for natural in natural_parameters(parameters)]
    return np.concatenate([estimates.beta, found.sd_corr, found.values, *own])


def residual_values(found: ManyEstimates) -> tuple[np.ndarray, np.ndarray]:
    """Natural parameters (m, a) of correlated residuals of many models, and their standard errors (m, a)."""
    if found.residual is None:
        return np.zeros((len(found), 0)), np.zeros((len(found), 0))
    k = found.residual.num_params
    covariances = parameter_covariance(found.variance_parameters())
    values, errors = [], []
    for standard, sigma, covariance in zip(found.standard, found.sigma, covariances, strict=True):
        own, slopes = natural_values(found.residual, standard[len(standard) - k :], sigma)
        block = covariance[-k - 1 :, -k - 1 :]
        values.append(own)
        errors.append(np.sqrt(np.maximum(np.einsum("ai,ij,aj->a", slopes, block, slopes), 0.0)))
    return np.array(values), np.array(errors)


@np.errstate(all="ignore")
def relative_slopes(parameters: VarianceParameters) -> np.ndarray:
    """Relative change of variances, covariances and kernels' parameters when the optimiser's parameters move.

    Parameters
    ----------
    parameters : VarianceParameters
        Of B models.

    Returns
    -------
    (B, P, k + 1) array
        Derivatives in (theta, log sigma), theta the standardised parameters, over the value. First the
        parameters of ``VarianceInference.index``, then those of :func:`natural_parameters`. Not finite where
        a value is zero.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    >>> relative_slopes(VarianceParameters.of(fit.estimates))[0].round(4)
    array([[1.6696, 2.    ],
           [0.    , 2.    ]])
    """
    elements, relative, slopes = element_slopes(parameters)
    B, k = parameters.free.shape
    own = [c.natural(x) for c, x in zip(parameters.covariances, parameters.standard, strict=True)]
    J = np.zeros((B, len(elements) + 1 + sum(natural.value.shape[-1] for natural in own), k + 1))
    J[:, : len(elements), :k] = slopes[:, 0] / relative[:, 0, :, None]
    J[:, : len(elements) + 1, k] = 2.0
    start, row = 0, len(elements) + 1
    for covariance, natural in zip(parameters.covariances, own, strict=True):
        shown, columns = natural.value.shape[-1], slice(start, start + covariance.num_params)
        J[:, row : row + shown, columns] = (natural.slope / natural.value)[..., None] * natural.jacobian
        row, start = row + shown, columns.stop
    return J


def scaled_errors(parameters: VarianceParameters) -> np.ndarray:
    """Standard errors (m, P) of log standard deviations, atanh correlations, (co)variances and all others."""
    inference = variance_inference(parameters)
    variances = [np.einsum("bii->bi", inference.log_covariance), np.einsum("bii->bi", inference.covariance)]
    own = [natural.std_error for natural in natural_parameters(parameters)]
    return np.concatenate([*(np.sqrt(values) for values in variances), *own], axis=1)


def variance_errors(found: ManyEstimates) -> np.ndarray:
    """`scaled_errors` of many models."""
    return scaled_errors(found.variance_parameters())
