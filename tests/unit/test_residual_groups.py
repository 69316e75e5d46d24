"""Groups of correlated rows share patterns, whose matrices are those of every group."""

import numpy as np
import pytest

from jaxmixed.lag_families import Autoregressive
from jaxmixed.residual_covariance import ResidualCovariance
from jaxmixed.residual_families import Exponential, Independent
from jaxmixed.residual_groups import ResidualDesign, pattern_matrices, patterns_of


def design_of(codes, times, levels=None, stratum=None, covariance=None) -> ResidualDesign:
    codes = np.asarray(codes)
    zero = np.zeros(len(codes), dtype=np.int64)
    return ResidualDesign(
        covariance or ResidualCovariance(Autoregressive(1, 4), levels=2, strata=2),
        codes,
        int(codes.max()) + 1,
        np.asarray(times, dtype=float),
        zero if levels is None else np.asarray(levels),
        np.ones(len(codes)),
        zero if stratum is None else np.asarray(stratum),
    )


def members(design: ResidualDesign) -> list[list[int]]:
    return [pattern.groups.tolist() for pattern in patterns_of(design)]


def test_groups_with_the_same_times_share_a_pattern_in_whatever_order_their_rows_stand():
    design = design_of([1, 0, 0, 1, 2, 2], [2, 2, 0, 0, 0, 3])
    assert members(design) == [[0, 1], [2]]
    (first, _) = patterns_of(design)
    assert first.rows.tolist() == [[2, 1], [3, 0]]
    assert first.at.times.ravel().tolist() == [0.0, 2.0]


@pytest.mark.parametrize("differ", ["levels", "stratum"])
def test_groups_under_other_conditions_have_patterns_of_their_own(differ):
    design = design_of([0, 0, 1, 1], [0, 1, 0, 1], **{differ: [0, 0, 1, 1]})
    assert members(design) == [[0], [1]]


def test_columns_of_random_effects_can_tell_groups_apart():
    design = design_of([0, 0, 1, 1], [0, 1, 0, 1])
    assert len(patterns_of(design)) == 1
    assert len(patterns_of(design, np.array([[1.0], [1.0], [1.0], [2.0]]))) == 2


def test_some_of_the_rows_keep_their_times_and_number_their_groups_anew():
    own = design_of([0, 0, 2, 2, 1], [0, 1, 5, 6, 7]).take(np.array([2, 3, 4]))
    assert (own.codes.tolist(), own.size, own.times.tolist()) == ([1, 1, 0], 2, [5.0, 6.0, 7.0])


def test_matrices_are_correlations_times_the_standard_deviations_of_levels_and_strata():
    design = design_of([0, 0, 1, 1], [0, 2, 0, 1], levels=[0, 1, 1, 0], stratum=[0, 0, 1, 1])
    # Strata one after the other: correlation, ratio of the second level's sd; then of the strata's sds.
    free = np.array([np.arctanh(0.5), np.log(2), np.arctanh(-0.3), np.log(3), np.log(1.5)])
    first, second = pattern_matrices(design.covariance, free, patterns_of(design))
    np.testing.assert_allclose(first, [[1, 2 * 0.5**2], [2 * 0.5**2, 4]], rtol=1e-14)
    a, b = 1.5 * 3, 1.5
    np.testing.assert_allclose(second, [[a * a, -0.3 * a * b], [-0.3 * a * b, b * b]], rtol=1e-14)


def test_rows_of_groups_that_differ_in_size_are_not_touched_by_padding():
    covariance = ResidualCovariance(Exponential())
    design = design_of([0, 1, 1, 1], [0, 0, 0.5, 2], covariance=covariance)
    one, three = pattern_matrices(covariance, np.zeros(1), patterns_of(design))
    assert one.tolist() == [[1.0]]
    apart = np.abs(np.subtract.outer([0, 0.5, 2], [0, 0.5, 2]))
    np.testing.assert_allclose(three, np.exp(-apart), rtol=1e-14)


@pytest.mark.parametrize(("function", "sd"), [("power", [2.0**0.7, 3.0**0.7]), ("exp", np.exp([1.4, 2.1]))])
def test_a_variance_function_is_one_of_the_covariate_of_each_row(function, sd):
    covariance = ResidualCovariance(Independent(), function=function)
    zero = np.zeros(2, dtype=np.int64)
    design = ResidualDesign(covariance, np.arange(2), 2, zero.astype(float), zero, np.array([2.0, 3.0]), zero)
    found = pattern_matrices(covariance, np.array([0.7]), patterns_of(design))
    np.testing.assert_allclose([own[0, 0] for own in found], np.square(sd), rtol=1e-14)
