r"""Starting values by the method of moments.

At G = 0 the expected cross-products of the residuals with each level's columns are linear in every level's
covariance,

.. math::
    \sum_g C_{kg} C_{kg}' = \sigma^2 \sum_g N_{kg}
    + \sum_l \sum_g (Z_{kg}'Z_{lg})\, \sigma^2 G_l\, (Z_{lg}'Z_{kg}),

so one small linear system gives all of them (MINQUE(0); Searle, Casella & McCulloch 1992, Variance
Components, section 11.3). In nested designs sigma is known from within the finest groups; where other factors
are crossed with them it is a further unknown, and the sum of squares a further equation. The solution is
moved inside the cone of covariance matrices. A Newton iteration from there needs about half the steps that
one from the identity does, and starts where the deviance is convex.

The system's matrix depends on the design alone; only the right-hand sides, quadratic in the response, differ
between responses on one design.
"""

from itertools import accumulate
from typing import NamedTuple

import jax
import numpy as np

from jaxmixed.responses import CHUNK_CELLS, SMALLEST_CHUNK, Responses, response_of
from jaxmixed.root import Root, factor_columns
from jaxmixed.statistics import Level, SufficientStatistics

SMALLEST = 0.02
"""Start no variance below this, relative to sigma squared, for columns of unit size: zero is stationary."""

LARGEST = 1e8
"""Nor above this."""


# The equations' matrix: of the design


def _outer(level: Level, rows: slice, columns: slice) -> np.ndarray:
    """Outer products of an entry's cross-products, summed over its groups, (q, q, m, a, b)."""
    if level.cross is not None:
        return np.einsum("aim,bjm->abmij", level.cross[:, rows], level.cross[:, columns])
    assert level.gram is not None  # a level has one of the two
    return np.asarray(level.gram[:, :, :, rows, columns])


def _by_parent(values: np.ndarray, parent: np.ndarray, axis: int) -> np.ndarray:
    """Sums over the entries of each parent, which stand together."""
    return np.add.reduceat(values, np.flatnonzero(np.diff(parent, prepend=-1)), axis=axis)


def _coarser_rows(stats: SufficientStatistics) -> list[np.ndarray]:
    """``Z_k' [Z_k Z_{k+1} ..]`` of every group of every coarser level, as if without random effects."""
    if not stats.levels:
        return []
    leaf, start = stats.levels[0], 0
    rows: list[np.ndarray] = []
    width = sum(level.root.shape[0] for level in stats.levels[1:])
    for level, parent in zip(stats.levels[1:], leaf.parents, strict=True):
        assert level.cross is not None  # only the finest level is ever compressed
        q = level.root.shape[0]
        products = np.einsum("aamij->ijm", _outer(leaf, slice(start, start + q), slice(start, width)))
        full = np.concatenate([level.root, level.cross[:, : width - start - q]], axis=1)
        rows.append(full + _by_parent(products, np.asarray(parent), -1))
        start += q
    return rows


class _Equation(NamedTuple):
    """One level's equations: the sum of N, which multiplies sigma squared, and blocks of their matrix.

    There is a block for the level itself and each later level of the chain and factor of the root.
    """

    noise: np.ndarray
    blocks: list[np.ndarray]


def _counts(stats: SufficientStatistics, depth: int) -> list[np.ndarray]:
    """How often the groups of every coarser level count, for each entry of a level."""
    level = stats.levels[depth]
    return [
        np.asarray(coarser.count)[parent]
        for coarser, parent in zip(stats.levels[depth + 1 :], level.parents, strict=True)
    ]


