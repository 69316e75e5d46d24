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

Everything is computed for many models of one structure at once, along a first axis B; one fit is a batch of
one. What a model has held, undetermined or not finite never touches its neighbours.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from jaxmixed._distributions import normal_quantile
from jaxmixed.covariance import Covariance
from jaxmixed.estimates import Estimates

FLAT = 1e-8
"""An eigenvalue of the unit-diagonal Hessian below this is of a direction that the data do not determine."""

CERTAIN = 1e-2 / FLAT
"""A positive definite matrix whose inverse has a smaller trace has its eigenvalues clearly above `FLAT`: the
reciprocal of that trace is a lower bound of them."""

MOVED = 1e-4
"""A component this large of a flat direction of length one: it moves the parameter."""

MOST_NAMED = 4
"""Effects that a label names one by one."""

CORRELATION_BOUND = 1e-10
"""A correlation this close to +-1 is on the boundary."""


@dataclass(frozen=True, slots=True)
class VarianceParameters:
    """Optima of B models of one structure, as far as inference on their variances asks.

    Attributes
    ----------
    hessian : (B, k, k) array
        Of the profiled deviance in the standardised parameters; a model that was not fitted has NaN.
    log_rss_gradient : (B, k) array
        Gradient of the logarithm of the penalised residual sum of squares in them.
    free : (B, k) bool array
        Parameters not held on the boundary.
    determined : (B, k) bool array
        Parameters along which the likelihood is not flat.
    df : (B,) array
        Degrees of freedom of sigma: n under ML, n - p under REML.
    sigma : (B,) array
        Residual standard deviations.
    covariances : tuple of Covariance
        Structure of each term.
    standard : tuple of (B, k_t) arrays
        Standardised parameters of each term.
    frames : tuple of (q, q) or (B, q, q) arrays
        Effects of the data's columns from those of the standardised ones, per term; of all models, or of
        each.
    robust : (B, k + 1, k + 1) array or None
        Covariance of (theta, log sigma) in place of that of the Hessian.
    """

    hessian: np.ndarray
    log_rss_gradient: np.ndarray
    free: np.ndarray
    determined: np.ndarray
    df: np.ndarray
    sigma: np.ndarray
    covariances: tuple[Covariance, ...]
    standard: tuple[np.ndarray, ...]
    frames: tuple[np.ndarray, ...]
    robust: np.ndarray | None = None

    @classmethod
    def of(cls, estimates: Estimates) -> Self:
        """One fit as a batch of one.

        Parameters
        ----------
        estimates : Estimates

        Returns
        -------
        VarianceParameters
        """
        robust = None if estimates.sampling is None else estimates.sampling.covariance
        return cls(
            hessian=estimates.hessian[None],
            log_rss_gradient=estimates.log_rss_gradient[None],
            free=estimates.free[None],
            determined=estimates.determined[None],
            df=np.array([estimates.df]),
            sigma=np.array([estimates.sigma]),
            covariances=tuple(term.covariance for term in estimates.terms),
            standard=tuple(term.standard[None] for term in estimates.terms),
            frames=tuple(term.frame for term in estimates.terms),
            robust=None if robust is None else robust[None],
        )


@dataclass(frozen=True, slots=True)
class VarianceInference:
    """Variance parameters with their covariances on three scales; the residual comes last.

    Attributes
    ----------
    index : tuple of (term, i, j)
        Lower-triangle elements, columnwise within a term; (-1, 0, 0) is the residual.
    values : (B, P) array
        Variances and covariances. Of one model (see `model`), this and the other arrays have no axis B.
    covariance : (B, P, P) array
        Sampling covariance of `values`; NaN on the boundary.
    sd_corr : (B, P) array
        The same parameters as standard deviations and correlations.
    sd_corr_covariance : (B, P, P) array
    log_covariance : (B, P, P) array
        Sampling covariance of log standard deviations and atanh correlations.
    on_boundary : (B, P) bool array
    """

    index: tuple[tuple[int, int, int], ...]
    values: np.ndarray
    covariance: np.ndarray
    sd_corr: np.ndarray
    sd_corr_covariance: np.ndarray
    log_covariance: np.ndarray
    on_boundary: np.ndarray

    def model(self, number: int) -> "VarianceInference":
        """One of the models, without their axis.

        Parameters
        ----------
        number : int
            Position along the axis of models.

        Returns
        -------
        VarianceInference
        """
        return VarianceInference(
            self.index,
            self.values[number],
            self.covariance[number],
            self.sd_corr[number],
            self.sd_corr_covariance[number],
            self.log_covariance[number],
            self.on_boundary[number],
        )


