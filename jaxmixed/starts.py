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
"""

from typing import NamedTuple

import numpy as np

from jaxmixed.root import Root, factor_columns
from jaxmixed.statistics import Level, SufficientStatistics

SMALLEST = 0.02
"""Start no variance below this, relative to sigma squared, for columns of unit size: zero is stationary."""

LARGEST = 1e8
"""Nor above this."""


def _outer(level: Level, rows: slice, columns: slice) -> np.ndarray:
    """Outer products of an entry's cross-products, summed over its groups, (q, q, m, a, b)."""
    if level.cross is not None:
        return np.einsum("aim,bjm->abmij", level.cross[:, rows], level.cross[:, columns])
    assert level.gram is not None  # a level has one of the two
    return np.asarray(level.gram[:, :, :, rows, columns])


def _coarser_rows(stats: SufficientStatistics) -> list[np.ndarray]:
    """``Z_k' [Z_k Z_{k+1} .. X y]`` of every group of every coarser level, as if without random effects."""
    leaf, rows, start = stats.levels[0], [], 0
    for level, parent in zip(stats.levels[1:], leaf.parents, strict=True):
        q = level.root.shape[0]
        products = np.einsum("aamij->ijm", _outer(leaf, slice(start, start + q), slice(start, None)))
        full = np.concatenate([level.root, level.cross], axis=1)
        rows.append(full + np.add.reduceat(products, np.flatnonzero(np.diff(parent, prepend=-1)), axis=-1))
        start += q
    return rows


def _total_square(stats: SufficientStatistics) -> float:
    """Sum of squares of the response's OLS residuals."""
    last = slice(-1, None)
    return float(stats.total[-1, -1] + np.einsum("aamij->", _outer(stats.levels[0], last, last)))


def _residual_variance(stats: SufficientStatistics) -> float:
    """Pooled variance within the finest groups, or half the total where nothing is left within them."""
    leaf, r = stats.levels[0], len(stats.total)
    used = np.sum(leaf.count * (np.diagonal(leaf.root) > 0).T)
    df = float(stats.nobs - used) - (r - 1)
    total = _total_square(stats) / float(stats.nobs)
    within = float(stats.total[-1, -1]) / df if df > 0 else 0.0
    return within if within > 1e-12 * total else total / 2


