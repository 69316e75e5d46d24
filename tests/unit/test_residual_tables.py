"""What a fit with correlated residuals shows: tables, summary, words, equations, document, certificate."""

import json
import re
from functools import cache

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.document import document
from jaxmixed.equations import equations, index_key
from jaxmixed.report_words import model_in_words
from jaxmixed.residual_tables import summary_tables
from jaxmixed.results import MixedResults

# Differences of standard errors by the delta method in two ways are rounding.
ROUNDING = 1e-6


@cache
def orthodont() -> pd.DataFrame:
    data = jm.datasets.load("orthodont")
    return data.assign(visit=((data["age"] - 8) / 2).astype(int))


@cache
def by_sex() -> MixedResults:
    """Without random effects: AR(1) with parameters of its own for each sex."""
    return jm.mixed("distance ~ age * Sex", orthodont(), residuals="ar1(visit | Sex/Subject)")


@cache
def unequal() -> MixedResults:
    """With a random intercept: a residual variance for each sex, nlme's varIdent."""
    residuals = jm.residuals.Independent(variance_by="Sex")
    return jm.mixed("distance ~ age * Sex + (1 | Subject)", orthodont(), residuals=residuals)


def test_parameters_and_table_have_the_same_names_and_estimates() -> None:
    fit = by_sex()
    assert list(fit.residual_parameters.index) == ["phi1[Male]", "phi1[Female]", "sd[Male]", "sd[Female]"]
    table = fit.residual_table()
    assert list(table.columns) == ["estimate", "std_error", "conf_low", "conf_high"]
    assert (table["estimate"] == fit.residual_parameters).all()
    assert ((table["conf_low"] < table["estimate"]) & (table["estimate"] < table["conf_high"])).all()
    assert fit.residual_parameters["sd[Male]"] == pytest.approx(fit.sigma, rel=1e-12)
    narrow = fit.residual_table(0.5)
    assert (narrow["conf_high"] < table["conf_high"]).all()
    with pytest.raises(jm.DataError, match="level"):
        fit.residual_table(95)


def test_a_fit_with_independent_residuals_has_no_residual_parameters() -> None:
    fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    assert fit.residual_parameters.empty
    assert fit.residual_table().empty
    assert document(fit)["residual"] is None
    assert "Residuals:" not in str(fit.summary())


def test_the_strata_of_a_model_with_parameters_by_stratum_are_separate_models() -> None:
    # With the fixed effects by stratum as well, nothing is shared: each stratum's own fit has its estimates.
    data, whole = orthodont(), by_sex().residual_table()
    own = jm.mixed(
        "distance ~ age", data[data.Sex == "Male"], residuals="ar1(visit | Subject)"
    ).residual_table()
    np.testing.assert_allclose(own.loc["phi1"], whole.loc["phi1[Male]"], rtol=1e-5)


def test_the_residual_variance_is_that_of_the_first_level() -> None:
    fit = unequal()
    first = fit.residual_table().loc["sd[Male]"]
    row = fit.varcorr.iloc[-1]
    assert row["group"] == "Residual"
    columns = ["sd_or_corr", "sd_or_corr_std_error", "sd_or_corr_conf_low", "sd_or_corr_conf_high"]
    np.testing.assert_allclose(row[columns].astype(float), first, rtol=ROUNDING)
    assert "Residual (Male)" in str(fit.summary())


def test_tidy_lists_residual_parameters_last() -> None:
    table = unequal().tidy()
    assert table["effect"].tolist() == ["fixed"] * 4 + ["random"] * 2 + ["residual"] * 2
    last = table.iloc[-1]
    assert (last["group"], last["term"]) == ("Residual", "sd[Female]")
    assert last["conf_high"] == unequal().residual_table()["conf_high"].iloc[-1]
    assert np.isnan(last["statistic"])


def test_groups_of_correlated_rows_are_counted_as_groups() -> None:
    fit = by_sex()
    assert fit.ngroups == {"Subject": 27}
    assert fit.group_sizes().loc["Subject"].tolist() == [27, 4, 4, 4]
    assert "27 Subject" in repr(fit)
    assert unequal().ngroups == {"Subject": 27}


def test_the_summary_says_the_structure_its_groups_and_its_patterns() -> None:
    text = " ".join(str(by_sex().summary()).split())
    assert "Linear model with correlated residuals fitted by restricted maximum" in text
    assert "27 groups of 4 rows, 2 patterns" in text
    assert re.search(r"Residuals: AR\(1\) in visit within Subject.* Sex", text)
    table = next(own for own in by_sex().summary().tables if own.title == "Residual parameters")
    assert [row[0] for row in table.rows] == list(by_sex().residual_parameters.index)
    assert table.rows[0][1] == f"{by_sex().residual_parameters['phi1[Male]']:.7f}"
    assert "Residuals: AR(1)" in by_sex().summary()._repr_html_()
    assert "Linear mixed model" in unequal().summary().title
    assert "variances by Sex" in str(unequal().summary())


