r"""Starting values by the method of moments.

At G = 0 the expected cross-products of the residuals with each level's columns are linear in every level's
covariance,

.. math::
    \sum_g C_{kg} C_{kg}' = \sigma^2 \sum_g N_{kg}
    + \sum_l \sum_g (Z_{kg}'Z_{lg})\, \sigma^2 G_l\, (Z_{lg}'Z_{kg}),

so one small linear system gives all of them (MINQUE(0); Searle, Casella & McCulloch 1992, Variance
Components, section 11.3). The solution is moved inside the cone of covariance matrices. A Newton iteration
from there needs about half the steps that one from the identity does, and starts where the deviance is
convex.
"""

import numpy as np

from jaxmixed.statistics import Level, SufficientStatistics

SMALLEST = 0.05
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


def _residual_variance(stats: SufficientStatistics) -> float:
    """Pooled variance within the finest groups, or half the total where nothing is left within them."""
    leaf, r, last = stats.levels[0], len(stats.total), slice(-1, None)
    used = np.sum(leaf.count * (np.diagonal(leaf.root) > 0).T)
    df = float(stats.nobs - used) - (r - 1)
    between = np.einsum("aamij->", _outer(leaf, last, last))
    total = float(stats.total[-1, -1] + between) / float(stats.nobs)
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


def _solve_equations(stats: SufficientStatistics) -> list[np.ndarray]:
    """Moment estimates of every level's covariance, relative to sigma squared; not necessarily definite."""
    sizes = [level.root.shape[0] for level in stats.levels]
    offsets = np.cumsum([0, *(q * q for q in sizes)])
    equations = [_leaf_equations(stats.levels[0], sizes)]
    equations += [_row_equations(row, sizes[depth:]) for depth, row in enumerate(_coarser_rows(stats), 1)]
    A, right = np.zeros((offsets[-1],) * 2), np.zeros(offsets[-1])
    sigma2 = _residual_variance(stats)
    for k, (products, noise, kron) in enumerate(equations):
        own = slice(offsets[k], offsets[k + 1])
        right[own] = products / sigma2 - noise
        for other, block in enumerate(kron, k):
            A[own, offsets[other] : offsets[other + 1]] = block
            A[offsets[other] : offsets[other + 1], own] = block.T
    scale = 1 / np.sqrt(np.maximum(np.diagonal(A), np.finfo(float).tiny))
    solution = scale * np.linalg.lstsq(A * np.outer(scale, scale), scale * right, rcond=1e-8)[0]
    return [
        solution[start : start + q * q].reshape(q, q) for start, q in zip(offsets[:-1], sizes, strict=True)
    ]


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
    parts = []
    for term in stats.terms:
        own = slice(term.start, term.start + term.covariance.q)
        parts.append(
            term.covariance.from_covariance(
                _inside_cone(moments[term.level][own, own], informative[term.level][own])
            )
        )
    return np.concatenate(parts)
