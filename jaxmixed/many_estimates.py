"""What many fits found: arrays with a row for each model, and how they come from the optimiser's answers.

What :mod:`jaxmixed.fitting` and :mod:`jaxmixed.estimates` do for one data set, for all models together. A
model that could not be fitted keeps its row, of NaN, with the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from jaxmixed import diagnosis
from jaxmixed.covariance import Covariance
from jaxmixed.diagnosis import TermLabel, verdicts
from jaxmixed.fitting import Units, fixed_effects, has_no_residual, linear_deviance, spread_columns
from jaxmixed.inference import VarianceParameters
from jaxmixed.likelihood import Method
from jaxmixed.residual_covariance import ResidualCovariance
from jaxmixed.search import GRADIENT_TOLERANCE, Optimum, scaled_gradient
from jaxmixed.statistics import Term

OK = diagnosis.OK
NOT_FITTED = 64
"""Reasons from here on leave a model without estimates; those below come from `jaxmixed.diagnosis`."""

MISSING, CONSTANT, PERFECT, MAGNITUDE, NO_START, REFUSED, INTERRUPTED = range(NOT_FITTED, NOT_FITTED + 7)

REASONS = {
    **diagnosis.REASONS,
    MISSING: "the response has missing or infinite values",
    CONSTANT: "the response is constant",
    PERFECT: "the residual variance is zero, so the likelihood is unbounded",
    MAGNITUDE: "the response is too large or too small for its variance to be representable",
    NO_START: "the likelihood is not finite at any starting value",
    REFUSED: "the rows of this model do not identify it",
    INTERRUPTED: "interrupted before this model was fitted",
}
"""What is wrong with a model, by its code; empty when all is well."""


@dataclass(frozen=True)
class ManyEstimates:
    """Estimates of many models, the model axis first; NaN where a model could not be fitted.

    Attributes
    ----------
    method : str
        "ml" or "reml".
    x_names : tuple of str
        Names of the p fixed-effect columns.
    labels : tuple of TermLabel
        One per random-effects term.
    covariances : tuple of Covariance
        Their structures.
    beta : (m, p) array
        Fixed effects; NaN where aliased.
    cov_beta : (m, p, p) array
        Their covariances given the variance parameters.
    sigma : (m,) array
        Residual standard deviations.
    theta : (m, k) array
        Parameters of the relative factors, in canonical form.
    standard : (m, k) array
        The same in standardised coordinates, where zeros are exact.
    frames : tuple of (q, q) or (m, q, q) arrays
        For each term, effects of the data's columns from those of the standardised ones.
    deviance, linear_deviance : (m,) arrays
        Minus twice the (restricted) log-likelihoods, with and without random effects.
    hessian : (m, k, k) array
        Of the profiled deviance in the standardised parameters.
    log_rss_gradient : (m, k) array
    free, determined : (m, k) bool arrays
        As in :class:`jaxmixed.estimates.Estimates`.
    nobs, rank : (m,) int arrays
    reason : (m,) uint8 array
        Codes of REASONS; 0 is a good fit.
    singular : (m,) bool array
    evaluations : (m,) int array
    residual : ResidualCovariance or None
        Structure of correlated residuals, whose parameters are the last in `standard` and in what belongs to
        it, but no part of `theta`.
    """

    method: str
    x_names: tuple[str, ...]
    labels: tuple[TermLabel, ...]
    covariances: tuple[Covariance, ...]
    beta: np.ndarray
    cov_beta: np.ndarray
    sigma: np.ndarray
    theta: np.ndarray
    standard: np.ndarray
    frames: tuple[np.ndarray, ...]
    deviance: np.ndarray
    linear_deviance: np.ndarray
    hessian: np.ndarray
    log_rss_gradient: np.ndarray
    free: np.ndarray
    determined: np.ndarray
    nobs: np.ndarray
    rank: np.ndarray
    reason: np.ndarray
    singular: np.ndarray
    evaluations: np.ndarray
    residual: ResidualCovariance | None = None

    def __len__(self) -> int:
        return len(self.sigma)

    @property
    def llf(self) -> np.ndarray:
        """(Restricted) log-likelihoods, (m,)."""
        return -self.deviance / 2

    @property
    def converged(self) -> np.ndarray:
        """Whether all checks of the optimum passed, (m,)."""
        return self.reason == OK

    @property
    def fitted(self) -> np.ndarray:
        """Whether there are estimates, (m,)."""
        return self.reason < NOT_FITTED

    @property
    def df(self) -> np.ndarray:
        """Degrees of freedom of sigma, (m,)."""
        return self.nobs - (self.rank if self.method == "reml" else 0)

    @property
    def num_params(self) -> np.ndarray:
        """Fixed effects, variance parameters and sigma, (m,)."""
        return self.rank + self.standard.shape[1] + 1

    def split(self, parameters: np.ndarray) -> list[np.ndarray]:
        """Parameters of each term, in order; not those of the residuals, which follow."""
        ends = np.cumsum([covariance.num_params for covariance in self.covariances])
        return np.split(parameters[:, : ends[-1]], ends[:-1], axis=1) if len(ends) else []

    def variance_parameters(self, rows: slice | np.ndarray = slice(None)) -> VarianceParameters:
        """What inference on the variances of some models asks."""
        return VarianceParameters(
            hessian=self.hessian[rows],
            log_rss_gradient=self.log_rss_gradient[rows],
            free=self.free[rows],
            determined=self.determined[rows],
            df=self.df[rows],
            sigma=self.sigma[rows],
            covariances=self.covariances,
            standard=tuple(own[rows] for own in self.split(self.standard)),
            frames=tuple(frame[rows] if frame.ndim == 3 else frame for frame in self.frames),
        )


def arrays_of(estimates: ManyEstimates) -> dict[str, np.ndarray]:
    """The arrays that have a row for each model, by name."""
    return {name: values for name, values in vars(estimates).items() if isinstance(values, np.ndarray)}


def concatenate(parts: Sequence[ManyEstimates]) -> ManyEstimates:
    """Join the estimates of models of one formula, one after the other."""
    first = parts[0]
    if len(parts) == 1:
        return first
    joined: dict[str, Any] = {
        name: np.concatenate([arrays_of(part)[name] for part in parts]) for name in arrays_of(first)
    }

    def per_model(part: ManyEstimates, term: int) -> np.ndarray:
        frame = part.frames[term]
        return np.broadcast_to(frame, (len(part), *frame.shape[-2:]))

    shared = all(part.frames[t] is first.frames[t] for part in parts for t in range(len(first.frames)))
    joined["frames"] = (
        first.frames
        if shared
        else tuple(np.concatenate([per_model(part, t) for part in parts]) for t in range(len(first.frames)))
    )
    return replace(first, **joined)


def blank(
    models: int,
    labels: tuple[TermLabel, ...],
    x_names: tuple[str, ...],
    covariances: tuple[Covariance, ...],
    method: str,
    reason: int = REFUSED,
) -> ManyEstimates:
    """Estimates of models none of which has been fitted.

    Parameters
    ----------
    models : int
    labels : tuple of TermLabel
    x_names : tuple of str
    covariances : tuple of Covariance
    method : {"reml", "ml"}
    reason : int
        Code of all of them.

    Returns
    -------
    ManyEstimates
    """
    p, k = len(x_names), sum(covariance.num_params for covariance in covariances)

    def missing(*shape: int) -> np.ndarray:
        return np.full((models, *shape), np.nan)

    return ManyEstimates(
        method=method,
        x_names=x_names,
        labels=labels,
        covariances=covariances,
        beta=missing(p),
        cov_beta=missing(p, p),
        sigma=missing(),
        theta=missing(k),
        standard=missing(k),
        frames=tuple(missing(covariance.q, covariance.q) for covariance in covariances),
        deviance=missing(),
        linear_deviance=missing(),
        hessian=missing(k, k),
        log_rss_gradient=missing(k),
        free=np.zeros((models, k), dtype=bool),
        determined=np.zeros((models, k), dtype=bool),
        nobs=np.zeros(models, dtype=np.int64),
        rank=np.zeros(models, dtype=np.int64),
        reason=np.full(models, reason, dtype=np.uint8),
        singular=np.zeros(models, dtype=bool),
        evaluations=np.zeros(models, dtype=np.int64),
    )


def place(into: ManyEstimates, rows: np.ndarray, part: ManyEstimates) -> ManyEstimates:
    """Put the estimates of some models in their places.

    Parameters
    ----------
    into : ManyEstimates
        From :func:`blank`; its arrays are changed.
    rows : (t,) int array
    part : ManyEstimates
        Of t models.

    Returns
    -------
    ManyEstimates
        `into`, or the same with numbers of rows that are not whole.
    """
    whole = arrays_of(into)
    for name, values in arrays_of(part).items():
        if name == "nobs" and values.dtype != whole[name].dtype:
            into = replace(into, nobs=into.nobs.astype(np.float64))
            whole = arrays_of(into)
        whole[name][rows] = values
    for target, frame in zip(into.frames, part.frames, strict=True):
        target[rows] = frame
    return into


class Models(NamedTuple):
    """Models of one structure, side by side: what is needed beside the optimiser's answers.

    Attributes
    ----------
    method : {"reml", "ml"}
    terms : tuple of Term
    labels : tuple of TermLabel
    dependent : tuple of bool
        For each term, whether its random-effects columns are linearly dependent.
    frames : tuple of (q, q) or (m, q, q) arrays
        For each term, effects of the data's columns from those of the standardised ones.
    x_names : tuple of str
        Names of all fixed-effect columns.
    keep : (p,) int array
        Which of them are not aliased.
    units : Units
    whole : (m, p + 1, p + 1) array
        ``[X y]'[X y]``: Schur complements without random effects.
    """

    method: Method
    terms: tuple[Term, ...]
    labels: tuple[TermLabel, ...]
    dependent: tuple[bool, ...]
    frames: tuple[np.ndarray, ...]
    x_names: tuple[str, ...]
    keep: np.ndarray
    units: Units
    whole: np.ndarray

    @property
    def df(self) -> np.ndarray:
        """Degrees of freedom of sigma."""
        return self.units.nobs - (len(self.keep) if self.method == "reml" else 0)

    @property
    def linear_deviance(self) -> np.ndarray:
        """Deviances without random effects, (m,)."""
        return linear_deviance(self.whole, self.units, self.df, self.method)

    def linear_optima(self) -> Optimum:
        """The optima of models without random effects, which have no covariance parameters."""
        m = len(self.whole)
        none, zero = np.zeros((m, 0)), np.zeros(m, dtype=np.int64)
        return Optimum(none, self.linear_deviance, none, np.zeros((m, 0, 0)), self.whole, none, zero, zero)


def estimates_of(models: Models, found: Optimum, evaluations: np.ndarray) -> ManyEstimates:
    """Judge optima and bring them to natural scales.

    Parameters
    ----------
    models : Models
    found : Optimum
        In canonical form.
    evaluations : (m,) int array

    Returns
    -------
    ManyEstimates
    """
    m, size = len(found.x), len(models.x_names)
    judged = verdicts(found, models.terms, models.dependent)
    reason, schur = judged.reason.astype(np.uint8), found.schur.copy()
    reason[_without_residual(found, models.whole)] = PERFECT
    lost = ~np.isfinite(found.value) | ~np.isfinite(schur).all(axis=(1, 2))
    reason[lost & (reason != PERFECT)] = NO_START
    failed = reason >= NOT_FITTED
    schur[failed] = models.whole[failed]  # whatever can be solved
    beta, cov_beta, sigma = fixed_effects(schur, models.units, models.df)
    nobs = np.broadcast_to(models.units.nobs, (m,))
    estimates = ManyEstimates(
        method=models.method,
        x_names=models.x_names,
        labels=models.labels,
        covariances=tuple(term.covariance for term in models.terms),
        beta=spread_columns(beta, models.keep, size),
        cov_beta=spread_columns(cov_beta, models.keep, size),
        sigma=sigma,
        theta=_natural_theta(models, found.x),
        standard=found.x,
        frames=models.frames,
        deviance=found.value,
        linear_deviance=models.linear_deviance,
        hessian=found.hessian,
        log_rss_gradient=found.log_rss_gradient,
        free=judged.free,
        determined=judged.determined,
        nobs=nobs.astype(np.int64) if (nobs == np.rint(nobs)).all() else nobs.copy(),
        rank=np.full(m, len(models.keep)),
        reason=reason,
        singular=judged.singular,
        evaluations=evaluations,
    )
    if failed.any():
        for name, values in arrays_of(estimates).items():
            if name not in ("reason", "nobs", "rank"):
                values[failed] = np.nan if values.dtype.kind == "f" else 0
    return estimates


def _natural_theta(models: Models, standard: np.ndarray) -> np.ndarray:
    """Parameters of the factors of the data's own columns, (m, k)."""
    theta, start = np.empty_like(standard), 0
    for term, frame in zip(models.terms, models.frames, strict=True):
        own = slice(start, start + term.covariance.num_params)
        part = standard[:, own]
        theta[:, own] = term.covariance.transformed(part, frame)
        start = own.stop
    return theta


def _without_residual(found: Optimum, whole: np.ndarray) -> np.ndarray:
    """Mask of the searches that ran towards a residual variance of zero until digits gave out."""
    perfect = np.zeros(len(found.x), dtype=bool)
    finite = np.isfinite(found.schur).all(axis=(1, 2))
    suspects = np.flatnonzero(finite & (scaled_gradient(found.gradient, found.hessian) > GRADIENT_TOLERANCE))
    for model in suspects:  # few
        perfect[model] = has_no_residual(found.schur[model], whole[model])
    return perfect
