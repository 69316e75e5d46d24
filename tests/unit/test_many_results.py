"""Tables of many fits: one row per model, and in it what the single fit reports."""

import warnings
from functools import cache

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.errors import ConvergenceWarning
from jaxmixed.many_results import ManyResults
from tests.support.fits import quietly

SLEEP = "Reaction ~ Days + (Days | Subject)"
TIGHT = 1e-9
"""Tables are the same functions of the same estimates, which agree to about 1e-12."""


@cache
def fit(formula: str = SLEEP, method: str = "reml") -> jm.MixedResults:
    return jm.mixed(formula, jm.datasets.load("sleepstudy"), method=method)


@cache
def responses() -> pd.DataFrame:
    return fit().simulate(8, seed=1)


@cache
def many(formula: str = SLEEP, method: str = "reml") -> ManyResults:
    return fit(formula, method).refit_many(responses())


@cache
def with_failures() -> ManyResults:
    Y = responses().copy()
    Y["sim_2"] = 1.0
    Y.loc[4, "sim_5"] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return fit().refit_many(Y)


@cache
def singles(formula: str = SLEEP, method: str = "reml") -> tuple[jm.MixedResults, ...]:
    data = jm.datasets.load("sleepstudy")
    return tuple(
        quietly(formula, data.assign(Reaction=responses()[name]), method=method) for name in responses()
    )


def test_models_are_named_after_the_columns_of_the_responses():
    assert many().names.tolist() == [f"sim_{i}" for i in range(1, 9)]
    for table in (many().params, many().bse, many().glance(), many().to_frame(), many().coef_table("Days")):
        assert table.index.equals(many().names)


def test_coefficients_have_the_tables_of_the_single_fits():
    for position, single in enumerate(singles()):
        expected = single.coef_table(level=0.9)
        for name in ("(Intercept)", "Days"):
            own = many().coef_table(name, level=0.9, adjust="none").iloc[position]
            columns = list(expected.columns)
            np.testing.assert_allclose(own[columns], expected.loc[name], rtol=TIGHT)
            assert own["p_adjusted"] == own["p_value"]
        limits = many().conf_int(0.9).iloc[position]
        np.testing.assert_allclose(limits[("Days", "conf_low")], expected.loc["Days", "conf_low"], rtol=TIGHT)
        np.testing.assert_allclose(
            limits[("Days", "conf_high")], expected.loc["Days", "conf_high"], rtol=TIGHT
        )
        np.testing.assert_allclose(many().tvalues.iloc[position], single.tvalues, rtol=TIGHT)
        np.testing.assert_allclose(many().pvalues.iloc[position], single.pvalues, rtol=1e-6)


def test_variance_parameters_have_the_tables_of_the_single_fits():
    table = many().variance_table(0.9)
    assert len(table) == 8 * 4
    numbers = [name for name in table.columns if table[name].dtype.kind == "f"]
    assert len(numbers) == 8
    for position, (name, single) in enumerate(zip(many().names, singles(), strict=True)):
        own = table[table["model"] == name].reset_index(drop=True)
        assert own.index[0] == 0
        expected = single.variance_table(0.9)
        for column in ("group", "effect", "effect2"):
            assert own[column].fillna("").tolist() == expected[column].fillna("").tolist()
        np.testing.assert_allclose(own[numbers], expected[numbers], rtol=1e-7)
        np.testing.assert_allclose(many().theta.iloc[position], single.theta, rtol=1e-6, atol=1e-8)


def test_tidy_has_the_rows_of_the_single_fits():
    table = many().tidy(level=0.9)
    for name, single in zip(many().names, singles(), strict=True):
        own = table[table["model"] == name].reset_index(drop=True)
        expected = single.tidy(level=0.9)
        for column in ("effect", "group", "term"):
            assert own[column].fillna("").tolist() == expected[column].fillna("").tolist()
        numbers = [
            column for column in expected.columns if expected[column].dtype.kind == "f" and column != "df"
        ]
        np.testing.assert_allclose(own[numbers], expected[numbers], rtol=1e-6)