def _leaf_equations(leaf: Level, sizes: list[int]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """For the finest level: sum of C C', sum of N, and its blocks of the equations' matrix."""
    R, last = leaf.root, slice(-1, None)
    q = sizes[0]
    N = np.einsum("abm,acm->bcm", R, R)
    products = np.einsum("abm,acm,cdm->bd", R, _outer(leaf, last, last)[..., 0, 0], R)
    kron = [np.einsum("m,abm,cdm->acbd", leaf.count, N, N).reshape(q * q, q * q)]
    start = 0
    for other in sizes[1:]:
        columns = slice(start, start + other)
        block = np.einsum("abm,acmij,cdm->bdij", R, _outer(leaf, columns, columns), R)
        kron.append(block.reshape(q * q, other * other))
        start += other
    return products.ravel(), (N @ leaf.count).ravel(), kron


def _row_equations(row: np.ndarray, sizes: list[int]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The same for a coarser level from its full block rows; `sizes` starts with its own."""
    q, C, start, kron = sizes[0], row[:, -1], 0, []
    for other in sizes:
        block = row[:, start : start + other]
        kron.append(np.einsum("abm,cdm->acbd", block, block).reshape(q * q, other * other))
        start += other
    return (C @ C.T).ravel(), row[:, :q].sum(axis=-1).ravel(), kron


class _Equation(NamedTuple):
    """One level's sum of C C', and its sum of N, which multiplies sigma squared."""

    products: np.ndarray
    noise: np.ndarray


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


def _root_equations(
    stats: SufficientStatistics,
) -> tuple[list[_Equation], list[list[np.ndarray]]]:
    """Equations of the root's factors among themselves."""
    root, leaf = stats.root, stats.levels[0]
    assert root is not None
    assert leaf.links is not None
    assert leaf.cross is not None  # beside a root nothing is compressed
    met = np.einsum("ae,ae->e", leaf.links.values, np.asarray(leaf.cross)[:, -1][:, leaf.links.group])
    scores = root.cross[:, -1] + np.bincount(leaf.links.column, met, len(root.cross))
    columns, gram = factor_columns(root.shapes), np.asarray(root.gram)
    sums, blocks = [], []
    for f, (m, q) in enumerate(root.shapes):
        C = np.asarray(scores)[columns[f]].reshape(q, m)
        own = gram[columns[f], columns[f]].reshape(q, m, q, m)
        sums.append(_Equation((C @ C.T).ravel(), np.einsum("ambm->ab", own).ravel()))
        row = []
        for h, (n, c) in list(enumerate(root.shapes))[f:]:
            block = gram[columns[f], columns[h]].reshape(q, m, c, n)
            row.append(_kron(block.transpose(0, 1, 3, 2).reshape(q, m * n, c)))
        blocks.append(row)
    return sums, blocks


def _equate(stats: SufficientStatistics) -> tuple[list[_Equation], list[list[np.ndarray]]]:
    """Equations of every level of the chain and factor of the root, and the upper blocks of their matrix."""
    sizes = [level.root.shape[0] for level in stats.levels]
    equations = [_leaf_equations(stats.levels[0], sizes)]
    equations += [_row_equations(row, sizes[depth:]) for depth, row in enumerate(_coarser_rows(stats), 1)]
    sums = [_Equation(products, noise) for products, noise, _ in equations]
    blocks = [kron for _, _, kron in equations]
    if stats.root is None:
        return sums, blocks
    linked = _raw_links(stats)
    for own, (level, values) in zip(blocks, zip(stats.levels, linked, strict=True), strict=True):
        assert level.links is not None
        own += [
            _kron(by_effect)
            for by_effect in _entries_by_factor(values, np.asarray(level.links.column), stats.root)
        ]
    own_sums, own_blocks = _root_equations(stats)
    return [*sums, *own_sums], [*blocks, *own_blocks]


def _solve_equations(stats: SufficientStatistics) -> list[np.ndarray]:
    """Moment estimates of every level's covariance, relative to sigma squared; not necessarily definite."""
    sizes = stats.widths
    offsets = 1 + np.cumsum([0, *(q * q for q in sizes)])
    sums, blocks = _equate(stats)
    A, right = np.zeros((offsets[-1],) * 2), np.zeros(offsets[-1])
    A[0, 0], right[0] = float(stats.nobs), _total_square(stats)
    for k, (equation, own_blocks) in enumerate(zip(sums, blocks, strict=True)):
        own = slice(offsets[k], offsets[k + 1])
        right[own] = equation.products
        A[own, 0] = A[0, own] = equation.noise
        for other, block in enumerate(own_blocks, k):
            A[own, offsets[other] : offsets[other + 1]] = block
            A[offsets[other] : offsets[other + 1], own] = block.T
    if stats.root is None:  # sigma is known
        sigma2 = _residual_variance(stats)
        solution = _scaled_solution(A[1:, 1:], right[1:] / sigma2 - A[1:, 0])
    else:
        found = _scaled_solution(A, right)
        sigma2 = max(found[0], SMALLEST * right[0] / float(stats.nobs))
        solution = found[1:] / sigma2
    return [
        solution[start - 1 : start - 1 + q * q].reshape(q, q)
        for start, q in zip(offsets[:-1], sizes, strict=True)
    ]


def _scaled_solution(A: np.ndarray, right: np.ndarray) -> np.ndarray:
    scale = 1 / np.sqrt(np.maximum(np.diagonal(A), np.finfo(float).tiny))
    return scale * np.linalg.lstsq(A * np.outer(scale, scale), scale * right, rcond=1e-8)[0]


def _inside_cone(G: np.ndarray, informative: np.ndarray) -> np.ndarray:
    """Covariance near `G` with variances between the limits and moderate correlations."""
    sd = np.sqrt(np.clip(np.diagonal(G), SMALLEST, LARGEST))
    correlation = np.clip((G + G.T) / (2 * np.outer(sd, sd)), -0.9, 0.9)
    np.fill_diagonal(correlation, 1.0)
    smallest = np.linalg.eigvalsh(correlation)[0] if len(sd) > 1 else 1.0
    if smallest < 0.1:  # shrink towards independence
        weight = 0.9 / (1.0 - smallest)
        correlation = weight * correlation + (1 - weight) * np.eye(len(sd))
    sd = np.where(informative, sd, 0.0)  # a column of zeros says nothing about its variance
    return correlation * np.outer(sd, sd)


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
    moments = _solve_equations(stats)
    leaf, *coarser = stats.levels
    informative = [(np.asarray(leaf.root) != 0).any(axis=(0, 2))]
    informative += (
        [np.diagonal(row[:, : len(row)]).any(axis=0) for row in _coarser_rows(stats)] if coarser else []
    )
    if stats.root is not None:
        squares, columns = np.diagonal(stats.root.gram), factor_columns(stats.root.shapes)
        informative += [
            (squares[own].reshape(effects, size) > 0).any(axis=1)
            for (size, effects), own in zip(stats.root.shapes, columns, strict=True)
        ]
    parts = []
    for term in stats.terms:
        own = slice(term.start, term.start + term.covariance.q)
        parts.append(
            term.covariance.from_covariance(
                _inside_cone(moments[term.level][own, own], informative[term.level][own])
            )
        )
    return np.concatenate(parts)
