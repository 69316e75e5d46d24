r"""Which variances a comparison of two models sets to zero, and the information about them.

The covariances of a term's random effects are a linear space of matrices; those that are positive
semidefinite are a cone in it. At the smaller model the effects that only the larger one has, N, have variance
zero, and what a small change D of the covariance matrix may be there is restricted by :math:`N'DN` being
positive semidefinite alone (Shapiro 1988, International Statistical Review 56, 49-62, section 4): the cone of
:mod:`jaxmixed.chi_bar_square`. Covariances with the effects of the smaller model, and all else that differs,
are tested in the interior of their range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxmixed.chi_bar_square import ChiBarSquare, chi_bar_square
from jaxmixed.covariance import STRUCTURES, Covariance, lower_triangle
from jaxmixed.denominators import expected_information
from jaxmixed.errors import DesignError, printable
from jaxmixed.estimates import ResidualEstimate
from jaxmixed.fitted import Fitted
from jaxmixed.nesting import Containment, Nesting
from jaxmixed.residual_variation import Lines, of_any_covariance, unheld
from jaxmixed.toeplitz import ToeplitzCovariance
from jaxmixed.variation import Direction, metric, vary

SPANNED = 1e-7
"""A direction of the standardised effects whose share in the smaller model is below this is new."""


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Directions of one term's covariance, in its standardised columns.

    Attributes
    ----------
    tested : (m, q, q) array
        The lower triangle, columnwise, of the covariance of the new effects.
    free : (a, q, q) array
        All others.
    orders : tuple of int
        Of the matrices that the tested ones are the triangles of.
    """

    tested: np.ndarray
    free: np.ndarray
    orders: tuple[int, ...]


def _symmetric_products(rows: np.ndarray, columns: np.ndarray, P: np.ndarray) -> np.ndarray:
    """``p_i p_j' + p_j p_i'`` (once where i = j) of columns of P."""
    left, right = P.T[rows], P.T[columns]
    products = left[:, :, None] * right[:, None, :]
    return np.where((rows == columns)[:, None, None], products, products + products.swapaxes(1, 2))


def _unstructured(inside: np.ndarray) -> _Block:
    """Directions for any covariance matrix of effects, some combinations of which the smaller model has."""
    q = len(inside)
    basis, singular = np.eye(q), np.zeros(q)
    if inside.shape[1]:
        basis, found, _ = np.linalg.svd(inside)
        singular[: len(found)] = found
    spanned = int(np.count_nonzero(singular > SPANNED * max(singular.max(), np.finfo(float).tiny)))
    P = np.concatenate([basis[:, spanned:], basis[:, :spanned]], axis=1)
    rows, columns = lower_triangle(q)
    r = q - spanned
    is_tested = rows < r
    products = _symmetric_products(rows, columns, P)
    return _Block(products[is_tested], products[~is_tested], (r,) if r else ())


def _by_parameter(covariance: Covariance, inside: np.ndarray) -> _Block:
    """Directions for a structure whose parameters are standard deviations of its own combinations."""
    E = covariance.jacobian(np.zeros(covariance.num_params))
    size = np.abs(inside).max(initial=0.0)
    known = np.array([np.abs(own @ inside).max(initial=0.0) > SPANNED * size for own in E], dtype=bool)
    return _Block(E[~known], E[known], (1,) * int(np.count_nonzero(~known)))


def _places(large: Fitted, position: int, contained: tuple[Containment, ...]) -> list[np.ndarray]:
    """For each contained set of effects, the standardised effects of the larger term that they are."""
    frame_index = large.estimates.terms[position].frame_index
    Z = np.asarray(large.frame.groups[frame_index].Z)
    scale = np.abs(Z).max(axis=0)
    scale[scale == 0] = 1.0
    basis = large.state.columns[position].basis
    return [
        basis @ (np.linalg.lstsq(Z / scale, part.Z, rcond=None)[0] / scale[:, None]) for part in contained
    ]


def _scale_of(fit: Fitted, position: int) -> float:
    """Mean diagonal element of the relationship matrix of a term's levels."""
    related = fit.frame.groups[fit.estimates.terms[position].frame_index].relationship
    if related is None:
        return 1.0
    return float(np.mean(np.diagonal(related.matrix)[: related.recorded]))


def _factor(
    small: Fitted, large: Fitted, parts: list[Containment], places: list[np.ndarray], q: int
) -> np.ndarray:
    """Relative factor (q, q) that the smaller model's estimates give the larger model's standardised term."""
    columns = [np.zeros((q, 0))]
    for part, place in zip(parts, places, strict=True):
        T = small.estimates.terms[part.small].factor
        if part.column is not None:
            T = np.sqrt(np.sum(T[part.column] ** 2)).reshape(1, 1)
        copies = place.shape[1] // len(T)
        ratio = np.sqrt(_scale_of(small, part.small) / _scale_of(large, part.large))
        columns.append(ratio * place @ np.kron(np.eye(copies), T))
    whole = np.concatenate(columns, axis=1)
    triangle = np.linalg.qr(whole.T)[1].T
    return np.concatenate([triangle, np.zeros((q, q - triangle.shape[1]))], axis=1)


