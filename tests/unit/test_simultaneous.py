"""Adjusted p-values and limits against SciPy's own tests, exact cases, simulation and their definitions."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from jaxmixed.errors import DataError
from jaxmixed.simultaneous import METHODS, Directions, Family, adjust_family
from tests.support.control_comparisons import scipy_dunnett, two_sided_tail

SIZES = (5, 7, 9, 4)
SINGLE_STEP = ("tukey", "sidak", "bonferroni", "scheffe", "mvt")


def samples() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.normal(shift, 1.0, size) for shift, size in zip((0, 0.4, 1.5, -0.8), SIZES, strict=True)]


def family_of(weights: np.ndarray, means: int | None = None, level: float = 0.95) -> Family:
    """Contrasts of the samples' means in a one-way layout."""
    groups = samples()
    df = sum(SIZES) - len(SIZES)
    variance = sum(((group - group.mean()) ** 2).sum() for group in groups) / df
    covariance = weights @ np.diag(variance / np.array(SIZES)) @ weights.T
    error = np.sqrt(np.diagonal(covariance))
    estimates = weights @ np.array([group.mean() for group in groups])
    return Family(estimates / error, np.full(len(weights), df), covariance / np.outer(error, error), means)


def pairs(k: int) -> np.ndarray:
    return np.array([np.eye(k)[i] - np.eye(k)[j] for i, j in combinations(range(k), 2)])


def equicorrelated(n: int, rho: float) -> np.ndarray:
    return rho + (1 - rho) * np.eye(n)


def test_tukeys_method_is_that_of_scipy_for_unequal_groups() -> None:
    expected = stats.tukey_hsd(*samples())
    found = adjust_family(family_of(pairs(4), 4), "tukey")
    order = tuple(np.transpose(list(combinations(range(4), 2))))
    np.testing.assert_allclose(found.p_values, expected.pvalue[order], rtol=1e-7)
    groups = samples()
    df = sum(SIZES) - 4
    variance = sum(((group - group.mean()) ** 2).sum() for group in groups) / df
    half = [
        found.critical[row] * np.sqrt(variance * (1 / SIZES[i] + 1 / SIZES[j]))
        for row, (i, j) in enumerate(combinations(range(4), 2))
    ]
    limits = expected.confidence_interval()
    np.testing.assert_allclose(2 * np.array(half), limits.high[order] - limits.low[order], rtol=1e-6)


def test_very_many_pairs_are_interpolated_without_loss() -> None:
    """More pairs than are integrated one by one; SciPy integrates some of them here."""
    k, df = 20, 57.0
    count = k * (k - 1) // 2
    statistic = np.linspace(0.0, 7.5, count)
    found = adjust_family(Family(statistic, np.full(count, df), np.eye(count), k), "tukey")
    some = slice(3, None, 31)
    expected = stats.studentized_range.sf(np.sqrt(2) * statistic[some], k, df)
    np.testing.assert_allclose(found.p_values[some], expected, rtol=1e-5, atol=1e-11)
    assert (np.diff(found.p_values) <= 1e-14).all()


def test_the_multivariate_t_gives_dunnetts_test() -> None:
    control, *others = samples()
    expected = scipy_dunnett(others, control)
    weights = np.column_stack([-np.ones(3), np.eye(3)])
    found = adjust_family(family_of(weights), "mvt")
    np.testing.assert_allclose(found.p_values, expected.pvalue, atol=3e-4)  # SciPy integrates by sampling
    exact = [two_sided_tail(abs(t), 21, SIZES[1:], SIZES[0]) for t in expected.statistic]
    np.testing.assert_allclose(found.p_values, exact, rtol=2e-4)
    assert found.error < 1e-4
    assert two_sided_tail(found.critical[0], 21, SIZES[1:], SIZES[0]) == pytest.approx(0.05, rel=1e-3)


def test_the_multivariate_t_of_all_pairs_of_equal_groups_is_tukeys_distribution() -> None:
    """A singular correlation matrix; of three means there is no sampling, so the agreement is complete."""
    for k, tolerance in ((3, 1e-7), (6, 2e-3)):
        weights = pairs(k)
        for df in (8.0, np.inf):
            statistic = np.linspace(0.3, 6, len(weights))
            family = Family(statistic, np.full(len(weights), df), weights @ weights.T / 2, k)
            mvt, tukey = adjust_family(family, "mvt"), adjust_family(family, "tukey")
            np.testing.assert_allclose(mvt.p_values, tukey.p_values, rtol=tolerance)
            np.testing.assert_allclose(mvt.critical, tukey.critical, rtol=tolerance / 5)


