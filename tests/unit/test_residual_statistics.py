"""Three ways to keep rows with correlated residuals give the statistics that whitening every row gives."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxmixed import residual_pass
from jaxmixed.covariance import covariance_structure
from jaxmixed.crossproducts import Reduction, reduce_rows
from jaxmixed.label_families import Unstructured
from jaxmixed.lag_families import Autoregressive
from jaxmixed.layout import Grouping
from jaxmixed.likelihood import deviance
from jaxmixed.precision import double_precision
from jaxmixed.residual_covariance import ResidualCovariance
from jaxmixed.residual_groups import ResidualDesign, pattern_matrices, patterns_of
from jaxmixed.residual_pass import correlated_rows, pattern_moments, successive_rows
from jaxmixed.residual_statistics import CorrelatedRows, PatternMoments, SuccessiveRows
from jaxmixed.statistics import SufficientStatistics, Term, pad
from tests.support.compilation import QUICKLY

SIZES = (1, 2, 3, 7, 4, 4, 3, 3, 1, 2)
FREE = np.array([0.4, 0.3, -0.2])  # a correlation, and the sds of two further levels
ROUNDING = 1e-11


def design_of(codes: np.ndarray, rng: np.random.Generator) -> ResidualDesign:
    """AR(1) with gaps, and three levels of variance."""
    size = int(codes.max()) + 1
    times = np.zeros(len(codes))
    for group in range(size):
        rows = np.flatnonzero(codes == group)
        times[rows] = rng.permutation(9)[: len(rows)]
    levels = (times % 3).astype(np.int64)
    covariance = ResidualCovariance(Autoregressive(1, 12), levels=3)
    return ResidualDesign(
        covariance, codes, size, times, levels, np.ones(len(codes)), np.zeros(len(codes), int)
    )


class Rows:
    """Rows of ten subjects in three schools, in no order, with weights."""

    def __init__(self) -> None:
        rng = np.random.default_rng(2)
        codes = rng.permutation(np.repeat(np.arange(len(SIZES)), SIZES))
        n = len(codes)
        self.school = np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 2])[codes]
        self.design = design_of(codes, rng)
        self.X = np.column_stack([np.ones(n), rng.normal(size=n)])
        self.Z = [np.column_stack([np.ones(n), rng.normal(size=n)]), np.ones((n, 1))]
        self.y, self.weights = rng.normal(size=n), rng.uniform(0.5, 2, n)

    @property
    def chain(self) -> list[Grouping]:
        return [
            Grouping(self.Z[0], self.design.codes, self.design.size, "subject"),
            Grouping(self.Z[1], self.school, 3, "school"),
        ]

    def reduce(self, levels: int) -> Reduction:
        groupings = self.chain[:levels]
        terms = tuple(
            Term(d, 0, covariance_structure("unstructured", own.Z.shape[1]))
            for d, own in enumerate(groupings)
        )
        return reduce_rows(self.y, self.X, groupings, terms, self.weights, correlated=self.design)

    def roots(self, free: np.ndarray) -> np.ndarray:
        """Cholesky factor (n, n) of the relative covariance of the residuals, weights included."""
        R = np.zeros((len(self.y), len(self.y)))
        patterns = patterns_of(self.design)
        for pattern, own in zip(
            patterns, pattern_matrices(self.design.covariance, free, patterns), strict=True
        ):
            for rows in pattern.rows:
                R[np.ix_(rows, rows)] = own
        return np.asarray(np.linalg.cholesky(R / np.sqrt(np.outer(self.weights, self.weights))))


_deviance = jax.jit(deviance, compiler_options=QUICKLY)
_slope = jax.jit(jax.grad(deviance), compiler_options=QUICKLY)


def value(theta: np.ndarray, stats: SufficientStatistics) -> float:
    with double_precision():
        return float(_deviance(theta, pad(stats)))


@pytest.fixture(scope="module")
def rows() -> Rows:
    return Rows()


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_the_deviance_is_that_of_rows_whitened_one_by_one(rows, levels):
    theta = np.concatenate([np.array([1.2, 0.3, 0.8, 0.6])[: (0, 3, 4)[levels]], FREE])
    reduction = rows.reduce(levels)
    L = rows.roots(FREE)
    white = np.linalg.solve(L, np.column_stack([rows.y, rows.X, *rows.Z]))
    Z = (white[:, 3:5], white[:, 5:])
    groupings = [replace(own, Z=Z[d]) for d, own in enumerate(rows.chain[:levels])]
    plain = reduce_rows(white[:, 0], white[:, 1:3], groupings, reduction.stats.terms)
    expected = value(theta[: len(theta) - 3], plain.stats) + 2 * np.log(np.diagonal(L)).sum()
    assert value(theta, reduction.stats) == pytest.approx(expected, rel=ROUNDING)
    assert value(theta, reduction.compact) == pytest.approx(expected, rel=ROUNDING)


def test_moments_of_patterns_rows_and_successive_rows_agree(rows):
    reduction = rows.reduce(0)
    found = reduction.stats.residual
    assert isinstance(found, CorrelatedRows)
    flat = residual_pass.standard_rows(
        [], [], rows.X, reduction.fixed, reduction.residual / np.sqrt(rows.weights), rows.weights
    )
    patterns = patterns_of(rows.design)
    moments = pattern_moments(rows.design, flat, flat[:, :0], patterns)
    successive = successive_rows(rows.design, flat, [])
    assert isinstance(moments, PatternMoments)
    assert isinstance(successive, SuccessiveRows)
    values = [value(FREE, replace(reduction.stats, residual=own)) for own in (found, moments, successive)]
    np.testing.assert_allclose(values, values[0], rtol=ROUNDING)


@pytest.mark.parametrize("levels", [0, 2])
def test_derivatives_are_those_of_differences(rows, levels):
    theta = np.concatenate([np.array([1.2, 0.3, 0.8, 0.6])[: (0, 3, 4)[levels]], FREE])
    stats = rows.reduce(levels).compact
    with double_precision():
        slope = np.asarray(_slope(theta, pad(stats)))
    step = 1e-5 * np.eye(len(theta))
    differences = [(value(theta + own, stats) - value(theta - own, stats)) / 2e-5 for own in step]
    np.testing.assert_allclose(slope, differences, rtol=1e-6, atol=1e-7)


def test_groups_of_similar_sizes_share_a_batch_and_large_ones_stand_alone(rows):
    flat = np.ones((len(rows.y), 1))
    found = correlated_rows(rows.design, flat, [], patterns_of(rows.design))
    assert [batch.columns.shape[0] for batch in found.batches] == [8, 3, 1]
    assert sum(batch.columns.sum() for batch in found.batches) == len(rows.y)
    assert sum(batch.count.sum() for batch in found.batches) == len(SIZES)


def visits(subjects: int) -> Reduction:
    """Four visits of every subject, some of whom miss the last."""
    code, time = np.repeat(np.arange(subjects), 4), np.tile(np.arange(4.0), subjects)
    kept = (code % 3 > 0) | (time < 3)
    code, time = code[kept], time[kept]
    rng, n = np.random.default_rng(subjects), int(kept.sum())
    level, zero = time.astype(np.int64), np.zeros(n, dtype=np.int64)
    covariance = ResidualCovariance(Unstructured(4), levels=4)
    design = ResidualDesign(covariance, code, subjects, time, level, np.ones(n), zero)
    X = np.column_stack([np.ones(n), code % 2, time])
    return reduce_rows(rng.normal(size=n), X, [], (), correlated=design)


def test_the_moments_of_few_patterns_take_the_same_numbers_for_any_number_of_subjects():
    few, many = visits(60).compact, visits(6_000).compact
    assert isinstance(few.residual, PatternMoments)
    shapes = [[leaf.shape for leaf in jax.tree.leaves(stats)] for stats in (few, many)]
    assert shapes[0] == shapes[1]
    assert many.residual.count.tolist() == [2_000, 4_000]


def test_random_effects_with_the_same_columns_within_patterns_share_moments():
    reduction = visits(60)
    own = reduction.design.residual
    Z = np.column_stack([np.ones(len(own.codes)), own.times])
    term = Term(0, 0, covariance_structure("unstructured", 2))
    grouped = reduce_rows(
        reduction.residual, reduction.design.X, [Grouping(Z, own.codes, 60, "g")], (term,), correlated=own
    )
    assert isinstance(grouped.compact.residual, PatternMoments)
    theta = np.concatenate([[1.0, 0.2, 0.5], np.linspace(-0.3, 0.4, 9)])
    assert value(theta, grouped.compact) == pytest.approx(value(theta, grouped.stats), rel=ROUNDING)
