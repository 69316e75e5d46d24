"""Likelihood-ratio tests and tables of models: statistics, distributions, order, refusals."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import jaxmixed as jm
from jaxmixed.comparison import linear_model_test
from jaxmixed.results import MixedResults
from tests.support.fits import aliased, fit, quietly, sleepstudy

INTERCEPT = "Reaction ~ Days + (1 | Subject)"
SLOPE = "Reaction ~ Days + (Days | Subject)"


@cache
def noise() -> pd.DataFrame:
    rng = np.random.default_rng(7)
    data = pd.DataFrame({"g": np.repeat(np.arange(24), 8), "h": np.tile(np.arange(4), 48)})
    data["x"] = rng.normal(size=192)
    data["z"] = rng.normal(size=192)
    slopes = rng.normal(size=(24, 3))[data["g"]]
    data["y"] = slopes[:, 0] + slopes[:, 1] * data["x"] + slopes[:, 2] * data["z"] + rng.normal(size=192)
    return data


@cache
def noise_fit(random: str, fixed: str = "x + z", method: str = "ml") -> MixedResults:
    return quietly(f"y ~ {fixed} + {random}", noise(), method=method)


def with_llf(found: MixedResults, llf: float) -> MixedResults:
    """The same fit with another log-likelihood, to reach cases that no optimiser would."""
    estimates = replace(found.estimates, llf=llf, deviance=-2 * llf)
    return MixedResults(frame=found.frame, estimates=estimates, state=found.state)


def test_the_reference_test_of_a_correlated_slope() -> None:
    test = jm.lrtest(sleepstudy(), sleepstudy(INTERCEPT))
    assert test.statistic == pytest.approx(42.83681343643, rel=1e-5)
    assert (test.df, test.distribution) == (2, "chi2(2)")
    assert test.p_value == pytest.approx(4.990041426962e-10, rel=1e-4)
    assert "conservative" in test.note
    assert "mixture=True" in test.note
    assert type(test.statistic) is type(test.p_value) is np.float64


def test_the_order_of_the_models_does_not_matter() -> None:
    one, two = jm.lrtest(sleepstudy(), sleepstudy(INTERCEPT)), sleepstudy(INTERCEPT).lrtest(sleepstudy())
    assert str(one) == str(two)
    assert one.table["formula"].tolist() == [INTERCEPT, SLOPE]


def test_the_mixture_halves_the_two_tails() -> None:
    test = jm.lrtest(sleepstudy(), sleepstudy(INTERCEPT), mixture=True)
    halves = [stats.chi2.sf(test.statistic, df) / 2 for df in (1, 2)]
    assert test.p_value == pytest.approx(sum(halves), rel=1e-9)
    assert test.distribution == "0.5 chi2(1) + 0.5 chi2(2)"
    assert test.note == ""


def test_one_more_variance_has_the_mixture_of_zero_and_one() -> None:
    test = jm.lrtest(fit("sleepstudy", "Reaction ~ Days + (Days || Subject)"), sleepstudy(INTERCEPT))
    assert (test.df, test.distribution, test.note) == (1, "chibar2(01)", "")
    assert test.p_value == pytest.approx(stats.chi2.sf(test.statistic, 1) / 2, rel=1e-9)


def test_the_linear_model_is_the_smallest_model() -> None:
    test = jm.lrtest(fit("mini_wright", "wm ~ 1"), fit("mini_wright", "wm ~ 1 + (1 | id)"))
    assert round(float(test.statistic), 2) == 46.96
    assert test.distribution == "chibar2(01)"


def test_a_correlation_alone_is_not_on_the_boundary() -> None:
    test = jm.lrtest(sleepstudy(), fit("sleepstudy", "Reaction ~ Days + (Days || Subject)"))
    assert (test.df, test.distribution, test.note) == (1, "chi2(1)", "")
    with pytest.raises(jm.DesignError, match="exactly one more random effect; here there are 0 more"):
        jm.lrtest(sleepstudy(), fit("sleepstudy", "Reaction ~ Days + (Days || Subject)"), mixture=True)


def test_fixed_effects_are_tested_by_chi_squared() -> None:
    test = jm.lrtest(noise_fit("(1 | g)", "1"), noise_fit("(1 | g)"))
    assert (test.df, test.distribution, test.note) == (2, "chi2(2)", "")


def test_several_more_effects_are_conservative_and_have_no_mixture() -> None:
    test = jm.lrtest(noise_fit("(1 | g)"), noise_fit("(1 + x + z | g)"))
    assert (test.df, test.distribution) == (5, "chi2(5)")
    assert test.note.startswith("the LR test is conservative")
    assert "mixture=True" not in test.note
    with pytest.raises(jm.DesignError, match="here there are 2 more"):
        jm.lrtest(noise_fit("(1 | g)"), noise_fit("(1 + x + z | g)"), mixture=True)


@pytest.mark.parametrize("difference", [0.0, -5e-13, -1e-6, 1e-12])
def test_a_difference_that_is_only_rounding_gives_zero_and_p_one(difference: float) -> None:
    small = sleepstudy(INTERCEPT)
    large = with_llf(fit("sleepstudy", "Reaction ~ Days + (Days || Subject)"), float(small.llf) + difference)
    test = jm.lrtest(small, large)
    assert (test.statistic, test.p_value) == (0.0, 1.0)


def test_a_larger_model_that_fits_worse_is_reported() -> None:
    worse = with_llf(sleepstudy(), float(sleepstudy(INTERCEPT).llf) - 1.0)
    with pytest.warns(jm.ConvergenceWarning, match="at least one of the fits has not converged"):
        test = jm.lrtest(sleepstudy(INTERCEPT), worse)
    assert (test.statistic, test.p_value) == (-2.0, 1.0)
    assert "has not converged" in str(test)


def test_the_text_of_a_test_names_models_and_distribution() -> None:
    text = str(jm.lrtest(sleepstudy(), sleepstudy(INTERCEPT)))
    assert "smaller  Reaction ~ Days + (1 | Subject)" in text
    assert "chi2(2) = 42.8368, p < 0.0001" in text
    assert max(map(len, text.splitlines())) <= 79


def refusals() -> list[tuple[Any, Any, type[Exception], str]]:
    data = jm.datasets.load("sleepstudy")
    logged = data.assign(Reaction=np.log(data["Reaction"]))
    return [
        (sleepstudy(), aliased(), jm.DataError, "180 and 178 rows"),
        (sleepstudy(), quietly(INTERCEPT, logged), jm.DataError, "different values of the response"),
        (
            sleepstudy(),
            quietly("Days ~ 1 + (1 | Subject)", data),
            jm.DataError,
            r"responses \(Days and Reaction\)",
        ),
        (
            sleepstudy(),
            quietly(INTERCEPT, data.assign(w=2.0), weights="w"),
            jm.DataError,
            "different weights",
        ),
        (sleepstudy(), quietly(INTERCEPT + " + offset(Days)", data), jm.DataError, "different offsets"),
        (sleepstudy(), sleepstudy(method="ml"), jm.DataError, 'refit both with method="ml"'),
        (
            sleepstudy(),
            quietly("Reaction ~ 1 + (1 | Subject)", data),
            jm.DesignError,
            'refit both with method="ml"',
        ),
        (sleepstudy(), sleepstudy(), jm.DesignError, "both models have 6 parameters"),
        (sleepstudy(), data, jm.DataError, "results of mixed"),
    ]


@pytest.mark.parametrize("case", range(9))
def test_what_cannot_be_compared_is_refused(case: int) -> None:
    one, two, error, message = refusals()[case]
    with pytest.raises(error, match=message):
        jm.lrtest(one, two)


@pytest.mark.parametrize(
    ("small", "large", "message"),
    [
        (("(1 | g)", "x"), ("(1 + x | g)", "z"), "lacks the fixed effect x"),
        (
            ("(1 + z | g)", "x + z"),
            ("(1 + x || g) + (1 | g:h)", "x * z"),
            r"no random term for g that contains",
        ),
        (("(1 | g:h)", "x + z"), ("(1 + x | g)", "x + z"), r"no random term for g:h"),
        (("(1 + x | g)", "x + z"), ("(1 + x + z || g)", "x * z"), r"no random term for g"),
        (("homdiag(1 + x | g)", "x + z"), ("cs(1 + x + z | g)", "x + z"), r"no random term for g"),
    ],
)
def test_models_that_are_not_nested_are_refused(
    small: tuple[str, str], large: tuple[str, str], message: str
) -> None:
    one, two = noise_fit(*small), noise_fit(*large)
    with pytest.raises(jm.DesignError, match=message):
        jm.lrtest(one, two)


@pytest.mark.parametrize(
    ("small", "large", "df"),
    [
        ("homdiag(1 + x | g)", "(1 + x || g)", 1),
        ("homdiag(1 + x | g)", "cs(1 + x | g)", 1),
        ("cs(1 + x | g)", "(1 + x | g)", 1),
        ("(1 + x || g)", "(1 | g) + (0 + x | g) + (0 + z | g)", 1),
        ("(0 + x | g)", "(1 + x || g)", 1),
        ("(1 | g)", "(x | g)", 2),
    ],
)
def test_special_cases_of_a_structure_are_nested(small: str, large: str, df: int) -> None:
    assert jm.lrtest(noise_fit(small), noise_fit(large)).df == df


MACHINES = "score ~ Machine + "
COMPOUND_SYMMETRY = "(1 | Worker) + (1 | Worker:Machine)"


@pytest.mark.parametrize(
    ("small", "large", "df", "distribution"),
    [
        # Two variances fill the covariance of the three machines: nothing is tested on the boundary.
        (COMPOUND_SYMMETRY, "(0 + Machine | Worker)", 4, "chi2(4)"),
        (COMPOUND_SYMMETRY, "(Machine | Worker)", 4, "chi2(4)"),
        (COMPOUND_SYMMETRY, "(0 + C(Machine, sum) | Worker)", 4, "chi2(4)"),
        ("(1 | Worker:Machine)", "(0 + Machine | Worker)", 5, "chi2(5)"),
        ("(1 | Worker:Machine)", "(0 + Machine || Worker)", 2, "chi2(2)"),
        ("(1 | Machine:Worker)", "cs(0 + Machine | Worker)", 1, "chi2(1)"),
        ("(1 | Worker)", "cs(0 + Machine | Worker)", 1, "chibar2(01)"),
        ("(1 | Worker)", "(0 + Machine | Worker)", 5, "chi2(5)"),
    ],
)
def test_levels_within_groups_are_a_special_case_of_effects_of_the_groups(
    small: str, large: str, df: int, distribution: str
) -> None:
    data = jm.datasets.load("machines")
    test = jm.lrtest(quietly(MACHINES + small, data), quietly(MACHINES + large, data))
    assert (test.df, test.distribution) == (df, distribution)
    assert test.statistic > 0
    assert bool(test.note) == ("Machine" not in small and df > 1)


def test_compound_symmetry_written_in_two_ways_has_one_likelihood() -> None:
    data = jm.datasets.load("machines")
    variances = quietly(MACHINES + COMPOUND_SYMMETRY, data)
    exchangeable = quietly(MACHINES + "cs(0 + Machine | Worker)", data)
    assert exchangeable.llf == pytest.approx(variances.llf, rel=1e-9)
    table = jm.compare(variances, exchangeable, quietly(MACHINES + "(0 + Machine | Worker)", data))
    assert table["distribution"].tolist() == ["", "", "chi2(4)"]


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (COMPOUND_SYMMETRY, "(0 + Machine || Worker)"),
        ("(1 | Worker:Machine)", "(1 + first | Worker)"),
        ("(1 | Worker:Machine) + (1 | Worker)", "(1 + first + second || Worker)"),
        ("(1 + second | Worker:Machine)", "(0 + Machine | Worker)"),
        ("(1 | Worker:Machine)", "cs(1 + first + second | Worker)"),
    ],
)
def test_effects_that_do_not_span_the_levels_within_groups_are_not_nested(small: str, large: str) -> None:
    data = jm.datasets.load("machines")
    data = data.assign(first=(data["Machine"] == "A").astype(float), second=np.tile([0.0, 1.0, 2.0], 18))
    small_fit, large_fit = quietly(MACHINES + small, data), quietly(MACHINES + large, data)
    with pytest.raises(jm.DesignError, match="has no random term for Worker"):
        jm.lrtest(small_fit, large_fit)


def test_reparameterised_reml_fits_are_told_apart_and_ml_fits_are_nested() -> None:
    data = jm.datasets.load("machines")
    treatment = quietly("score ~ Machine + (1 | Worker)", data, method="ml")
    summed = quietly("score ~ C(Machine, sum) + (1 | Worker/Machine)", data, method="ml")
    assert jm.lrtest(treatment, summed).distribution == "chibar2(01)"
    with pytest.raises(jm.DesignError, match="different fixed effects"):
        jm.lrtest(
            quietly("score ~ Machine + (1 | Worker)", data),
            quietly("score ~ C(Machine, sum) + (1 | Worker/Machine)", data),
        )


def test_labels_of_groups_do_not_matter() -> None:
    data = jm.datasets.load("sleepstudy")
    renamed = data.assign(Subject=["s" + str(label) for label in data["Subject"]])
    assert jm.lrtest(jm.mixed(INTERCEPT, renamed), sleepstudy()).df == 2


def test_a_table_of_models_is_ordered_and_tests_neighbours() -> None:
    table = jm.compare(sleepstudy(), fit("sleepstudy", "Reaction ~ Days"), sleepstudy(INTERCEPT))
    assert table.index.tolist() == [2, 3, 1]
    assert table["num_params"].tolist() == [3, 4, 6]
    assert table["aic"].iloc[2] == pytest.approx(1755.628271958)
    assert np.isnan(table["statistic"].iloc[0])
    assert table["distribution"].tolist() == ["", "chibar2(01)", "chi2(2)"]
    assert table["statistic"].iloc[2] == pytest.approx(42.8368, abs=1e-3)


def test_models_that_are_not_nested_stand_in_the_table_without_a_test() -> None:
    table = jm.compare(noise_fit("(1 | g)", "x"), noise_fit("(1 | g)", "z"))
    assert table["p_value"].isna().all()
    assert np.isfinite(table["bic"]).all()


def test_a_table_needs_two_comparable_models() -> None:
    with pytest.raises(jm.DataError, match="two or more fits"):
        jm.compare(sleepstudy())
    with pytest.raises(jm.DataError, match="180 and 178 rows"):
        jm.compare(sleepstudy(), aliased())


@pytest.mark.parametrize(
    ("name", "formula", "method", "distribution", "statistic"),
    [
        ("mini_wright", "wm ~ 1 + (1 | id)", "ml", "chibar2(01)", 46.27),
        ("mini_wright", "wm ~ 1 + (1 | id)", "reml", "chibar2(01)", 46.96),
        ("sleepstudy", SLOPE, "reml", "chi2(3)", 150.04),
        ("egsingle", "math ~ year + size + female + (1 | schoolid/childid)", "ml", "chi2(2)", 5091.11),
    ],
)
def test_published_tests_against_the_linear_model(
    name: str, formula: str, method: str, distribution: str, statistic: float
) -> None:
    test = linear_model_test(fit(name, formula, method).estimates)
    assert test is not None
    assert (test.distribution, round(float(test.statistic), 2)) == (distribution, statistic)
    assert bool(test.note) == (test.df > 1)


def test_a_fit_without_variance_equals_the_linear_model() -> None:
    test = linear_model_test(fit("dyestuff2", "Yield ~ 1 + (1 | Batch)").estimates)
    assert test is not None
    assert (test.statistic, test.p_value) == (0.0, 1.0)
    assert linear_model_test(fit("sleepstudy", "Reaction ~ Days").estimates) is None