def test_the_test_against_the_linear_model_counts_residual_parameters() -> None:
    linear = jm.mixed("distance ~ age * Sex", orthodont())
    for fit, df in ((by_sex(), 3), (unequal(), 2)):
        test = document(fit)["linear_model_test"]
        assert (test["df"], test["distribution"]) == (df, f"chi2({df})")
        assert test["statistic"] == pytest.approx(2 * (fit.llf - linear.llf), rel=1e-9)
        assert fit.num_params == linear.num_params + df
    assert document(by_sex())["linear_model_test"]["note"] == ""
    assert "conservative" in document(unequal())["linear_model_test"]["note"]


def test_the_document_has_the_structure_and_its_parameters() -> None:
    found = document(by_sex())["residual"]
    assert json.loads(json.dumps(found)) == found
    assert (found["structure"], found["group"], found["groups"], found["time"]) == (
        "AR(1)",
        "Subject",
        27,
        "visit",
    )
    assert (found["by"], found["strata"]) == ("Sex", ["Male", "Female"])
    assert found["parameters"][1] == {
        "parameter": "phi1[Female]",
        **by_sex().residual_table().loc["phi1[Female]"].to_dict(),
    }


def test_words_and_equations_know_the_structure() -> None:
    words = " ".join(model_in_words(by_sex(), "none"))
    assert "The residuals of a Subject have the covariance structure AR(1) in visit within Subject." in words
    assert "Every Sex has residual parameters of its own." in words
    assert "independent" not in words
    assert "found in" in words
    assert "Their standard deviations differ between the levels of Sex." in " ".join(
        model_in_words(unequal(), "none")
    )
    text = [re.sub(r"<[^>]+>| ", "", line.mathml) for line in equations(by_sex())]
    assert "Cor(εsj,εtj)=φ|s−t|" in text[1]
    assert index_key(by_sex()) == "i: row; j: Subject; s, t: values of visit within Subject"
    assert "Cor" not in equations(unequal())[-1].mathml


def test_the_certificate_names_residual_parameters() -> None:
    found = by_sex().certificate(starts=2)
    assert list(found.parameters.index) == [
        *("residual: phi1[Male]", "residual: phi1[Female]"),
        "residual: sd ratio[Female]",
    ]
    assert not found.parameters["on_boundary"].any()
    assert found.agreement is not None
    assert found.agreement.same_parameters.all()
    assert "an optimum" in str(found)
    assert found.weakest is not None
    assert found.weakest.names == (
        "ln sd(Residual)",
        "atanh phi1[Male]",
        "atanh phi1[Female]",
        "ln sd[Female]",
    )


def test_functions_of_residual_parameters_have_the_standard_errors_of_the_table() -> None:
    fit = by_sex()
    found = fit.nlcom(lambda p: {name: p.residual(name) for name in fit.residual_parameters.index})
    table = fit.residual_table()
    np.testing.assert_allclose(found["estimate"], table["estimate"], rtol=1e-12)
    np.testing.assert_allclose(found["std_error"], table["std_error"], rtol=ROUNDING)
    with pytest.raises(jm.DataError, match=r"no residual parameter 'rho'.*phi1\[Female\]"):
        fit.nlcom(lambda p: p.residual("rho"))


def test_shares_of_the_variance_take_the_mean_residual_variance() -> None:
    fit = unequal()
    sd, between = fit.residual_parameters, fit.random_terms[0].cov.iloc[0, 0]
    residual = (64 * sd["sd[Male]"] ** 2 + 44 * sd["sd[Female]"] ** 2) / 108
    expected = pytest.approx(between / (between + residual), rel=1e-10)
    assert fit.icc()["estimate"].item() == expected
    assert "mean of the residual variances" in fit.icc().attrs["note"]
    assert fit.design_effect().loc["Subject", "icc"] == pytest.approx(
        between / (between + residual), rel=1e-10
    )
    share = fit.r2()["estimate"]
    ratio = (1 - share["conditional"]) / share["Subject"]
    assert ratio == pytest.approx(residual / between, rel=1e-10)
    with pytest.raises(jm.DesignError, match="no random effects"):
        by_sex().icc()


def test_of_many_correlations_the_summary_shows_a_matrix() -> None:
    data = jm.datasets.load("depression")
    fit = jm.mixed("change ~ baseline", data, residuals="us(visit | arm/patient)", method="ml")
    tables = summary_tables(fit.estimates, 0.95)
    assert [own.title.split(" (")[0] for own in tables] == [
        "Residual correlations, placebo",
        "Residual correlations, drug",
    ]
    parameters = fit.residual_parameters
    row = tables[1].rows[2]
    assert row[0] == "W4"
    assert float(row[1]) == pytest.approx(parameters["sd[drug,W4]"], rel=1e-4)
    shown = [float(cell) for cell in row[2:4]]
    expected = [parameters[f"corr[{visit},W4][drug]"] for visit in ("W1", "W2")]
    assert shown == pytest.approx(expected, abs=6e-4)
    assert max(map(len, str(fit.summary()).splitlines())) <= 79
