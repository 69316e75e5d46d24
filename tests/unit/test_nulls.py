"""Simulated null distributions: closed forms of balanced data, all permutations of small data, counts."""

from __future__ import annotations

import itertools
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import jaxmixed as jm
from jaxmixed import nulls, refits, schedule
from jaxmixed._distributions import binomial_interval
from jaxmixed.crossproducts import Design
from jaxmixed.layout import Grouping
from jaxmixed.nulls import NullDistribution, likelihood_ratios, permutation_test, simulated_null
from tests.support.fits import quietly, sleepstudy
from tests.support.simulated import OneWay, one_way

LOGLIK = 1e-8
"""Log-likelihoods of two routes to one optimum."""

MONTE_CARLO = 4.0
"""Standard errors that a simulated quantity may be from the true one."""

SMALLEST_P = 1e-4
"""A test of a fixed seed against a known distribution fails below this."""


def f_ratio(balanced: OneWay) -> tuple[float, int, int]:
    """F of the analysis of variance, and its degrees of freedom."""
    return balanced.between / balanced.within, balanced.groups - 1, balanced.groups * (balanced.size - 1)


@cache
def balanced_pair() -> tuple[OneWay, jm.MixedResults, jm.MixedResults]:
    """Balanced data with a between-group variance near the 5% point of its test, without and with it."""
    balanced = one_way(0.14, groups=10, size=6)
    return balanced, quietly("y ~ 1", balanced.data), quietly("y ~ 1 + (1 | g)", balanced.data)


@cache
def balanced_null() -> NullDistribution:
    """Its simulated null distribution."""
    _, small, large = balanced_pair()
    return simulated_null(small, large, 4000, seed=1)


# Likelihood ratios


def test_the_null_distribution_of_one_variance_is_that_of_the_f_ratio() -> None:
    balanced, *_ = balanced_pair()
    null = balanced_null()
    ratio, between, within = f_ratio(balanced)
    f = stats.f(between, within)
    # The likelihood ratio increases with F, and is zero where F is at most 1.
    zero = f.cdf(1.0)
    assert abs((null.statistics == 0).mean() - zero) < MONTE_CARLO * np.sqrt(zero * (1 - zero) / 4000)
    exact = f.sf(ratio)
    assert abs(null.p_value - exact) < MONTE_CARLO * np.sqrt(exact * (1 - exact) / 4000) + 1 / 4001
    low, high = null.conf_int(0.9999)
    assert low < exact < high


def test_the_likelihood_ratios_are_those_of_the_f_ratios() -> None:
    _, between, within = f_ratio(balanced_pair()[0])
    statistics = balanced_null().statistics
    positive = statistics[statistics > 0]

    def from_f(ratio: np.ndarray) -> np.ndarray:
        """REML likelihood ratio of balanced one-way data."""
        df = between + within
        return df * np.log((between * ratio + within) / df) - between * np.log(ratio)

    grid = np.linspace(1, 30, 200_001)
    ratios = np.interp(positive, from_f(grid), grid)
    f = stats.f(between, within)
    assert stats.kstest(ratios, lambda x: (f.cdf(x) - f.cdf(1)) / f.sf(1)).pvalue > SMALLEST_P


def test_the_null_distribution_of_a_coefficient_is_that_of_its_f_ratio() -> None:
    rng = np.random.default_rng(8)
    data = pd.DataFrame({"x": np.arange(8.0), "y": 0.3 * np.arange(8.0) + rng.normal(size=8)})
    small, large = (quietly(formula, data, method="ml") for formula in ("y ~ 1", "y ~ x"))
    null = simulated_null(small, large, 4000, seed=2)
    ratios = 6 * np.expm1(null.statistics / 8)  # LR = n log(1 + F / (n - 2))
    assert stats.kstest(ratios, stats.f(1, 6).cdf).pvalue > SMALLEST_P