def _eliminated(A: np.ndarray) -> np.ndarray:
    """Inverses of the positive definite among matrices (B, n, n); others get a trace of NaN or infinity."""
    S = np.moveaxis(A, 0, -1).copy()
    for j in range(len(S)):
        # The sweep operator, by the root of the pivot: a negative one makes all numbers of its matrix NaN.
        root = np.sqrt(S[j, j])
        row = S[j] / root
        S -= row[:, None] * row
        row /= root
        row[j] = -1 / (root * root)
        S[j] = S[:, j] = row
    return np.moveaxis(-S, -1, 0)


def _beside_flat(A: np.ndarray) -> np.ndarray:
    """Inverses of symmetric matrices (B, n, n) outside their flat directions; NaN for what these move."""
    eigenvalues, vectors = np.linalg.eigh(A)
    flat = (eigenvalues < FLAT)[:, None]
    inverse = np.where(flat, 0.0, vectors / eigenvalues[:, None]) @ vectors.swapaxes(1, 2)
    # A flat direction leaves the parameters that it moves without a standard error, and only those.
    undetermined = (flat & (np.abs(vectors) > MOVED)).any(axis=2)
    inverse[undetermined[:, :, None] | undetermined[:, None, :]] = np.nan
    return inverse


def unprofiled_hessian(parameters: VarianceParameters) -> np.ndarray:
    """Hessians (B, k + 1, k + 1) of the deviance in the standardised theta and log sigma."""
    u, df = parameters.log_rss_gradient, parameters.df
    B, k = u.shape
    H = np.empty((B, k + 1, k + 1))
    H[:, :k, :k] = parameters.hessian + df[:, None, None] * (u[:, :, None] * u[:, None, :])
    H[:, :k, k] = H[:, k, :k] = -2 * df[:, None] * u
    H[:, k, k] = 4 * df
    return H


@np.errstate(all="ignore")
def parameter_covariance(parameters: VarianceParameters) -> np.ndarray:
    """Covariances of (theta, log sigma) from exact Hessians; zero for parameters held on the boundary.

    Parameters
    ----------
    parameters : VarianceParameters
        Of B models.

    Returns
    -------
    (B, k + 1, k + 1) array
        NaN for parameters that the Hessian does not determine, and throughout for models whose Hessian or
        sigma is not finite.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    >>> parameter_covariance(VarianceParameters.of(fit.estimates)).round(4)
    array([[[ 0.0534, -0.004 ],
            [-0.004 ,  0.0031]]])
    """
    if parameters.robust is not None:
        return parameters.robust
    free = parameters.free
    B, k = free.shape
    H = unprofiled_hessian(parameters)
    scale = np.sqrt(np.maximum(np.einsum("bii->bi", H), 0.0))
    scale[scale == 0] = 1.0
    scales = scale[:, :, None] * scale[:, None, :]
    keep = np.ones((B, k + 1), dtype=bool)
    keep[:, :k] = free & parameters.determined
    kept = keep[:, :, None] & keep[:, None, :]
    # Parameters that are left out have rows of the identity, which touch no other.
    A = np.where(kept, H / scales, np.eye(k + 1))
    finite = np.isfinite(A).all(axis=(1, 2)) & np.isfinite(parameters.sigma)
    inverse = _eliminated(A)
    uncertain = ~(np.einsum("bii->b", inverse) < CERTAIN) & finite
    if uncertain.any():
        inverse[uncertain] = _beside_flat(A[uncertain])
    covariance = np.where(kept, 2 * inverse / scales, 0.0)
    covariance[~finite] = np.nan
    model, unknown = np.nonzero(free & ~parameters.determined)
    covariance[model, unknown, unknown] = np.nan
    return covariance