def _leaf_equation(leaf: Level, sizes: list[int], counts: list[np.ndarray]) -> _Equation:
    R, q = leaf.root, sizes[0]
    N = np.einsum("abm,acm->bcm", R, R)
    blocks = [np.einsum("m,abm,cdm->acbd", leaf.count, N, N).reshape(q * q, q * q)]
    start = 0
    for other, count in zip(sizes[1:], counts, strict=True):
        columns = slice(start, start + other)
        block = np.einsum("abm,acmij,cdm->bdij", R * count, _outer(leaf, columns, columns), R)
        blocks.append(block.reshape(q * q, other * other))
        start += other
    return _Equation((N @ leaf.count).ravel(), blocks)


def _row_equation(row: np.ndarray, sizes: list[int], counts: list[np.ndarray]) -> _Equation:
    """Of a coarser level from its full block rows; `sizes` and `counts` start with its own."""
    q, start, blocks = sizes[0], 0, []
    for other, count in zip(sizes, counts, strict=True):
        block = row[:, start : start + other]
        blocks.append(np.einsum("abm,cdm->acbd", block * count, block).reshape(q * q, other * other))
        start += other
    return _Equation((row[:, :q] @ counts[0]).ravel(), blocks)


def _raw_links(stats: SufficientStatistics) -> list[np.ndarray]:
    """``Z_k' Z`` of every level of the chain and the root's columns, (q, e), as if without random effects."""
    leaf, start, found = stats.levels[0], 0, []
    links = leaf.links
    assert links is not None
    assert leaf.cross is not None  # beside a root nothing is compressed
    found.append(np.einsum("abe,ae->be", np.asarray(leaf.root)[:, :, links.group], links.values))
    for level, into in zip(stats.levels[1:], links.parents, strict=True):
        assert level.links is not None
        q, count = level.root.shape[0], level.links.values.shape[1]
        half = np.asarray(leaf.cross)[:, start : start + q][:, :, links.group]
        updates = np.einsum("abe,ae->be", half, links.values)
        found.append(level.links.values + np.stack([np.bincount(into, row, count) for row in updates]))
        start += q
    return found


def _entries_by_factor(values: np.ndarray, column: np.ndarray, root: Root) -> list[np.ndarray]:
    """Entries of each factor of the root, (q, cells, effects): a cell is a group and a level that meet."""
    found = []
    for (levels, effects), columns in zip(root.shapes, factor_columns(root.shapes), strict=True):
        effect = np.where(
            (column >= columns.start) & (column < columns.stop), (column - columns.start) // levels, -1
        )
        found.append(np.stack([values[:, effect == b] for b in range(effects)], axis=-1))
    return found


def _kron(N: np.ndarray) -> np.ndarray:
    """Sum over cells of the Kronecker square of N, (a, cells, b)."""
    a, b = N.shape[0], N.shape[2]
    return np.einsum("aib,cid->acbd", N, N, optimize=True).reshape(a * a, b * b)


def _root_equations(root: Root) -> list[_Equation]:
    """Of the root's factors among themselves."""
    columns, gram, found = factor_columns(root.shapes), np.asarray(root.gram), []
    for f, (m, q) in enumerate(root.shapes):
        own = gram[columns[f], columns[f]].reshape(q, m, q, m)
        blocks = []
        for h, (n, c) in list(enumerate(root.shapes))[f:]:
            block = gram[columns[f], columns[h]].reshape(q, m, c, n)
            blocks.append(_kron(block.transpose(0, 1, 3, 2).reshape(q, m * n, c)))
        found.append(_Equation(np.einsum("ambm->ab", own).ravel(), blocks))
    return found


def _equate(stats: SufficientStatistics, rows: list[np.ndarray]) -> list[_Equation]:
    """Equations of every level of the chain and factor of the root, and the upper blocks of their matrix."""
    if not stats.levels:
        assert stats.root is not None
        return _root_equations(stats.root)
    sizes = [level.root.shape[0] for level in stats.levels]
    equations = [_leaf_equation(stats.levels[0], sizes, _counts(stats, 0))]
    for depth, row in enumerate(rows, 1):
        counts = [np.asarray(stats.levels[depth].count), *_counts(stats, depth)]
        equations.append(_row_equation(row, sizes[depth:], counts))
    if stats.root is None:
        return equations
    for own, level, values in zip(equations, stats.levels, _raw_links(stats), strict=True):
        assert level.links is not None
        cells = _entries_by_factor(values, np.asarray(level.links.column), stats.root)
        own.blocks.extend(_kron(by_effect) for by_effect in cells)
    return equations + _root_equations(stats.root)