def test_statistics_are_those_of_single_fits_to_the_simulated_responses() -> None:
    data = jm.datasets.load("sleepstudy")
    small = sleepstudy("Reaction ~ Days + (1 | Subject)")
    large = sleepstudy()
    null = simulated_null(small, large, 20, seed=3)
    response = small.simulate(20, seed=3)
    for number in (0, 19):
        other = data.assign(Reaction=response.iloc[:, number])
        fits = [quietly(f"Reaction ~ Days + ({term} | Subject)", other) for term in ("1", "Days")]
        assert null.statistics[number] == pytest.approx(2 * (fits[1].llf - fits[0].llf), abs=LOGLIK)


def test_a_simulated_test_holds_its_distribution() -> None:
    small, large = sleepstudy("Reaction ~ Days + (1 | Subject)"), sleepstudy()
    usual = small.lrtest(large)
    test = jm.lrtest(large, small, simulate=20, seed=3)
    assert test.null is not None
    assert (test.distribution, test.df, test.statistic) == ("simulated", 2, usual.statistic)
    assert test.p_value == test.null.p_value == 1 / 21
    assert (test.null.requested, test.null.seed, test.null.n_ok, test.null.n_failed) == (20, 3, 20, 0)
    assert usual.null is None
    text = " ".join(str(test).split())
    assert "LR = 42.8" in text
    assert "20 responses simulated from the smaller model (seed 3)" in text
    assert "by chi2(2) p < 0.0001" in text
    again = large.lrtest(small, simulate=20)
    assert again.null is not None
    repeated = large.lrtest(small, simulate=20, seed=again.null.seed)
    np.testing.assert_array_equal(again.null.statistics, repeated.null.statistics)  # type: ignore[union-attr]


def test_the_offset_of_both_models_is_removed() -> None:
    balanced, *_ = balanced_pair()
    data = balanced.data.assign(o=np.linspace(-50, 50, len(balanced.data)))
    data["y"] += data["o"]
    small, large = (quietly(formula, data, offset="o") for formula in ("y ~ 1", "y ~ 1 + (1 | g)"))
    found = simulated_null(small, large, 50, seed=1)
    np.testing.assert_allclose(found.statistics, balanced_null().statistics[:50], atol=1e-7)


def test_rounding_is_no_likelihood_ratio() -> None:
    ratios = likelihood_ratios(np.full(4, -1000.0), -1000.0 + np.array([1e-9, 1e-5, -1e-6, -1.0]))
    np.testing.assert_allclose(ratios, [0.0, 2e-5, 0.0, -2.0], atol=1e-10)