def element_slopes(
    parameters: VarianceParameters,
) -> tuple[list[tuple[int, int, int]], np.ndarray, np.ndarray]:
    """Index of the E elements; relative covariances (B, 3, E) and their Jacobians in theta (B, 3, E, k).

    The three are each element and its two variances.
    """
    elements = [covariance.elements() for covariance in parameters.covariances]
    index = [(number, i, j) for number, own in enumerate(elements) for i, j in own]
    B, k = parameters.free.shape
    values, slopes = np.empty((B, 3, len(index))), np.zeros((B, 3, len(index), k))
    start = first = 0
    for covariance, standard, frame, own in zip(
        parameters.covariances, parameters.standard, parameters.frames, elements, strict=True
    ):
        q, size = covariance.q, standard.shape[1]
        jacobian = frame[..., None, :, :] @ covariance.jacobian(standard)
        shape = jacobian.shape[:-3]
        T = frame @ covariance.factor(standard)
        half = (jacobian.reshape(*shape, size * q, q) @ T.swapaxes(1, 2)).reshape(B, size, q, q)
        i, j = np.array(own).T
        rows, columns = np.stack([i, i, j]), np.stack([j, i, j])
        at, of = slice(first, first + len(own)), slice(start, start + size)
        values[:, :, at] = (T @ T.swapaxes(1, 2))[:, rows, columns]
        slope = half[:, :, rows, columns] + half[:, :, columns, rows]
        slopes[:, :, at, of] = np.moveaxis(slope, 1, -1)
        start, first = start + size, first + len(own)
    return index, values, slopes


def propagated(C: np.ndarray, J: np.ndarray, undefined: np.ndarray) -> np.ndarray:
    """Covariances ``J C J'``, NaN for what is undefined or depends on a parameter of unknown covariance."""
    unknown = np.isnan(np.einsum("bii->bi", C))
    if unknown.any():
        undefined = undefined | ((J != 0) & unknown[:, None]).any(axis=-1)
        C = np.where(np.isnan(C), 0.0, C)
    result = J @ C @ J.swapaxes(-1, -2)
    result[undefined[..., :, None] | undefined[..., None, :]] = np.nan
    return result