@pytest.mark.parametrize("rho", [-0.95, 0.0, 0.4, 0.999])
def test_two_statistics_against_the_bivariate_normal_distribution(rho: float) -> None:
    correlation = np.array([[1.0, rho], [rho, 1.0]])
    for c in (0.5, 2.0, 4.0):
        inside = stats.multivariate_normal([0, 0], correlation).cdf([c, c], lower_limit=[-c, -c])
        found = adjust_family(Family(np.array([c, 0.1]), np.full(2, np.inf), correlation), "mvt")
        assert found.p_values[0] == pytest.approx(1 - inside, rel=2e-5, abs=1e-9)
        assert found.error == 0


@pytest.mark.parametrize("n", [3, 5, 9])
def test_independent_normal_statistics_are_adjusted_by_sidaks_method(n: int) -> None:
    family = Family(np.linspace(1.0, 4.0, n), np.full(n, np.inf), np.eye(n))
    mvt, sidak = adjust_family(family, "mvt"), adjust_family(family, "sidak")
    np.testing.assert_allclose(mvt.p_values, sidak.p_values, atol=5e-4, rtol=2e-2)
    np.testing.assert_allclose(mvt.critical, sidak.critical, rtol=2e-3)


def test_four_correlated_t_statistics_against_their_definition() -> None:
    correlation, df, size = 0.6 ** np.abs(np.subtract.outer(range(4), range(4))), 7.0, 400_000
    rng = np.random.default_rng(11)
    normal = rng.standard_normal((size, 4)) @ np.linalg.cholesky(correlation).T
    largest = np.abs(normal).max(axis=1) / np.sqrt(rng.chisquare(df, size) / df)
    statistic = np.array([0.8, 1.7, 2.5, 4.0])
    found = adjust_family(Family(statistic, np.full(4, df), correlation), "mvt")
    share = (largest[:, None] > statistic).mean(axis=0)
    assert (np.abs(found.p_values - share) < 4 * np.sqrt(share * (1 - share) / size) + 4 * found.error).all()
    assert np.mean(largest > found.critical[0]) == pytest.approx(0.05, abs=0.0015)


def test_copies_of_one_statistic_need_no_adjustment() -> None:
    family = Family(np.full(4, 2.1), np.full(4, 12.0), np.ones((4, 4)))
    for method in ("mvt", "scheffe"):
        found = adjust_family(family, method)
        np.testing.assert_allclose(found.p_values, 2 * stats.t.sf(2.1, 12), rtol=1e-10)
        np.testing.assert_allclose(found.critical, stats.t.ppf(0.975, 12), rtol=1e-7)


def test_scheffes_method_by_its_formula() -> None:
    family = family_of(pairs(4), 4)
    found = adjust_family(family, "scheffe", 0.9)
    np.testing.assert_allclose(found.p_values, stats.f.sf(family.statistic**2 / 3, 3, 21), rtol=1e-12)
    np.testing.assert_allclose(found.critical, np.sqrt(3 * stats.f.ppf(0.9, 3, 21)), rtol=1e-12)
    normal = adjust_family(family._replace(df=np.full(6, np.inf)), "scheffe", 0.9)
    np.testing.assert_allclose(normal.p_values, stats.chi2.sf(family.statistic**2, 3), rtol=1e-12)
    np.testing.assert_allclose(normal.critical, np.sqrt(stats.chi2.ppf(0.9, 3)), rtol=1e-12)


def test_sidaks_and_bonferronis_methods_by_their_formulas() -> None:
    statistic, df = np.array([1.0, 2.5, 9.0]), np.array([5.0, 20.0, np.inf])
    p = 2 * stats.t.sf(statistic, df)
    family = Family(statistic, df, np.eye(3))
    sidak, bonferroni = adjust_family(family, "sidak"), adjust_family(family, "bonferroni")
    np.testing.assert_allclose(
        sidak.p_values, [1 - (1 - p[0]) ** 3, 1 - (1 - p[1]) ** 3, 3 * p[2]], rtol=1e-9
    )
    np.testing.assert_allclose(sidak.critical, stats.t.ppf(1 - (1 - 0.95 ** (1 / 3)) / 2, df), rtol=1e-10)
    np.testing.assert_allclose(bonferroni.p_values, np.minimum(3 * p, 1), rtol=1e-10)
    np.testing.assert_allclose(bonferroni.critical, stats.t.ppf(1 - 0.05 / 6, df), rtol=1e-10)