def test_null_distributions_do_not_depend_on_devices_or_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    _, small, large = balanced_pair()
    whole = [
        simulated_null(small, large, 100, seed=4, devices=1).statistics,
        permutation_test(large, n=60, seed=4, devices=1).statistics,
    ]
    monkeypatch.setattr(schedule, "BLOCK", 30)
    monkeypatch.setattr(schedule, "SMALLEST_BLOCK", 25)
    shared = [
        simulated_null(small, large, 100, seed=4, devices=2).statistics,
        permutation_test(large, n=60, seed=4, devices=2).statistics,
    ]
    for one, other in zip(whole, shared, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


# P-values


def test_p_values_count_the_data_among_the_replicates() -> None:
    null = NullDistribution(np.float64(2.0), np.array([0.0, 1.0, 2.0, 3.0]), "by hand", 1, 4, {})
    assert (null.n_extreme, null.p_value) == (2, 0.6)
    assert null.conf_int(0.9) == binomial_interval(2, 4, 0.9)
    nothing = NullDistribution(np.float64(2.0), np.zeros(0), "by hand", 1, 4, {"lost": 4})
    assert (nothing.p_value, nothing.conf_int(), nothing.n_failed) == (1.0, (0.0, 1.0), 4)
    assert np.isnan(nothing.quantile())


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (17, 999)])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_binomial_limits_are_those_of_scipy(successes: int, trials: int, level: float) -> None:
    theirs = stats.binomtest(successes, trials).proportion_ci(level, method="exact")
    assert binomial_interval(successes, trials, level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_failures_are_counted_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _, small, large = balanced_pair()
    fit_of = refits.Refitter.fit

    def with_failures(self, Y):  # type: ignore[no-untyped-def]
        found = fit_of(self, Y)
        if found.theta.shape[1]:
            found.reason[:3] = 3
            found.deviance[:3] = -1e9
        return found

    monkeypatch.setattr(refits.Refitter, "fit", with_failures)
    with pytest.warns(jm.ConvergenceWarning, match="3 replicates failed and are left out"):
        null = simulated_null(small, large, 50, seed=1)
    assert (null.n_ok, null.n_failed) == (47, 3)
    assert null.statistics.max() < 100
    assert "the gradient is not zero" in str(null)


# Permutations


def exact_permutation_p(y: np.ndarray, groups: int, size: int) -> float:
    """Share of all assignments of rows to groups whose F ratio is no smaller than that of the data."""

    def between(order: tuple[int, ...]) -> float:
        return float((y[list(order)].reshape(groups, size).mean(axis=1) ** 2).sum())

    observed = between(tuple(range(len(y))))
    counts = [between(order) >= observed - 1e-9 for order in itertools.permutations(range(len(y)))]
    return float(np.mean(counts))


def test_permutation_p_values_are_those_of_all_permutations() -> None:
    y = np.array([0.0, 1.1, 2.3, 4.2, 3.1, 6.0])
    data = {"y": y, "g": np.repeat([0, 1, 2], 2)}
    exact = exact_permutation_p(y, 3, 2)
    assert 0.02 < exact < 0.5
    null = quietly("y ~ 1 + (1 | g)", data).permutation_test(n=1999, seed=1)
    assert abs(null.p_value - exact) < MONTE_CARLO * np.sqrt(exact * (1 - exact) / 1999) + 1 / 2000
    assert "labels of g permuted" in str(null)


def nested() -> pd.DataFrame:
    """Three levels: 6 schools of 2 to 4 classes, classes of 2 to 4 pupils; 4 raters are crossed with them."""
    rng = np.random.default_rng(5)
    school = np.repeat(np.arange(6), 2 + np.arange(6) % 3)
    group = np.repeat(np.arange(len(school)), 2 + np.arange(len(school)) % 3)
    school = school[group]
    x = rng.normal(size=len(group))
    y = 1 + x + rng.normal(size=6)[school] + rng.normal(size=18)[group] + rng.normal(size=len(x))
    return pd.DataFrame({"y": y, "x": x, "school": school, "group": group, "rater": np.arange(len(x)) % 4})


@pytest.mark.slow
def test_a_permutation_is_a_fit_with_other_labels() -> None:
    data = nested()
    formula = "y ~ x + (1 | school) + (1 | school:group)"
    model = quietly(formula, data)
    shuffle = nulls._shuffle(model, nulls._chosen(model, "school"))
    (drawn,) = nulls._permuted(model, shuffle, 7)(3, 4)
    null = model.permutation_test("school", n=6, seed=7)
    assert null.statistic == pytest.approx(
        2 * (model.llf - quietly("y ~ x + (1 | school:group)", data).llf), abs=LOGLIK
    )
    other = quietly("y ~ x + (1 | school) + (1 | group)", data.assign(school=drawn.codes[shuffle.position]))
    expected = 2 * (other.llf - quietly("y ~ x + (1 | school:group)", data).llf)
    assert null.statistics[3] == pytest.approx(max(expected, 0.0), abs=LOGLIK)


def design(data: pd.DataFrame, chain: list[str], *root: str) -> Any:
    """What a permutation asks of a fit."""
    one = np.ones((len(data), 1))
    factors = [
        Grouping(one, data[name].to_numpy(), int(data[name].max()) + 1, name) for name in (*chain, *root)
    ]
    depth = len(chain)
    own = Design(one, tuple(factors[:depth]), tuple(factors[depth:]), None)
    return SimpleNamespace(state=SimpleNamespace(design=own))


def permuted(model: Any, group: str, count: int) -> list[np.ndarray]:
    """Codes of the tested grouping in some permutations."""
    shuffle = nulls._shuffle(model, nulls._chosen(model, group))
    return [rows.codes[shuffle.position] for rows in nulls._permuted(model, shuffle, 1)(0, count)]


def test_whole_groups_change_places_where_others_are_nested_in_them() -> None:
    data = nested()
    sizes = data.groupby("school")["group"].nunique().to_numpy()
    for school in permuted(design(data, ["group", "school"]), "school", 5):
        pairs = pd.DataFrame({"school": school, "group": data["group"]}).drop_duplicates()
        assert pairs["group"].is_unique  # still nested
        np.testing.assert_array_equal(pairs["school"].value_counts(sort=False).sort_index(), sizes)
        assert not np.array_equal(school, data["school"])


def test_labels_change_places_within_coarser_groups() -> None:
    data = nested()
    owner = data.groupby("group")["school"].first().to_numpy()
    for group in permuted(design(data, ["group", "school"]), "group", 5):
        np.testing.assert_array_equal(owner[group], data["school"])
        np.testing.assert_array_equal(np.bincount(group), np.bincount(data["group"]))
        assert not np.array_equal(group, data["group"])


@pytest.mark.parametrize("group", ["school", "rater"])
def test_labels_change_places_within_crossed_groups(group: str) -> None:
    data = nested()
    before = pd.crosstab(data["school"], data["rater"]).to_numpy()
    for codes in permuted(design(data, ["school"], "rater"), group, 5):
        other = data.assign(**{group: codes})
        np.testing.assert_array_equal(before, pd.crosstab(other["school"], other["rater"]).to_numpy())
        assert not np.array_equal(codes, data[group])


@pytest.mark.slow
def test_the_model_without_a_grouping_is_that_of_the_smaller_formula() -> None:
    data = nested()
    formulas = {
        "y ~ x + (1 | school) + (1 | school:group)": {"school": "y ~ x + (1 | group)"},
        "y ~ x + (1 | rater) + (1 | school)": {
            "rater": "y ~ x + (1 | school)",
            "school": "y ~ x + (1 | rater)",
        },
        "y ~ x + (x | school)": {"school": "y ~ x"},
    }
    for formula, smaller in formulas.items():
        model = quietly(formula, data)
        for group, text in smaller.items():
            expected = quietly(text, data).llf
            assert nulls._without(model, nulls._chosen(model, group)) == pytest.approx(expected, abs=LOGLIK)


# Arguments


def test_arguments_of_the_wrong_kind_are_refused() -> None:
    data = nested()
    small, large = sleepstudy("Reaction ~ Days + (1 | Subject)"), sleepstudy()
    for number in (0, True, 10.0):
        with pytest.raises(jm.DataError, match=r"simulate is .*; give the number of replicates"):
            small.lrtest(large, simulate=number)  # type: ignore[arg-type]
    with pytest.raises(jm.DataError, match="simulate=999"):
        small.lrtest(large, seed=1)
    with pytest.raises(jm.DataError, match="seed must be"):
        small.lrtest(large, simulate=10, seed=-1)
    with pytest.raises(jm.DataError, match="group is 'school'; the groupings of the model are 'Subject'"):
        large.permutation_test("school")
    with pytest.raises(jm.DesignError, match="a linear model has no group labels"):
        quietly("y ~ x", data).permutation_test()
    with pytest.raises(jm.DataError, match=r"group= must say .*'school', 'rater'"):
        nulls._chosen(design(data, ["school"], "rater"), None)


def test_labels_that_cannot_change_places_are_refused() -> None:
    data = nested().assign(copy=lambda d: d["school"])
    same = design(data, ["school", "copy"])
    with pytest.raises(jm.DesignError, match="no label of 'copy' can change places"):
        permuted(same, "copy", 1)
    several = design(data, ["group", "school"], "rater")
    with pytest.raises(jm.DesignError, match=r"within 'school' lie in more than one .*lrtest\(smaller"):
        permuted(several, "school", 1)
    assert len(permuted(several, "group", 1)) == 1