def _offsets(sizes: list[int]) -> list[int]:
    """Where the unknowns of each level start, sigma squared being the first; and their number."""
    return list(accumulate((q * q for q in sizes), initial=1))


def _matrix(stats: SufficientStatistics, rows: list[np.ndarray]) -> np.ndarray:
    """Matrix of the equations: sigma squared's first, then those of each level's covariance."""
    offsets = _offsets(stats.widths)
    A = np.zeros((offsets[-1],) * 2)
    A[0, 0] = float(stats.nobs)
    for k, (noise, blocks) in enumerate(_equate(stats, rows)):
        own = slice(offsets[k], offsets[k + 1])
        A[own, 0] = A[0, own] = noise
        for other, block in enumerate(blocks, k):
            A[own, offsets[other] : offsets[other + 1]] = block
            A[offsets[other] : offsets[other + 1], own] = block.T
    return A


# Their right-hand sides: of the responses, along the last axis


def _products(C: np.ndarray) -> np.ndarray:
    """``sum C C'`` over the groups of every model, (q q, B), of cross-products (q, m, B)."""
    q, _, B = C.shape
    return np.einsum("amz,bmz->abz", C, C).reshape(q * q, B)


def _leaf_products(leaf: Level, own: Responses) -> np.ndarray:
    """``sum C C'`` of the finest level, whose C is R times the orthonormal columns' cross-product."""
    R, part = np.asarray(leaf.root), own.levels[0]
    if part is not None:
        return _products(np.einsum("abm,amz->bmz", R, part))
    assert own.gram is not None
    half = np.einsum("abm,acmz->bcmz", R, own.gram[1])
    return np.einsum("bcmz,cdm->bdz", half, R).reshape(R.shape[0] ** 2, half.shape[-1])


def _coarser_products(stats: SufficientStatistics, own: Responses) -> list[np.ndarray]:
    """``sum C C'`` of every coarser level, as if without random effects."""
    leaf, found, start = stats.levels[0], [], 0
    for level, parent, scores in zip(stats.levels[1:], leaf.parents, own.levels[1:], strict=True):
        columns = slice(start, start + level.root.shape[0])
        if own.gram is not None:
            products = np.einsum("aamiz->imz", own.gram[0][:, :, :, columns])
        else:
            assert leaf.cross is not None
            products = np.einsum("aim,amz->imz", leaf.cross[:, columns], np.asarray(own.levels[0]))
        found.append(_products(np.asarray(scores) + _by_parent(products, np.asarray(parent), 1)))
        start = columns.stop
    return found


def _root_products(stats: SufficientStatistics, own: Responses) -> list[np.ndarray]:
    """``sum C C'`` of every factor of the root."""
    root, scores = stats.root, np.asarray(own.root)
    assert root is not None
    if stats.levels:
        links = stats.levels[0].links
        assert links is not None
        part, size = np.ascontiguousarray(np.moveaxis(np.asarray(own.levels[0]), -1, 0)), len(root.cross)
        met = np.einsum("ae,zae->ze", links.values, np.take(part, links.group, axis=2))
        cells = np.asarray(links.column) + size * np.arange(len(met))[:, None]
        sums = np.bincount(cells.ravel(), met.ravel(), size * len(met))
        scores = scores + sums.reshape(-1, size).T
    return [
        _products(scores[columns].reshape(q, m, -1))
        for (m, q), columns in zip(root.shapes, factor_columns(root.shapes), strict=True)
    ]


