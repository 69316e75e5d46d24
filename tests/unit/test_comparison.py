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
    mixture = jm.lrtest(sleepstudy(), fit("sleepstudy", "Reaction ~ Days + (Days || Subject)"), mixture=True)
    assert str(mixture) == str(test)


def test_fixed_effects_are_tested_by_chi_squared() -> None:
    test = jm.lrtest(noise_fit("(1 | g)", "1"), noise_fit("(1 | g)"))
    assert (test.df, test.distribution, test.note) == (2, "chi2(2)", "")


def test_several_more_effects_are_conservative_and_have_a_mixture() -> None:
    test = jm.lrtest(noise_fit("(1 | g)"), noise_fit("(1 + x + z | g)"))
    assert (test.df, test.distribution) == (5, "chi2(5)")
    assert test.note.startswith("the LR test is conservative")
    assert "mixture=True" in test.note
    mixture = jm.lrtest(noise_fit("(1 | g)"), noise_fit("(1 + x + z | g)"), mixture=True)
    assert (mixture.statistic, mixture.distribution) == (test.statistic, "chibar2(2 to 5)")
    # Between the mixtures of one variance and of all parameters (Silvapulle & Sen 2005, section 3.5).
    low = (stats.chi2.sf(test.statistic, 2) + stats.chi2.sf(test.statistic, 3)) / 2
    assert low < mixture.p_value < test.p_value
    assert "20,000 draws (seed 0)" in mixture.note
    assert "mixture=True" not in mixture.note
    assert mixture.weights is None


def test_two_variances_have_weights_that_are_told() -> None:
    test = jm.lrtest(noise_fit("(1 | g)"), noise_fit("(1 + x + z || g)"), mixture=True)
    assert test.weights is not None
    assert test.weights.index.tolist() == [0, 1, 2]
    assert test.weights.sum() == pytest.approx(1, abs=1e-12)
    tails = [stats.chi2.sf(test.statistic, df) for df in (1, 2)]
    assert test.p_value == pytest.approx(test.weights[1] * tails[0] + test.weights[2] * tails[1], rel=1e-9)
    parts = [f"{weight:.3g} chi2({df})" for df, weight in test.weights.items()]
    assert f"{' + '.join(parts)} = {test.statistic:.4f}" in str(test)


def test_the_seed_of_a_mixture_is_the_callers() -> None:
    pair = noise_fit("(1 | g)"), noise_fit("(1 + x + z | g)")
    assert "(seed 7)" in jm.lrtest(*pair, mixture=True, seed=7).note
    with pytest.raises(jm.DataError, match="seed must be a non-negative integer"):
        jm.lrtest(*pair, mixture=True, seed=-1)
    with pytest.raises(jm.DataError, match="simulate=999"):
        jm.lrtest(*pair, seed=7)


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
        (sleepstudy(), sleepstudy(), jm.DesignError, "both models have 6 parameters"),
        (sleepstudy(), data, jm.DataError, "results of mixed"),
    ]


@pytest.mark.parametrize("case", range(8))
def test_what_cannot_be_compared_is_refused(case: int) -> None:
    one, two, error, message = refusals()[case]
    with pytest.raises(error, match=message):
        jm.lrtest(one, two)


def test_reml_fits_with_other_fixed_effects_are_fitted_anew_by_ml() -> None:
    found = jm.lrtest(noise_fit("(1 | g)", "1", "reml"), noise_fit("(1 | g)", "x + z", "reml"))
    direct = jm.lrtest(noise_fit("(1 | g)", "1"), noise_fit("(1 | g)"))
    assert found.statistic == pytest.approx(direct.statistic, rel=1e-9)
    assert (found.df, found.distribution) == (2, "chi2(2)")
    assert found.table["method"].tolist() == ["ml", "ml"]
    assert found.table["aic"].tolist() == pytest.approx(direct.table["aic"].tolist(), rel=1e-10)
    assert "fitted anew by maximum likelihood (ML)" in " ".join(str(found).split())
    assert "anew" not in direct.note


def test_other_codings_of_one_set_of_fixed_effects_are_fitted_anew_by_ml() -> None:
    data = jm.datasets.load("machines")
    pair = [
        quietly(f"score ~ {fixed} + {random}", data)
        for fixed, random in (("Machine", "(1 | Worker)"), ("C(Machine, sum)", "(1 | Worker/Machine)"))
    ]
    test = jm.lrtest(*pair)
    direct = jm.lrtest(*(quietly(fit.formula, data, method="ml") for fit in pair))
    assert test.distribution == direct.distribution == "chibar2(01)"
    assert test.statistic == pytest.approx(direct.statistic, rel=1e-9)
    assert "anew" in test.note