def test_p_values_are_adjusted_for_each_coefficient_over_the_models():
    from scipy.stats import false_discovery_control

    p = many().pvalues
    table = many().tidy()
    for name in p:
        expected = false_discovery_control(p[name])
        np.testing.assert_allclose(many().coef_table(name)["p_adjusted"], expected, rtol=1e-12)
        own = table[table["term"] == name]["p_adjusted"]
        np.testing.assert_allclose(own, expected, rtol=1e-12)
        np.testing.assert_allclose(many().adjusted_pvalues()[name], expected, rtol=1e-12)
    assert (
        many().coef_table("Days", adjust="bonferroni")["p_adjusted"] == (8 * p["Days"]).clip(upper=1)
    ).all()


def test_models_without_estimates_do_not_count_in_the_adjustment():
    table = with_failures().coef_table("Days", adjust="bonferroni")
    assert np.flatnonzero(table["p_adjusted"].isna()).tolist() == [1, 4]
    known = table.dropna()
    np.testing.assert_allclose(known["p_adjusted"], np.minimum(6 * known["p_value"], 1))


def test_glance_has_the_facts_of_the_single_fits():
    table = many().glance()
    for position, single in enumerate(singles()):
        expected = single.glance().iloc[0]
        for name in ("nobs", "method", "num_params", "converged", "is_singular"):
            assert table[name].iloc[position] == expected[name]
        for name in ("sigma", "llf", "deviance", "aic", "bic"):
            np.testing.assert_allclose(table[name].iloc[position], expected[name], rtol=TIGHT)


def test_the_wide_table_has_all_parameters_with_their_standard_errors():
    wide, varcorr = many().to_frame(), many().varcorr
    assert list(wide.columns[:6]) == ["converged", "is_singular", "reason", "nobs", "llf", "sigma"]
    np.testing.assert_array_equal(wide["estimate[Days]"], many().params["Days"])
    np.testing.assert_array_equal(wide["std_error[Days]"], many().bse["Days"])
    np.testing.assert_array_equal(
        wide["std_error[Subject: cov((Intercept), Days)]"], varcorr["std_error"].iloc[1::4]
    )
    np.testing.assert_array_equal(wide["estimate[var(Residual)]"], varcorr["estimate"].iloc[3::4])


# Likelihood-ratio tests

REDUCED = "Reaction ~ Days + (1 | Subject)"


@pytest.mark.parametrize(
    ("method", "large", "small", "mixture"),
    [
        ("reml", SLEEP, REDUCED, False),
        ("reml", SLEEP, REDUCED, True),
        ("reml", REDUCED, "Reaction ~ Days", False),
        ("ml", SLEEP, "Reaction ~ 1 + (Days | Subject)", False),
    ],
)
def test_lrtest_is_the_test_of_each_pair_of_fits(method, large, small, mixture):
    one, two = many(large, method), many(small, method)
    table = one.lrtest(two, mixture=mixture)
    pd.testing.assert_frame_equal(table, two.lrtest(one, mixture=mixture))
    for position, (a, b) in enumerate(zip(singles(large, method), singles(small, method), strict=True)):
        expected = jm.lrtest(a, b, mixture=mixture)
        own = table.iloc[position]
        np.testing.assert_allclose(own["statistic"], expected.statistic, rtol=0, atol=1e-8)
        assert own["df"] == expected.df
        np.testing.assert_allclose(own["p_value"], expected.p_value, rtol=1e-6)
        assert table.attrs["distribution"] == expected.distribution
    np.testing.assert_array_equal(
        table["p_adjusted"], jm.multiplicity.adjusted_p_values(table["p_value"], "fdr_bh")
    )


