"""What a fit found: plain, immutable records of numpy arrays that everything after the fit reads."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxmixed.covariance import Covariance
from jaxmixed.residual_covariance import ResidualCovariance
from jaxmixed.residual_groups import ResidualLabels


@dataclass(frozen=True, slots=True)
class TermEstimate:
    """Estimates for one random-effects term.

    Attributes
    ----------
    group : str
        Label of the grouping factor.
    names : tuple of str
        Names of the q effects.
    structure : str
        Covariance structure.
    factor : (q, q) array
        Lower-triangular relative factor T.
    cov : (q, q) array
        Covariance ``sigma**2 * T @ T.T`` in the units of the data.
    num_levels : int
        Number of groups.
    frame_index : int
        Position of the term in the model frame.
    covariance : Covariance
        The structure, with its parameterisation.
    theta : (k,) array
        Its parameters, in canonical form.
    standard : (k,) array
        The same in the coordinates of the standardised columns, where the optimiser works and zeros are
        exact.
    frame : (q, q) array
        Effects of the data's columns from those of the standardised ones: ``b = frame @ bs``.
    """

    group: str
    names: tuple[str, ...]
    structure: str
    factor: np.ndarray
    cov: np.ndarray
    num_levels: int
    frame_index: int
    covariance: Covariance
    theta: np.ndarray
    standard: np.ndarray
    frame: np.ndarray


@dataclass(frozen=True, slots=True)
class ResidualEstimate:
    """Estimates for the structure of correlated residuals.

    Attributes
    ----------
    covariance : ResidualCovariance
    free : (k,) array
        Its free parameters.
    labels : ResidualLabels
    held : (k,) bool array
        Those at the end of their range, and those that have no effect there.
    """

    covariance: ResidualCovariance
    free: np.ndarray
    labels: ResidualLabels
    held: np.ndarray


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """What was checked after the fit, and found.

    Attributes
    ----------
    converged : bool
        All checks of the optimum passed.
    status : str
        The optimiser's own account.
    iterations, evaluations : int
        Newton steps, and evaluations of value, gradient and Hessian (repeated starts included).
    gradient_norm : float
        Largest gradient component in units of its own curvature (free parameters only).
    newton_decrement : float
        Decrease of the deviance that a further Newton step would bring.
    hessian_eigenvalues : (k_free,) array
        Of the Hessian scaled to unit diagonal, free parameters only, ascending.
    singular : bool
        An estimated covariance matrix is singular, or a residual parameter at the end of its range.
    singular_terms : tuple of str
        A sentence per singular term, naming the direction, and per residual parameter.
    messages : tuple of str
        Every bad verdict in words; empty when all is well.
    problems : tuple of str
        What kind each of them is: ``"iteration_limit"``, ``"no_descent"``, ``"not_finite"``, ``"saddle"``,
        ``"flat"``, ``"not_stationary"``, ``"boundary"``, ``"vanishing_residual"``, ``"no_residual"`` or
        ``"unbounded"``.
    gradient : (k,) array
        Of the profiled deviance in the standardised parameters, those on the boundary included.
    rank_deficient : tuple of str
        Names of the fixed-effect columns that were dropped.
    condition_number : float
        Of the centred, scaled fixed-effects columns.
    """

    converged: bool
    status: str
    iterations: int
    evaluations: int
    gradient_norm: float
    newton_decrement: float
    hessian_eigenvalues: np.ndarray
    singular: bool
    singular_terms: tuple[str, ...]
    messages: tuple[str, ...]
    rank_deficient: tuple[str, ...]
    condition_number: float
    problems: tuple[str, ...]
    gradient: np.ndarray


@dataclass(frozen=True, slots=True)
class SampleWeights:
    """Of a fit whose rows and groups count other than once.

    Attributes
    ----------
    kind : str
        ``"sampling"``: inverse probabilities of selection, by which a pseudo-likelihood is maximised; or
        ``"frequency"``: numbers of equal rows and groups, of which each stands for several.
    text : str
        Columns of the weights and what they belong to.
    scaling : str or None
        How sampling weights were scaled: ``"size"``, ``"effective"``, ``"gk"``.
    size : float
        Sum of the weights of all rows, those of the groups around them included.
    cluster : str
        Grouping whose levels are the clusters of the robust covariance; empty with frequencies.
    num_clusters : int
    covariance : (k + 1, k + 1) array or None
        Robust covariance of the standardised parameters and log sigma; None for that of the model.
    """

    kind: Literal["sampling", "frequency"]
    text: str
    scaling: str | None
    size: float
    cluster: str = ""
    num_clusters: int = 0
    covariance: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Estimates:
    """The fitted model on natural scales.

    Attributes
    ----------
    method : str
        "ml" or "reml".
    beta : (p,) array
        Fixed effects, NaN where aliased.
    cov_beta : (p, p) array
        Their covariance given the variance parameters, NaN where aliased.
    sigma : float
        Residual standard deviation (of a row of weight 1).
    theta : (k,) array
        Parameters of the relative factors, term by term.
    terms : tuple of TermEstimate
        By falling number of groups, as in lme4.
    deviance, llf : float
        -2 log-likelihood (REML criterion), and the log-likelihood.
    linear_llf : float
        The same criterion without random effects.
    nobs, rank : int
        Rows used; linearly independent fixed-effect columns.
    free : (k,) bool array
        Standardised parameters not held on the boundary.
    determined : (k,) bool array
        Parameters along which the likelihood is not flat.
    hessian : (k, k) array
        Of the profiled deviance in the standardised parameters.
    log_rss_gradient : (k,) array
        Gradient of the logarithm of the penalised residual sum of squares in them.
    weighted : bool
    diagnostics : Diagnostics
    residual : ResidualEstimate or None
        Structure of correlated residuals. Its free parameters are the last ones in `free`, `determined`,
        `hessian` and `log_rss_gradient`, but no part of `theta`.
    sampling : SampleWeights or None
        Weights by which rows and groups count; `cov_beta` is then robust if they are sampling weights.
    """

    method: str
    beta: np.ndarray
    cov_beta: np.ndarray
    sigma: float
    theta: np.ndarray
    terms: tuple[TermEstimate, ...]
    deviance: float
    llf: float
    linear_llf: float
    nobs: int
    rank: int
    free: np.ndarray
    determined: np.ndarray
    hessian: np.ndarray
    log_rss_gradient: np.ndarray
    weighted: bool
    diagnostics: Diagnostics
    residual: ResidualEstimate | None = None
    sampling: SampleWeights | None = None

    @property
    def num_theta(self) -> int:
        """Number of variance parameters without sigma."""
        return len(self.theta)

    @property
    def num_params(self) -> int:
        """Fixed effects, variance parameters and sigma."""
        return self.rank + len(self.free) + 1

    @property
    def all_theta(self) -> np.ndarray:
        """`theta`, then the free residual parameters: what the likelihood is a function of."""
        return self.theta if self.residual is None else np.concatenate([self.theta, self.residual.free])

    @property
    def standard(self) -> np.ndarray:
        """The same in the coordinates of the standardised columns, where the optimiser works."""
        own = [] if self.residual is None else [self.residual.free]
        return np.concatenate([np.zeros(0), *(term.standard for term in self.terms), *own])

    @property
    def df(self) -> float:
        """Degrees of freedom of sigma: n (with sampling weights their sum) under ML, n - p under REML."""
        size = self.nobs if self.sampling is None else self.sampling.size
        return size - (self.rank if self.method == "reml" else 0)