def _term_block(
    small: Fitted, large: Fitted, position: int, contained: tuple[Containment, ...]
) -> tuple[_Block, np.ndarray]:
    """Directions of a term of the larger model, and its factor at the smaller one."""
    covariance = large.estimates.terms[position].covariance
    own = [part for part in contained if part.large == position]
    if covariance.name not in STRUCTURES:
        held = [small.estimates.terms[part.small] for part in own if part.column is None]
        same = [term.standard for term in held if term.covariance == covariance]
        if not same and isinstance(covariance, ToeplitzCovariance) and held:
            T = np.linalg.solve(large.estimates.terms[position].frame, held[0].factor)
            same = [covariance.from_covariance(T @ T.T)]
        if not same:
            group = printable(large.estimates.terms[position].group)
            raise DesignError(
                f"the covariance function of {group} has parameters that mean nothing without its variance,"
                " so no mixture of chi-squared distributions is right; simulate instead: lrtest(a, b,"
                " simulate=999)"
            )
        standard = same[0]
        slopes = metric(covariance, standard).slopes
        return _Block(slopes[:0], slopes, ()), np.asarray(covariance.factor(standard))
    places = _places(large, position, tuple(own))
    inside = np.concatenate([np.zeros((covariance.q, 0)), *places], axis=1)
    any_matrix = covariance.name == "unstructured"
    block = _unstructured(inside) if any_matrix else _by_parameter(covariance, inside)
    return block, _factor(small, large, own, places, covariance.q)


def _whole_information(
    large: Fitted, factors: list[np.ndarray], directions: list[Direction], own: ResidualEstimate | None
) -> np.ndarray:
    """Expected information about all variance parameters, the residuals' last.

    ``tr(P V_a P V_b) / 2`` at the given factors, with P the inverse of V under ML and that without the fixed
    effects under REML.
    """
    if own is not None:
        stats, size = of_any_covariance(large.state), len(own.free) + 1
        nothing = np.zeros((len(directions), size))
        lines = Lines.along(own.free, np.concatenate([nothing, unheld(own)]))
        unmoved: Direction = {}
        found = vary(factors, [*directions, *[unmoved] * size], stats, None, lines)
        by_reml = large.estimates.method == "reml" and len(found.value)
        return expected_information(found) if by_reml else -found.logdet_second / 2
    stats = large.state.compact
    found = vary(factors, directions, stats)
    first, second, df = found.logdet_first, -found.logdet_second / 2, float(stats.nobs)
    if large.estimates.method == "reml" and len(found.value):
        first = first + np.einsum("aii->a", np.linalg.solve(found.value, found.first))
        second, df = expected_information(found), df - len(found.value)
    # Beside the directions, relative to sigma squared, stands its logarithm.
    return np.block([[second, first[:, None] / 2], [first[None] / 2, np.full((1, 1), df / 2)]])


def _information(whole: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Information about the tested parameters, the first ones, that about all others projected out."""
    own = np.zeros(len(whole), dtype=bool)
    own[: len(tested)] = tested
    nuisance = whole[np.ix_(~own, ~own)]
    cross = whole[np.ix_(~own, own)]
    scale = np.sqrt(np.diagonal(nuisance))
    scale[scale == 0] = 1.0
    inverse = np.linalg.pinv(nuisance / np.outer(scale, scale), rcond=1e-12, hermitian=True)
    cross = cross / scale[:, None]
    projected = whole[np.ix_(own, own)] - cross.T @ inverse @ cross
    return np.asarray((projected + projected.T) / 2)


def _common_residual(small: Fitted, large: Fitted) -> ResidualEstimate | None:
    """Residual structure of the smaller fit, if the two have a structure in common."""
    own, theirs = small.estimates.residual, large.estimates.residual
    if theirs is None:
        return None
    if own is None or own.covariance != theirs.covariance:
        raise DesignError(
            "the residual structures differ, too, so the mixture of chi-squared distributions is not known;"
            " simulate instead: lrtest(a, b, simulate=999)"
        )
    return own


def boundary_distribution(
    small: Fitted, large: Fitted, nesting: Nesting, df: int, seed: int = 0
) -> ChiBarSquare | None:
    """Large-sample distribution of a likelihood ratio that sets variances to zero.

    Parameters
    ----------
    small, large : MixedResults
        Fits by one method; the information is that at the smaller one.
    nesting : Nesting
    df : int
        Difference in the number of parameters.
    seed : int
        Of the Monte-Carlo average, where there is no closed form.

    Returns
    -------
    ChiBarSquare or None
        None where no variance is tested at its boundary.

    Raises
    ------
    DesignError
        If the data do not tell the tested variances apart, or a covariance function is tested.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> from jaxmixed.nesting import nesting_of
    >>> data = jm.datasets.load("sleepstudy")
    >>> fits = [jm.mixed(f"Reaction ~ Days{term}", data) for term in ("", " + (Days || Subject)")]
    >>> boundary_distribution(*fits, nesting_of(*fits), 2).weights.round(2).tolist()
    [0.37, 0.5, 0.13]
    """
    blocks, factors = [], []
    for position in range(len(large.estimates.terms)):
        block, factor = _term_block(small, large, position, nesting.contained)
        blocks.append(block)
        factors.append(factor)
    orders = tuple(order for block in blocks for order in block.orders)
    dimension = sum(len(block.tested) for block in blocks)
    if not dimension:
        return None
    if dimension == 1:
        return chi_bar_square(np.eye(1), orders, df - 1)
    directions: list[Direction] = []
    tested: list[bool] = []
    for term, block in enumerate(blocks):
        directions += [{term: change} for change in (*block.tested, *block.free)]
        tested += [True] * len(block.tested) + [False] * len(block.free)
    whole = _whole_information(large, factors, directions, _common_residual(small, large))
    information = _information(whole, np.array(tested))
    try:
        return chi_bar_square(information, orders, df - dimension, seed=seed)
    except ValueError as error:
        raise DesignError(
            "the data do not tell the tested variances apart at the smaller model, so the mixture of"
            " chi-squared distributions is not known; simulate instead: lrtest(a, b, simulate=999)"
        ) from error