def test_lrtest_has_no_number_where_a_fit_failed():
    table = with_failures().lrtest(many(REDUCED))
    assert table["statistic"].isna().to_numpy().nonzero()[0].tolist() == [1, 4]


@pytest.mark.slow
def test_lrtest_refuses_other_data_other_criteria_and_models_that_are_not_nested():
    shuffled = responses().copy()
    shuffled["sim_3"] += 1
    with pytest.raises(jm.DataError, match=r"1 of the models .* 2, from 0.* other responses"):
        many().lrtest(fit(REDUCED).refit_many(shuffled))
    with pytest.raises(jm.DataError, match="different names"):
        many().lrtest(fit(REDUCED).refit_many(responses().to_numpy()))
    with pytest.raises(jm.DesignError, match="REML fits with different fixed effects"):
        many().lrtest(many("Reaction ~ 1 + (Days | Subject)"))
    with pytest.raises(jm.DataError, match="one fit is ML and the other REML"):
        many().lrtest(many(REDUCED, "ml"))
    with pytest.raises(jm.DesignError, match="neither is a special case"):
        many().lrtest(many())
    with pytest.raises(jm.DesignError, match="not nested"):
        many(SLEEP, "ml").lrtest(many("Reaction ~ Days + I(Days^2) + (1 | Subject)", "ml"))
    with pytest.raises(jm.DataError, match="ManyResults, not"):
        many().lrtest(fit())


def test_lrtest_refuses_models_with_other_weights():
    data = jm.datasets.load("sleepstudy").assign(w=1.0 + np.arange(180) % 2)
    weighted = jm.fit_many("~ Days + (1 | Subject)", data, responses(), weights="w")
    with pytest.raises(jm.DataError, match="different weights"):
        many().lrtest(weighted)


# Output


@pytest.mark.parametrize("what", ["tidy", "glance", "wide"])
def test_tables_go_to_arrow_and_parquet_and_come_back(what, tmp_path):
    results = with_failures()
    table = results.to_arrow(what)
    results.to_parquet(tmp_path / "x.parquet", what)
    read = pd.read_parquet(tmp_path / "x.parquet")
    assert read.columns.tolist() == table.column_names
    expected = {"tidy": results.tidy(), "glance": results.glance(), "wide": results.to_frame()}[what]
    assert len(read) == len(expected)
    np.testing.assert_array_equal(read["model"].unique(), results.names)
    for name in expected:
        if expected[name].dtype.kind == "f":
            np.testing.assert_array_equal(read[name], expected[name])
    with pytest.raises(jm.DataError, match="tables are"):
        results.to_arrow("wyde")


def test_the_summary_counts_and_gives_reasons():
    text = with_failures().summary()
    assert "8 linear mixed models fitted by restricted maximum likelihood (REML)" in text
    assert "Converged: 6, singular: 0, not converged: 0, without estimates: 2" in text
    assert "1 × the response is constant" in text
    assert "(Intercept)" in text
    assert max(map(len, text.splitlines())) <= 80
    assert repr(with_failures()) == f"<ManyResults: {SLEEP}; REML, 8 models, 2 without estimates>"


def test_results_are_read_only_and_tables_are_copies():
    with pytest.raises(AttributeError, match="read-only"):
        many().names = None
    for table in (many().params, many().coef_table("Days")):
        table.iloc[0, 0] = -1
    assert many().params.iloc[0, 0] > 0
    assert many().coef_table("Days").iloc[0, 0] > 0


def test_an_unknown_coefficient_or_method_is_refused_by_name():
    with pytest.raises(jm.DataError, match=r"no coefficient 'days'; they are '\(Intercept\)', 'Days'"):
        many().coef_table("days")
    with pytest.raises(jm.DataError, match="ddf is 'kr'"):
        many().coef_table("Days", ddf="kr")
    with pytest.raises(jm.DataError, match="level is 95"):
        many().conf_int(95)
    with pytest.raises(jm.DataError, match="'fdr'"):
        many().tidy(adjust="fdr")
