r"""Whether data can tell a residual structure from random effects.

The likelihood depends on the parameters through V alone, so they are determined (locally, and for almost all
values; Rothenberg 1971, Econometrica 39, 577-591) if the derivatives of the elements of V by the parameters
are linearly independent. Those of the elements of two rows i, j are

.. math:: \mathrm d V_{ij} = \sum_{\text{terms}} z_i'\, \mathrm dG\, z_j\, [\text{same level}]
    + \mathrm d(\sigma^2 R_{ij})\, (w_i w_j)^{-1/2}\, [\text{same residual group}].

At parameters without symmetry, the derivatives of many pairs of rows by the parameters of the terms span one
space, those by the residual parameters another. A random intercept and compound symmetry, or a slope over
times and an unstructured matrix over them, have directions in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from jaxmixed.covariance import Covariance
from jaxmixed.errors import DesignError
from jaxmixed.precision import double_precision, to_host
from jaxmixed.programs import ONCE, Program
from jaxmixed.residual_groups import ResidualDesign, joined_occasions, patterns_of
from jaxmixed.sizes import grid_size

if TYPE_CHECKING:
    from jaxmixed.frame import ModelFrame

MOST_PAIRS = 20_000
"""Pairs of rows of a group that are looked at, at most."""

MOST_ELEMENTS = 4_000_000
"""Derivatives that are looked at, at most: there are fewer pairs where parameters are many."""

MOST_PARAMETERS = 300
"""Free residual parameters beyond which nothing is looked at."""

MOST_ROWS = 30
"""Rows of one group that are looked at, at most."""

RANK_TOLERANCE = 1e-11
"""Relative size of what counts as zero in the rank of a set of derivatives, each of length one."""

SQUARED_SINE = 1e-8
"""Of an angle that counts as zero: between models that are told apart, however hard, it was 1e-3 and more."""

_SEED = 20240229
_STEP = 1e-4  # of differences: derivatives to 1e-8, the squared sines below to 1e-16
_SPREAD = 0.3  # of the free parameters around those that structures start from


class RandomTerm(NamedTuple):
    """A random-effects term on the rows.

    Attributes
    ----------
    codes : (n,) int array
    Z : (n, q) array
    covariance : Covariance
    """

    codes: np.ndarray
    Z: np.ndarray
    covariance: Covariance


_MATRICES = Program(
    lambda points, at, *, covariance: (jax.vmap(lambda free: covariance.matrices(free, at))(points),),
    options=ONCE,
)


def check_told_apart(frame: ModelFrame, terms: Sequence[RandomTerm], texts: Sequence[str]) -> None:
    """Refuse random effects that the residual structure makes undetermined.

    Parameters
    ----------
    frame : ModelFrame
        With a residual structure.
    terms : sequence of RandomTerm
    texts : sequence of str
        Of the terms, as in the formula.

    Raises
    ------
    DesignError
        Naming the terms and the structure.
    """
    design, labels = frame.residual.design, frame.residual.labels
    if not terms or design.covariance.num_params > MOST_PARAMETERS:
        return
    found = not_told_apart(design, terms, frame.weights)
    if found is None:
        return
    named = " and ".join(texts[position] for position in found)
    term = "the term" if len(found) == 1 else "some of these terms"
    raise DesignError(
        f"the random effects {named} and the residual structure {labels.text} cannot be told apart: "
        "(co)variances of one can be moved to the other, and the covariance of the response stays as it is; "
        f"leave out {term}, or choose a residual structure with fewer parameters"
    )


def not_told_apart(
    design: ResidualDesign, terms: Sequence[RandomTerm], weights: np.ndarray | None = None
) -> tuple[int, ...] | None:
    """Terms whose covariance and the residuals' cannot both be estimated.

    Parameters
    ----------
    design : ResidualDesign
    terms : sequence of RandomTerm
    weights : (n,) array, optional
        Precision weights.

    Returns
    -------
    tuple of int or None
        Positions of the terms that are not told from the residual structure one by one, or of all if it is
        only together that they are not; None if everything is determined.

    Examples
    --------
    >>> from jaxmixed.covariance import covariance_structure
    >>> from jaxmixed.residual_covariance import ResidualCovariance
    >>> from jaxmixed.residual_families import Autoregressive, Exchangeable
    >>> codes, times = np.repeat(np.arange(5), 4), np.tile(np.arange(4.0), 5)
    >>> one, zero = np.ones(20), np.zeros(20, dtype=int)
    >>> intercept = RandomTerm(codes, one[:, None], covariance_structure("unstructured", 1))
    >>> for family in Exchangeable(4), Autoregressive(1, 4):
    ...     design = ResidualDesign(ResidualCovariance(family), codes, 5, times, zero, one, zero)
    ...     print(not_told_apart(design, [intercept]))
    (0,)
    None
    """
    rng = np.random.default_rng(_SEED)
    k = design.covariance.num_params
    effects = [_effect_slopes(term, rng) for term in terms]
    width = 1 + 2 * k + sum(map(len, effects))
    i, j, of_residual = _pairs_within(design, rng, min(MOST_PAIRS, MOST_ELEMENTS // width))
    further = [_pairs_between(design, term, rng) for term in terms]
    i = np.concatenate([i, *(pair[0] for pair in further)])
    j = np.concatenate([j, *(pair[1] for pair in further)])
    residual = np.zeros((len(i), 1 + k))
    residual[: len(of_residual)] = of_residual
    if weights is not None:
        residual /= np.sqrt(weights[i] * weights[j])[:, None]
    columns = [
        np.einsum("mi,aij,mj->ma", term.Z[i], dG, term.Z[j]) * (term.codes[i] == term.codes[j])[:, None]
        for term, dG in zip(terms, effects, strict=True)
    ]
    if not _within(residual, np.concatenate(columns, axis=1)):
        return None
    alone = tuple(t for t, own in enumerate(columns) if _within(residual, own))
    return alone or tuple(range(len(terms)))


def _within(residual: np.ndarray, others: np.ndarray) -> bool:
    """Whether a combination of `others` is one of the residual's columns: the smallest angle is zero."""
    scaled = residual / np.maximum(np.sqrt(np.einsum("ma,ma->a", residual, residual)), 1e-300)
    # Columns of powers of a year are nearly collinear; an orthonormal basis of them is not.
    others = others / np.maximum(np.sqrt(np.einsum("ma,ma->a", others, others)), 1e-300)
    basis, sizes, _ = np.linalg.svd(others, full_matrices=False)
    basis = basis[:, sizes > RANK_TOLERANCE * sizes.max()]
    shared = scaled.T @ basis
    cosines = shared.T @ np.linalg.pinv(scaled.T @ scaled, RANK_TOLERANCE, hermitian=True) @ shared
    return bool(np.linalg.eigvalsh(cosines)[-1] > 1 - SQUARED_SINE)