def _scales(
    relative: np.ndarray, slopes: np.ndarray, sigma: np.ndarray, deviation: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values and sd_corr (2, B, E + 1); for these and for logarithms, Jacobians and what is undefined."""
    B, E, k = len(slopes), slopes.shape[2], slopes.shape[3]
    shown, J = np.empty((2, B, E + 1)), np.zeros((3, B, E + 1, k + 1))
    undefined = np.zeros((3, B, E + 1), dtype=bool)
    g, gi, gj = relative.swapaxes(0, 1)
    d, di, dj = slopes.swapaxes(0, 1)
    diagonal, product, sd = deviation[:-1], np.sqrt(gi * gj), sigma * np.sqrt(g)
    rho = np.clip(g / product, -1.0, 1.0)
    # A covariance beside a correlation of +-1 still varies along the boundary; one beside a variance of zero
    # does not.
    undefined[0, :, :-1] = zero = np.minimum(gi, gj) <= 0
    undefined[1:, :, :-1] = zero | (~diagonal & (np.abs(rho) >= 1 - CORRELATION_BOUND))
    shown[0, :, :-1] = g * sigma**2
    shown[1, :, :-1] = np.where(diagonal, sd, np.where(zero, np.nan, rho))
    shown[:, :, -1:] = sigma**2, sigma
    log_sd = d / (2 * g)[..., None]
    turned = d / product[..., None] - rho[..., None] / 2 * (di / gi[..., None] + dj / gj[..., None])
    J[0, :, :-1, :k] = d * (sigma**2)[..., None]
    J[1, :, :-1, :k] = np.where(diagonal[:, None], sd[..., None] * log_sd, turned)
    J[2, :, :-1, :k] = np.where(diagonal[:, None], log_sd, turned / (1 - rho**2)[..., None])
    J[0, :, :, k], J[1, :, :, k], J[2, :, :, k] = 2 * shown[0], np.where(deviation, shown[1], 0.0), deviation
    return shown, J, undefined


@np.errstate(all="ignore")
def variance_inference(parameters: VarianceParameters) -> VarianceInference:
    """Variance parameters on the scales of the tables, with exact-Hessian covariances.

    Parameters
    ----------
    parameters : VarianceParameters
        Of B models; of one fit, ``VarianceParameters.of(estimates)``.

    Returns
    -------
    VarianceInference
        Models along the first axis. A model that was not fitted has NaN, and the others what they have
        alone. Memory grows as ``B * P**2``.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    >>> found = variance_inference(VarianceParameters.of(fit.estimates))
    >>> found.sd_corr.round(2), found.model(0).sd_corr.round(2)
    (array([[37.12, 30.99]]), array([37.12, 30.99]))
    """
    C = parameter_covariance(parameters)
    elements, relative, slopes = element_slopes(parameters)
    index = (*elements, (-1, 0, 0))
    deviation = np.array([i == j for _, i, j in index])  # a standard deviation, not a correlation
    shown, J, undefined = _scales(relative, slopes, parameters.sigma[:, None], deviation)
    covariance, sd_corr_covariance, log_covariance = propagated(C, J, undefined)
    return VarianceInference(
        index=index,
        values=shown[0],
        covariance=covariance,
        sd_corr=shown[1],
        sd_corr_covariance=sd_corr_covariance,
        log_covariance=log_covariance,
        on_boundary=undefined[1],
    )


class LogScale(NamedTuple):
    """Parameters of B models as logarithms of standard deviations and atanh of correlations.

    Attributes
    ----------
    elements : tuple of (term, i, j)
        As `index` in :class:`VarianceInference`.
    slopes : (B, P, k + 1) array
        Their derivatives in (theta, log sigma), theta the standardised parameters.
    defined : (B, P) bool array
        False on the boundary, where such a parameter is infinite; its slopes are not numbers.
    """

    elements: tuple[tuple[int, int, int], ...]
    slopes: np.ndarray
    defined: np.ndarray


@np.errstate(all="ignore")
def log_scale(parameters: VarianceParameters) -> LogScale:
    """How the parameters of the tables, on the scales of their intervals, move with those of the optimiser.

    Parameters
    ----------
    parameters : VarianceParameters
        Of B models.

    Returns
    -------
    LogScale

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    >>> log_scale(VarianceParameters.of(fit.estimates)).slopes[0].round(3)
    array([[0.835, 1.   ],
           [0.   , 1.   ]])
    """
    elements, relative, slopes = element_slopes(parameters)
    index = (*elements, (-1, 0, 0))
    deviation = np.array([i == j for _, i, j in index])
    _, J, undefined = _scales(relative, slopes, parameters.sigma[:, None], deviation)
    return LogScale(index, J[2], ~undefined[2])


class NaturalParameters(NamedTuple):
    """Parameters of B covariances that are no elements of them (lengths, autocorrelations ...).

    Attributes
    ----------
    names : tuple of str
    estimate, std_error, conf_low, conf_high : (B, a) arrays
        NaN where the variance is zero, so that nothing has these parameters.
    scaled_error : (B, a) array
        Standard errors on the scale on which the intervals are symmetric.
    """

    names: tuple[str, ...]
    estimate: np.ndarray
    std_error: np.ndarray
    conf_low: np.ndarray
    conf_high: np.ndarray
    scaled_error: np.ndarray


@np.errstate(all="ignore")
def natural_parameters(parameters: VarianceParameters, level: float = 0.95) -> list[NaturalParameters]:
    """Parameters of each term's structure that its covariance matrix does not show, such as a kernel's.

    Standard errors by the delta method from the exact Hessian; intervals symmetric on the scale of the
    logarithm or of atanh.

    Parameters
    ----------
    parameters : VarianceParameters
        Of B models.
    level : float
        Confidence level.

    Returns
    -------
    list of NaturalParameters
        One per term, mostly without any.
    """
    z = normal_quantile(level)
    any_shown = any(covariance.natural_names for covariance in parameters.covariances)
    whole = parameter_covariance(parameters) if any_shown else np.zeros(0)
    found, start = [], 0
    for covariance, standard in zip(parameters.covariances, parameters.standard, strict=True):
        natural = covariance.natural(standard)
        own = slice(start, start + covariance.num_params)
        start = own.stop
        if not covariance.natural_names:
            found.append(NaturalParameters((), *[natural.value] * 5))
            continue
        undefined = np.isnan(natural.value)
        J = np.where(undefined[:, :, None], 0.0, natural.jacobian)
        variances = np.einsum("bii->bi", propagated(whole[:, own, own], J, undefined))
        error = np.sqrt(variances)
        limits = natural.inverse(natural.scaled - z * error), natural.inverse(natural.scaled + z * error)
        slope = np.abs(natural.slope)
        found.append(
            NaturalParameters(covariance.natural_names, natural.value, slope * error, *limits, error)
        )
    return found


@np.errstate(all="ignore")
def variance_tables(vi: VarianceInference, level: float = 0.95) -> dict[str, np.ndarray]:
    """Numbers of the tables of variance parameters, with Stata's intervals.

    Parameters
    ----------
    vi : VarianceInference
        Of B models, or of one.
    level : float
        Confidence level.

    Returns
    -------
    dict of str to (B, P) array, of one model (P,)
        ``estimate, std_error, conf_low, conf_high`` (variances and covariances) and ``sd_or_corr`` with its
        ``_std_error, _conf_low, _conf_high``. Columns are the parameters of ``vi.index``.

    Raises
    ------
    DataError
        If `level` is not between 0 and 1.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    >>> variance_tables(variance_inference(VarianceParameters.of(fit.estimates)))["std_error"].round(1)
    array([[505.8, 107. ]])
    """
    z = normal_quantile(level)
    deviation = np.array([i == j for _, i, j in vi.index])
    value, natural = vi.values, vi.sd_corr
    error, natural_error, log_error = (
        np.sqrt(np.einsum("...ii->...i", matrix))
        for matrix in (vi.covariance, vi.sd_corr_covariance, vi.log_covariance)
    )
    half = z * log_error
    factor = np.exp(half)  # infinite for a variance hardly above zero, whose interval has no end
    center = np.arctanh(np.where(deviation | vi.on_boundary, np.nan, natural))
    return {
        "estimate": value,
        "std_error": error,
        "conf_low": np.where(deviation, value / factor**2, value - z * error),
        "conf_high": np.where(deviation, value * factor**2, value + z * error),
        "sd_or_corr": natural,
        "sd_or_corr_std_error": natural_error,
        "sd_or_corr_conf_low": np.where(deviation, natural / factor, np.tanh(center - half)),
        "sd_or_corr_conf_high": np.where(deviation, natural * factor, np.tanh(center + half)),
    }


def joined(names: tuple[str, ...], between: str = " ") -> str:
    """Effects with one variance in common, named together; of many, the first and the last."""
    return between.join(names) if len(names) <= MOST_NAMED else f"{names[0]} ... {names[-1]}"


def variance_labels(
    index: tuple[tuple[int, int, int], ...], terms: Iterable[tuple[str, tuple[str, ...], bool]]
) -> dict[str, list[str | None]]:
    """What the rows of a table of variance parameters are called.

    Parameters
    ----------
    index : tuple of (term, i, j)
        Of a VarianceInference.
    terms : iterable of (group, names, homogeneous)
        Label of the grouping factor and names of the effects of each term, and whether these have one
        variance in common.

    Returns
    -------
    dict of str to list
        ``group``, ``effect``, and ``effect2`` (of a covariance, else None). Effects that share one variance
        are named together, and the residual has none.

    Examples
    --------
    >>> variance_labels(((0, 0, 0), (-1, 0, 0)), [("school", ("(Intercept)",), False)])
    {'group': ['school', 'Residual'], 'effect': ['(Intercept)', None], 'effect2': [None, None]}
    """
    known = list(terms)
    columns: dict[str, list[str | None]] = {"group": [], "effect": [], "effect2": []}
    for number, i, j in index:
        group, names, homogeneous = known[number] if number >= 0 else ("Residual", (), False)
        shown = (joined(names),) * len(names) if homogeneous and names else names
        columns["group"].append(group)
        columns["effect"].append(shown[j] if shown else None)
        columns["effect2"].append(None if i == j else shown[i])
    return columns


def variance_table(
    vi: VarianceInference, estimates: Estimates, level: float = 0.95
) -> dict[str, list[object]]:
    """Columns of the table of variance parameters of one model, with Stata's intervals.

    Parameters
    ----------
    vi : VarianceInference
        Of one model.
    estimates : Estimates
    level : float
        Confidence level.

    Returns
    -------
    dict of str to list
        Columns ``group, effect, effect2`` and those of `variance_tables`; the residual is the last row.
    """
    labels = variance_labels(
        vi.index, ((term.group, term.names, term.covariance.homogeneous) for term in estimates.terms)
    )
    columns: dict[str, list[object]] = {name: [*column] for name, column in labels.items()}
    columns.update((name, column.tolist()) for name, column in variance_tables(vi, level).items())
    return columns
