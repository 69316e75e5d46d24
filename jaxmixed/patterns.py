"""Groups that are alike share one entry of the sufficient statistics.

Two finest groups with the same root (and the same parent) enter the likelihood through the sum of the outer
products of their cross-products alone, so they can be kept as one *pattern* with a count. In a balanced
design, or with a random intercept, the cost of an evaluation falls from the number of groups to the number of
distinct patterns.
"""

from dataclasses import replace

import numpy as np

from jaxmixed.statistics import Level, SufficientStatistics

MAX_PATTERNS = 4096
"""Largest number of distinct patterns for which outer products are summed pattern by pattern."""

RESOLUTION = 2.0**-38
"""Roots that agree to this share of their column's largest element share an entry: they differ by
rounding."""


def pattern_codes(level: Level) -> tuple[np.ndarray, np.ndarray]:
    """Find which entries of a level are alike.

    Parameters
    ----------
    level : Level
        One entry per group.

    Returns
    -------
    codes : (m,) int array
        Pattern of each entry, in order of first appearance.
    first : (patterns,) int array
        First entry of each pattern.
    """
    q = level.root.shape[0]
    largest = np.maximum(np.abs(level.root).max(axis=(0, 2)), np.finfo(float).tiny)
    rounded = np.rint(level.root / (largest * RESOLUTION)[None, :, None]).astype(np.int64)
    keys = [rounded[i, j] for i in range(q) for j in range(i, q)]
    keys.extend(level.parents[:1])
    if all((key == key[0]).all() for key in keys):
        return np.zeros(len(keys[0]), dtype=np.int64), np.zeros(1, dtype=np.int64)
    combined = np.zeros(len(keys[0]), dtype=np.uint64)
    for key in keys:
        combined = (combined ^ key.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        combined ^= combined >> np.uint64(29)
    distinct = np.unique(combined)
    codes = np.searchsorted(distinct, combined)
    first = np.empty(len(distinct), dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # the last write, the earliest entry, stays
    if not all(np.array_equal(key[first][codes], key) for key in keys):
        return np.arange(len(codes)), np.arange(len(codes))  # a hash collision: do without patterns
    rank = np.argsort(first)  # in order of appearance, which keeps a parent's entries together
    renumber = np.empty_like(rank)
    renumber[rank] = np.arange(len(rank))
    return renumber[codes], first[rank]


def stable_order(codes: np.ndarray, size: int) -> np.ndarray:
    """Order that sorts codes ``0 .. size-1``, equal ones staying in place.

    By their 16-bit halves, the lower ones first, which numpy sorts by counting: several times faster than by
    comparing.

    Examples
    --------
    >>> stable_order(np.array([2, 0, 2, 1]), 3)
    array([1, 3, 0, 2])
    """
    order = np.argsort(codes.astype(np.uint16), kind="stable")
    if size > 1 << 16:
        order = order[np.argsort((codes >> 16)[order].astype(np.uint16), kind="stable")]
    return order


def _outer_products(flat: np.ndarray, codes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sum of the outer products of the columns of each pattern, (patterns, c, c)."""
    if len(counts) == 1:
        return (flat @ flat.T)[None]
    order = stable_order(codes, len(counts))
    ends = np.cumsum(counts)
    parts = (flat[:, order[end - count : end]] for end, count in zip(ends, counts, strict=True))
    return np.stack([part @ part.T for part in parts])


def compress(stats: SufficientStatistics) -> SufficientStatistics:
    """Let the finest groups that have the same root (and parent) share one entry, where that pays.

    Parameters
    ----------
    stats : SufficientStatistics
        Host arrays, one entry per group.

    Returns
    -------
    SufficientStatistics
        With `gram` in place of `cross` at the finest level, or unchanged: where it does not pay, and beside a
        root, to whose columns each group is linked in its own way.

    Examples
    --------
    >>> from jaxmixed.covariance import covariance_structure
    >>> from jaxmixed.statistics import Term
    >>> from jaxmixed.crossproducts import reduce_rows
    >>> from jaxmixed.layout import Grouping
    >>> y, one = np.arange(12.0) ** 2, np.ones((12, 1))
    >>> term = Term(0, 0, covariance_structure("unstructured", 1))
    >>> stats = reduce_rows(y, one, [Grouping(one, np.repeat(np.arange(6), 2), 6, "g")], (term,)).stats
    >>> compress(stats).levels[0].count
    array([6.])
    """
    if not stats.levels or stats.root is not None:
        return stats
    level = stats.levels[0]
    if level.cross is None:
        return stats
    q, r, m = level.cross.shape
    codes, first = pattern_codes(level)
    patterns = len(first)
    if patterns * q * r >= m or patterns > MAX_PATTERNS:
        return stats
    counts = np.bincount(codes, minlength=patterns)
    grams = _outer_products(np.asarray(level.cross).reshape(q * r, m), codes, counts)
    compressed = replace(
        level,
        root=np.ascontiguousarray(level.root[:, :, first]),
        cross=None,
        gram=np.ascontiguousarray(grams.reshape(patterns, q, r, q, r).transpose(1, 3, 0, 2, 4)),
        count=np.bincount(codes, level.count, patterns),
        parents=tuple(parent[first] for parent in level.parents),
    )
    return replace(stats, levels=(compressed, *stats.levels[1:]))