def test_methods_without_limits_of_their_own_have_bonferronis() -> None:
    family = family_of(pairs(4), 4)
    p = adjust_family(family, "none").p_values
    bonferroni = adjust_family(family, "bonferroni").critical
    ranked = np.maximum.accumulate(np.sort(p) * np.arange(6, 0, -1)).clip(max=1)
    holm = adjust_family(family, "holm")
    np.testing.assert_allclose(np.sort(holm.p_values), ranked, rtol=1e-12)
    fdr = adjust_family(family, "fdr")
    np.testing.assert_allclose(fdr.p_values, stats.false_discovery_control(p), rtol=1e-12)
    np.testing.assert_array_equal(fdr.p_values, adjust_family(family, "fdr_bh").p_values)
    for found in (holm, fdr, adjust_family(family, "fdr_by")):
        np.testing.assert_array_equal(found.critical, bonferroni)


@pytest.mark.parametrize("method", SINGLE_STEP)
@pytest.mark.parametrize("df", [6.5, np.inf])
def test_the_p_value_at_the_limit_is_one_minus_the_level(method: str, df: float) -> None:
    family = family_of(pairs(4), 4)._replace(df=np.full(6, df))
    critical = adjust_family(family, method, 0.9).critical
    again = adjust_family(family._replace(statistic=-critical), method)
    np.testing.assert_allclose(again.p_values, 0.1, rtol=1e-6)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"none"}))
def test_adjustment_never_helps_and_wider_correlations_never_exceed_bonferroni(method: str) -> None:
    family = family_of(pairs(4), 4)._replace(statistic=np.array([0.0, 0.5, 2.0, 5.0, 12.0, 60.0]))
    found, plain = adjust_family(family, method), adjust_family(family, "none")
    assert (found.p_values >= plain.p_values).all()
    assert (found.critical >= plain.critical).all()
    assert (found.p_values <= 1).all()
    assert found.p_values[0] == pytest.approx(1.0)
    if method not in ("scheffe", "fdr_by"):
        assert (found.p_values <= adjust_family(family, "bonferroni").p_values + 1e-9).all()


def test_what_is_missing_does_not_count() -> None:
    family = family_of(pairs(4), 4)
    holes = Family(np.where([True, True, False, True, False, False], family.statistic, np.nan), *family[1:])
    for method in METHODS:
        found = adjust_family(holes, method)
        assert np.isnan(found.p_values[[2, 4, 5]]).all()
        assert np.isnan(found.critical[[2, 4, 5]]).all() or method == "none"
        known = family_of(pairs(4)[[0, 1, 3]], 3)  # all pairs of the first three
        np.testing.assert_allclose(
            found.p_values[[0, 1, 3]], adjust_family(known, method).p_values, rtol=1e-9, err_msg=method
        )
    nothing = adjust_family(family._replace(statistic=np.full(6, np.nan)), "mvt")
    assert np.isnan(nothing.p_values).all()


def test_one_estimate_alone_is_not_adjusted() -> None:
    family = Family(np.array([2.0]), np.array([9.0]), np.ones((1, 1)), 2)
    for method in METHODS:
        assert adjust_family(family, method).p_values[0] == pytest.approx(2 * stats.t.sf(2, 9))


def test_tukeys_method_gives_way_to_sidaks_where_there_are_no_pairs() -> None:
    family = family_of(np.column_stack([-np.ones(3), np.eye(3)]))
    found = adjust_family(family, "tukey")
    assert found.method == "sidak"
    np.testing.assert_array_equal(found.p_values, adjust_family(family, "sidak").p_values)


def test_degrees_of_freedom_may_differ_between_the_estimates() -> None:
    df = np.array([4.0, 30.0, np.inf])
    family = Family(np.full(3, 2.5), df, equicorrelated(3, 0.5))
    for method in ("mvt", "scheffe", "sidak"):
        together = adjust_family(family, method)
        for row, one in enumerate(df):
            alone = adjust_family(family._replace(df=np.full(3, one)), method)
            assert together.p_values[row] == pytest.approx(alone.p_values[row], rel=1e-10)
            assert together.critical[row] == pytest.approx(alone.critical[row], rel=1e-7)


def test_sampling_is_repeatable_and_its_error_is_what_it_says() -> None:
    """The largest of eight independent normal statistics, whose distribution is known."""
    radial = Directions(np.eye(8))
    tail = radial.tail(2.5, np.inf)
    np.testing.assert_array_equal(tail, Directions(np.eye(8)).tail(2.5, np.inf))
    exact = 1 - (1 - 2 * stats.norm.sf(2.5)) ** 8
    error = tail.std(ddof=1) / np.sqrt(len(tail))
    assert abs(tail.mean() - exact) < 4 * error
    assert error < 1e-3


def test_a_method_of_another_name_is_refused() -> None:
    with pytest.raises(DataError, match="adjust is 'dunnett'; choose one of 'none', 'tukey'"):
        adjust_family(family_of(pairs(4)), "dunnett")