def _effect_slopes(term: RandomTerm, rng: np.random.Generator) -> np.ndarray:
    """Derivatives (a, q, q) of a term's G by its parameters."""
    start = term.covariance.initial()
    theta = start + _SPREAD * rng.standard_normal(len(start))
    T, dT = term.covariance.factor(theta), term.covariance.jacobian(theta)
    half = dT @ T.T
    return np.asarray(half + np.swapaxes(half, -1, -2))


def _pairs_within(
    design: ResidualDesign, rng: np.random.Generator, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of rows of the same residual group, and the derivatives of their elements of R, (m, 1 + k)."""
    rows = _some_rows(design, rng, most)
    some = design.take(rows)
    patterns = patterns_of(some)
    longest = grid_size(max(len(pattern.at.times) for pattern in patterns))
    at = joined_occasions(patterns, longest, grid_size(len(patterns)))
    free = some.covariance.initial()
    free = free + _SPREAD * rng.standard_normal(len(free))
    steps = _STEP * np.eye(len(free))
    with double_precision():
        points = np.concatenate([free[None], free + steps, free - steps])
        (R,) = to_host(_MATRICES(points, at, covariance=some.covariance))
    forward, back = np.split(R[1:], 2)
    slopes = np.moveaxis(np.concatenate([R[:1], (forward - back) / (2 * _STEP)]), 0, -1)
    found = []
    for u, pattern in enumerate(patterns):
        a, b = np.tril_indices(pattern.rows.shape[1])
        values = np.tile(slopes[a, b, u], (len(pattern.rows), 1))
        found.append((rows[pattern.rows[:, a]].ravel(), rows[pattern.rows[:, b]].ravel(), values))
    i, j, values = (np.concatenate(part) for part in zip(*found, strict=True))
    return i, j, values


def _some_rows(design: ResidualDesign, rng: np.random.Generator, most: int) -> np.ndarray:
    """Rows of groups, in random order but the largest half first, with so many pairs between them."""
    sizes = np.bincount(design.codes, minlength=design.size)
    shuffled = rng.permutation(design.size)
    large = shuffled[: (len(shuffled) + 1) // 2]
    order = np.concatenate([large[np.argsort(-sizes[large], kind="stable")], shuffled[len(large) :]])
    kept = np.minimum(sizes[order], MOST_ROWS)
    chosen = order[np.cumsum(kept * (kept + 1) // 2) <= most]
    if not len(chosen):
        chosen = order[:1]
    rows = np.flatnonzero(np.isin(design.codes, chosen))
    by_group = np.lexsort((rng.random(len(rows)), design.codes[rows]))
    codes = design.codes[rows[by_group]]
    first = np.flatnonzero(np.r_[True, np.diff(codes) != 0])
    number = np.arange(len(rows)) - np.repeat(first, np.diff(np.r_[first, len(rows)]))
    return np.sort(rows[by_group[number < MOST_ROWS]])


def _pairs_between(
    design: ResidualDesign, term: RandomTerm, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Some pairs of rows of the same level of a term, and of different residual groups."""
    size = int(term.codes.max()) + 1
    chosen = np.zeros(size, dtype=bool)
    chosen[rng.permutation(size)[: MOST_PAIRS // 10]] = True
    rows = np.flatnonzero(chosen[term.codes])
    order = rows[np.lexsort((rng.random(len(rows)), term.codes[rows]))]
    i, j = order[:-1], order[1:]
    apart = (term.codes[i] == term.codes[j]) & (design.codes[i] != design.codes[j])
    few = np.flatnonzero(apart)
    if len(few) > MOST_PAIRS // 10:
        few = rng.choice(few, MOST_PAIRS // 10, replace=False)
    return i[few], j[few]
