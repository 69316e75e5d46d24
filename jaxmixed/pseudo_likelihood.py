r"""Maximum pseudo-likelihood: what sampling weights make of the covariances of the estimates.

The pseudo-likelihood of :mod:`jaxmixed.frequencies` is maximised as a likelihood is. Its curvature is not the
information about the parameters, since a weight of 2 is no second observation. Stata's ``mixed`` takes for
the coefficients

.. math:: V = \frac{M}{M - 1}\, A^{-1} \Big( \sum_{c=1}^M s_c s_c' \Big) A^{-1}

with A the block of the coefficients in the negative second derivatives and :math:`s_c` the contribution of
one of the M groups of the coarsest factor, its own weight included, to the first ones. The same is done here
for the variance parameters, A being the second derivatives with the coefficients profiled out.

References
----------
Rabe-Hesketh & Skrondal (2006), Multilevel modelling of complex survey data, Journal of the Royal Statistical
Society A 169(4), 805-827, section 3.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxmixed.crossproducts import Reduction
from jaxmixed.errors import DesignError, printable
from jaxmixed.estimates import Estimates
from jaxmixed.fitting import spread_columns
from jaxmixed.inference import VarianceParameters, parameter_covariance
from jaxmixed.likelihood import eliminate_chain, middle
from jaxmixed.precision import double_precision, to_host
from jaxmixed.programs import Program
from jaxmixed.recursion import standard_factors
from jaxmixed.robust import WorkingModel, cluster_sums, information
from jaxmixed.statistics import SufficientStatistics, pad

FEWEST_CLUSTERS = 2


def _within_clusters(
    x: Float[Array, " k"],
    stats: SufficientStatistics,
    tops: tuple[Int[Array, " m"], ...],
    within: Float[Array, " M"],
) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    """Penalised residual sum of squares and log|V| of every group of the coarsest level."""
    factors = standard_factors(x, stats)
    chain = eliminate_chain(factors, stats)
    squares, logdet = jnp.asarray(within), jnp.zeros_like(within)
    for T, level, omega, top in zip(factors, chain.levels, chain.omegas, tops, strict=True):
        assert level.cross is not None  # one entry per group: not compressed
        residual = level.cross[:, -1]
        own = jnp.sum(omega * residual[:, None] * residual[None, :], axis=(0, 1))
        squares = squares + jax.ops.segment_sum(own, top, num_segments=len(within))
        each = level.count * middle(T, level.root, level.form)[1]
        logdet = logdet + jax.ops.segment_sum(each, top, num_segments=len(within))
    return squares, logdet


def _slopes(
    x: Float[Array, " k"],
    stats: SufficientStatistics,
    tops: tuple[Int[Array, " m"], ...],
    within: Float[Array, " M"],
) -> tuple[Float[Array, " M"], Float[Array, "M k"], Float[Array, "M k"]]:
    """Residual sums of squares, their derivatives in x, and those of log|V|."""
    squares, _ = _within_clusters(x, stats, tops, within)
    return squares, *jax.jacfwd(_within_clusters)(x, stats, tops, within)


_SLOPES = Program(_slopes)


def variance_scores(state: Reduction, estimates: Estimates, residual: np.ndarray) -> np.ndarray:
    """First derivatives of the log pseudo-likelihood in the variance parameters, cluster by cluster.

    Parameters
    ----------
    state : Reduction
        Of nested factors, one at least.
    estimates : Estimates
    residual : (n,) array
        Response less offset and fixed effects.

    Returns
    -------
    (M, k + 1) array
        In the standardised parameters and log sigma, the coefficients held, by group ``0 .. M-1`` of the
        coarsest factor. They add up to zero where no parameter is on a boundary.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"), method="ml")
    >>> scores = variance_scores(fit.state, fit.estimates, fit.residuals(random=False).to_numpy())
    >>> scores.shape, bool(abs(scores.sum(axis=0)).max() < 1e-4)
    ((18, 2), True)
    """
    stats, design = state.stats, state.design
    top = design.groupings[-1]
    beta = estimates.beta[state.fixed.columns.keep]
    v = np.append(-(stats.basis @ (beta - stats.origin)) / stats.scale, 1.0)
    levels = []
    for level in stats.levels:
        cross = np.asarray(level.cross)
        coarser, own = np.split(cross, [cross.shape[1] - len(v)], axis=1)
        of_residual = np.einsum("qrm,r->qm", own, v)[:, None]
        levels.append(replace(level, cross=np.concatenate([coarser, of_residual], axis=1)))
    copies = _copies(state)
    weighted = copies if design.weights is None else copies * design.weights
    within = np.bincount(top.codes, weighted * (residual / stats.scale) ** 2, top.size)
    tops = [np.arange(top.size) if not level.parents else np.asarray(level.parents[-1]) for level in levels]
    within -= np.bincount(tops[0], np.sum(np.asarray(levels[0].cross)[:, -1] ** 2, axis=0), top.size)
    padded = pad(replace(stats, levels=tuple(levels), total=np.zeros((1, 1))))
    size = len(padded.levels[-1].count)
    tops = [
        np.append(own, np.full(len(level.count) - len(own), size - 1))
        for own, level in zip(tops, padded.levels, strict=True)
    ]
    with double_precision():
        found = _SLOPES(estimates.standard, padded, tuple(tops), np.append(within, np.zeros(size - top.size)))
        squares, of_squares, of_logdet = (values[: top.size] for values in to_host(found))
    precision = (stats.scale / estimates.sigma) ** 2
    rows = np.bincount(top.codes, copies, top.size)
    of_theta = -0.5 * (of_logdet + precision * of_squares)
    return np.column_stack([of_theta, precision * squares - rows])


def _copies(state: Reduction) -> np.ndarray:
    """How often each row counts in all."""
    design = state.design
    if design.frequencies is None:
        return np.ones(len(design.X))
    return design.frequencies.within(design.groupings)[-1]


def sandwich(state: Reduction, estimates: Estimates, residual: np.ndarray) -> Estimates:
    """Estimates with the robust covariances that sampling weights imply.

    Parameters
    ----------
    state : Reduction
        Of nested factors, one at least.
    estimates : Estimates
        With `sampling`.
    residual : (n,) array
        Response less offset and fixed effects.

    Returns
    -------
    Estimates

    Raises
    ------
    DesignError
        If the coarsest factor has one group only.
    """
    top, own = state.design.groupings[-1], estimates.sampling
    assert own is not None
    if top.size < FEWEST_CLUSTERS:
        raise DesignError(
            "sampling weights ask for robust standard errors, whose clusters are the groups of"
            f" {printable(top.label)!r}, and there is only one"
        )
    # The information is that of as many rows as the weights add up to, but no earlier robust covariance.
    of_model = replace(estimates, sampling=replace(own, covariance=None))
    model = WorkingModel(state, estimates, residual, top.codes)
    sums = cluster_sums(model, information(model), "CR1")
    bread = parameter_covariance(VarianceParameters.of(of_model))[0]
    scores = variance_scores(state, estimates, residual)
    unknown = np.isnan(bread)
    half = scores @ np.where(unknown, 0.0, bread)
    covariance = np.where(unknown, np.nan, top.size / (top.size - 1) * (half.T @ half))
    kept = state.fixed.columns.keep
    return replace(
        estimates,
        cov_beta=spread_columns(sums.covariance[None], kept, len(estimates.beta))[0],
        sampling=replace(own, cluster=top.label, num_clusters=top.size, covariance=covariance),
    )