def test_weights_are_kept_by_a_new_fit() -> None:
    data = noise().assign(w=np.tile([1.0, 2.0, 3.0, 0.5], 48))
    reml = [quietly(f"y ~ {fixed} + (1 | g)", data, weights="w") for fixed in ("x", "x + z")]
    ml = [quietly(fit.formula, data, weights="w", method="ml") for fit in reml]
    assert jm.lrtest(*reml).statistic == pytest.approx(jm.lrtest(*ml).statistic, rel=1e-9)


def test_reml_fits_with_other_fixed_effects_can_be_simulated() -> None:
    test = jm.lrtest(
        noise_fit("(1 | g)", "x", "reml"), noise_fit("(1 | g)", "x + z", "reml"), simulate=50, seed=1
    )
    assert test.null is not None
    assert test.null.n_ok == 50
    assert "anew" in test.note
    assert test.distribution == "simulated"


def test_several_fits_are_tested_one_after_the_other() -> None:
    fits = [sleepstudy(), fit("sleepstudy", "Reaction ~ Days"), sleepstudy(INTERCEPT)]
    table = jm.lrtest(*fits)
    assert isinstance(table, pd.DataFrame)
    assert table.index.tolist() == [2, 3, 1]
    for row, pair in ((1, (fits[1], fits[2])), (2, (fits[2], fits[0]))):
        test = jm.lrtest(*pair)
        shown = table.iloc[row]
        assert (shown["statistic"], shown["df"], shown["p_value"]) == (test.statistic, test.df, test.p_value)
        assert shown["distribution"] == test.distribution
    assert "mixture=True" in table.attrs["note"]
    mixture = jm.lrtest(*fits, mixture=True)
    assert mixture["distribution"].tolist() == ["", "chibar2(01)", "0.5 chi2(1) + 0.5 chi2(2)"]
    assert "note" not in mixture.attrs
    assert jm.compare(*fits, mixture=True).equals(mixture)


def test_each_of_several_fits_must_be_nested_in_the_next() -> None:
    with pytest.raises(jm.DesignError, match="lacks the fixed effect x"):
        jm.lrtest(noise_fit("(1 | g)", "1"), noise_fit("(1 | g)", "x"), noise_fit("(1 + x | g)", "z"))
    with pytest.raises(jm.DesignError, match="both models have 4 parameters"):
        jm.lrtest(noise_fit("(1 | g)", "1"), noise_fit("(1 | g)", "x"), noise_fit("(1 | g)", "z"))


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


def test_a_table_of_reml_fits_with_other_fixed_effects_is_of_ml_fits() -> None:
    table = jm.compare(*(noise_fit("(1 | g)", fixed, "reml") for fixed in ("1", "x", "x + z")))
    direct = jm.compare(*(noise_fit("(1 | g)", fixed) for fixed in ("1", "x", "x + z")))
    assert table["method"].tolist() == ["ml"] * 3
    columns = ["num_params", "llf", "aic", "bic", "statistic", "df", "p_value"]
    assert np.allclose(table[columns], direct[columns], rtol=1e-8, equal_nan=True)
    assert "anew" in table.attrs["note"]
    assert "note" not in direct.attrs


def test_a_table_of_models_prints_formulas_numbers_and_notes() -> None:
    lines = repr(jm.compare(sleepstudy(), fit("sleepstudy", "Reaction ~ Days"), sleepstudy(INTERCEPT)))
    assert max(map(len, lines.splitlines())) <= 79
    assert lines.splitlines()[:3] == [
        "Models fitted by restricted maximum likelihood (REML)",
        "  2  Reaction ~ Days",
        "  3  Reaction ~ Days + (1 | Subject)",
    ]
    row = next(line for line in lines.splitlines() if line.startswith("1 "))
    assert row.split() == ["1", "6", "-871.8141", "1755.628", "1774.786", "42.8368", "chi2(2)", "<0.001"]
    assert "Note: model 1: the LR test is conservative" in lines
    assert "..." not in lines


def test_models_that_are_not_nested_are_refused() -> None:
    with pytest.raises(jm.DesignError, match=r"not nested: the larger model lacks .* jm.compare\(a, b\)"):
        jm.lrtest(noise_fit("(1 | g)", "x"), noise_fit("(1 + x + z | g)", "z"))


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