def _right_sides(stats: SufficientStatistics, own: Responses) -> np.ndarray:
    """Sums of squares of the responses' OLS residuals, and then every level's products, (unknowns, B)."""
    square = np.asarray(own.total)[-1]
    if not stats.levels:
        return np.concatenate([square[None], *_root_products(stats, own)])
    if own.gram is not None:
        within = np.einsum("aamz->z", own.gram[1])
    else:
        part = np.asarray(own.levels[0])
        within = np.einsum("amz,amz->z", part, part)
    parts = [(square + within)[None], _leaf_products(stats.levels[0], own)]
    parts += _coarser_products(stats, own)
    if stats.root is not None:
        parts += _root_products(stats, own)
    return np.concatenate(parts)


def _all_right_sides(stats: SufficientStatistics, own: Responses) -> np.ndarray:
    """The same, for so many responses at a time that their parts stay in the processor's cache."""
    cells = sum(level.root.size if level.links is None else level.links.values.size for level in stats.levels)
    cells = max(cells, len(stats.total))
    count, width = len(own.scale), max(CHUNK_CELLS // cells, SMALLEST_CHUNK)
    if count <= width:
        return _right_sides(stats, own)
    parts = []
    for start in range(0, count, width):

        def cut(part: np.ndarray, lanes: slice = slice(start, start + width)) -> np.ndarray:
            return np.ascontiguousarray(part[..., lanes])

        parts.append(_right_sides(stats, jax.tree_util.tree_map(cut, own)))
    return np.concatenate(parts, axis=1)


# Their solution


def _residual_variances(stats: SufficientStatistics, own: Responses, squares: np.ndarray) -> np.ndarray:
    """Pooled variances within the finest groups, or half the total where nothing is left within them."""
    leaf, p = stats.levels[0], len(stats.total) - 1
    used = np.sum(leaf.count * (np.diagonal(leaf.root) > 0).T)
    df = float(stats.nobs - used) - p
    total = squares / float(stats.nobs)
    within = np.asarray(own.total[-1]) / df if df > 0 else np.zeros_like(total)
    return np.where(within > 1e-12 * total, within, total / 2)


def _scaled_solution(A: np.ndarray, right: np.ndarray) -> np.ndarray:
    scale = 1 / np.sqrt(np.maximum(np.diagonal(A), np.finfo(float).tiny))
    inverse = np.linalg.pinv(A * np.outer(scale, scale), rcond=1e-8, hermitian=True)
    return scale[:, None] * (inverse @ (scale[:, None] * right))


def _solve_equations(stats: SufficientStatistics, own: Responses, rows: list[np.ndarray]) -> list[np.ndarray]:
    """Moment estimates of every level's covariance, (B, q, q), relative to sigma squared: any symmetric."""
    A, right = _matrix(stats, rows), _all_right_sides(stats, own)
    if stats.root is None:  # sigma is known
        sigma2 = _residual_variances(stats, own, right[0])
        solution = _scaled_solution(A[1:, 1:], right[1:] / sigma2 - A[1:, :1])
    else:
        found = _scaled_solution(A, right)
        sigma2 = np.maximum(found[0], SMALLEST * right[0] / float(stats.nobs))
        solution = found[1:] / sigma2
    return [
        solution[start - 1 : start - 1 + q * q].T.reshape(-1, q, q)
        for start, q in zip(_offsets(stats.widths), stats.widths, strict=False)
    ]


def _inside_cone(G: np.ndarray, informative: np.ndarray) -> np.ndarray:
    """Covariances (B, q, q) near `G` with variances between the limits and moderate correlations."""
    q = G.shape[-1]
    sd = np.sqrt(np.clip(np.diagonal(G, axis1=1, axis2=2), SMALLEST, LARGEST))
    products = sd[:, :, None] * sd[:, None, :]
    if q > 1:
        correlation = np.clip((G + np.swapaxes(G, 1, 2)) / (2 * products), -0.9, 0.9)
        correlation[:, np.arange(q), np.arange(q)] = 1.0
        smallest = np.linalg.eigvalsh(correlation)[:, 0]
        near = smallest < 0.1
        if near.any():  # shrink towards independence
            weight = (0.9 / (1.0 - smallest[near]))[:, None, None]
            correlation[near] = weight * correlation[near] + (1 - weight) * np.eye(q)
        products *= correlation
    # A column of zeros says nothing about its variance.
    return products * np.outer(informative, informative)


def _informative(stats: SufficientStatistics, rows: list[np.ndarray]) -> list[np.ndarray]:
    """For each level, which of its columns are not zero throughout."""
    found = [(np.asarray(level.root) != 0).any(axis=(0, 2)) for level in stats.levels[:1]]
    found += [np.diagonal(row[:, : len(row)]).any(axis=0) for row in rows]
    if stats.root is not None:
        squares, columns = np.diagonal(stats.root.gram), factor_columns(stats.root.shapes)
        found += [
            (squares[own].reshape(effects, size) > 0).any(axis=1)
            for (size, effects), own in zip(stats.root.shapes, columns, strict=True)
        ]
    return found


def _mean_diagonal(stats: SufficientStatistics, level: int) -> float:
    """Mean of the diagonal of a level's relationship matrix, which the moments take for the identity."""
    bases = () if stats.root is None else stats.root.bases
    basis = bases[level - len(stats.levels)] if bases and level >= len(stats.levels) else None
    if basis is None:
        return 1.0
    levels = basis.matrix.shape[1]
    return float(np.sum(np.square(basis.matrix[:levels]))) / levels


def moment_starts(shared: SufficientStatistics, own: Responses) -> np.ndarray:
    """Starting values of many responses on one design: :func:`moment_start` of each.

    Parameters
    ----------
    shared : SufficientStatistics
        Of the design: host arrays in the orthogonal form, compressed or not, not padded.
    own : Responses
        Host arrays, models along the last axis, not padded.

    Returns
    -------
    (B, k) array
        Parameters of every term, in its canonical form, well inside the parameter space.

    Examples
    --------
    >>> from jaxmixed.covariance import covariance_structure
    >>> from jaxmixed.crossproducts import reduce_rows
    >>> from jaxmixed.layout import Grouping
    >>> from jaxmixed.responses import ResponsePass
    >>> from jaxmixed.statistics import Term
    >>> one, term = np.ones((4, 1)), Term(0, 0, covariance_structure("unstructured", 1))
    >>> groups = [Grouping(one, np.array([0, 0, 1, 1]), 2, "g")]
    >>> rows = ResponsePass(reduce_rows(np.array([1.0, 2.0, 4.0, 7.0]), one, groups, (term,)))
    >>> own, _ = rows.reduce(np.array([[1.0, 3.0], [2.0, 1.0], [4.0, 3.0], [7.0, 1.0]]))
    >>> moment_starts(rows.shared, own).round(4)
    array([[0.5477],
           [0.1414]])
    """
    rows = _coarser_rows(shared)
    moments, informative = _solve_equations(shared, own, rows), _informative(shared, rows)
    parts = []
    for term in shared.terms:
        block = slice(term.start, term.start + term.covariance.q)
        G = _inside_cone(moments[term.level][:, block, block], informative[term.level][block])
        parts.append(term.covariance.from_covariance(G / _mean_diagonal(shared, term.level)))
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def moment_start(stats: SufficientStatistics) -> np.ndarray:
    """Starting values from group-wise moments, in the coordinates of the statistics.

    Parameters
    ----------
    stats : SufficientStatistics
        Host arrays in the orthogonal form, compressed or not, not padded.

    Returns
    -------
    (k,) array
        Parameters of every term, in its canonical form, well inside the parameter space.
    """
    own = jax.tree_util.tree_map(lambda part: np.asarray(part)[..., None], response_of(stats))
    return moment_starts(stats, own)[0]
