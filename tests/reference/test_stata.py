"""Outputs of Stata's `mixed` that are in print, compared digit by digit.

Where the program that printed them stopped a little short of its own optimum, or had rounded data, the last
digits cannot be reproduced by an exact optimum; the tests concerned say by how much they are out.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed import datasets

pytestmark = pytest.mark.reference

WEAK = 1e-4  # relative: digits beyond it depend on where Stata's iterations stop


def assert_printed(value: float, *printed: str) -> None:
    """Round the value to as many decimals as were printed, and compare the digits."""
    for text in printed:
        decimals = len(text.partition(".")[2])
        assert f"{value:.{decimals}f}" == f"{float(text):.{decimals}f}", f"{value!r} does not print as {text}"


def assert_printed_row(row: pd.Series, estimate: str, std_error: str, low: str, high: str) -> None:
    """Compare estimate, standard error and limits of a row of standard deviations with what was printed."""
    assert_printed(row["sd_or_corr"], estimate)
    assert_printed(row["sd_or_corr_std_error"], std_error)
    assert_printed(row["sd_or_corr_conf_low"], low)
    assert_printed(row["sd_or_corr_conf_high"], high)


def parameter(fit: Any, group: str, effect: str | None = None, effect2: str | None = None) -> pd.Series:
    rows = fit.varcorr[fit.varcorr["group"] == group]
    if effect is not None:
        rows = rows[rows["effect"] == effect]
        rows = rows[rows["effect2"].isna()] if effect2 is None else rows[rows["effect2"] == effect2]
    assert len(rows) == 1
    return rows.iloc[0]


# --- Mini-Wright peak flow (Bland & Altman 1986) --------------------------------------------------------


@cache
def mini_wright(method: str) -> tuple[Any, Any]:
    data = datasets.load("mini_wright")
    return jm.mixed("wm ~ 1 + (1 | id)", data, method=method), jm.mixed("wm ~ 1", data, method=method)


def test_mini_wright_by_maximum_likelihood() -> None:
    fit, linear = mini_wright("ml")
    assert_printed(fit.llf, "-184.57839")
    assert_printed(fit.params["(Intercept)"], "453.91")
    assert_printed(fit.bse["(Intercept)"], "26.19")
    low, high = fit.conf_int().loc["(Intercept)"]
    assert_printed(low, "402.59")
    assert_printed(high, "505.24")
    assert_printed_row(parameter(fit, "id", "(Intercept)"), "107.05", "18.68", "76.04", "150.69")
    assert_printed_row(parameter(fit, "Residual"), "19.91", "3.41", "14.23", "27.87")
    test = jm.lrtest(linear, fit)
    assert_printed(test.statistic, "46.27")
    assert (test.df, test.distribution) == (1, "chibar2(01)")


def test_mini_wright_by_restricted_maximum_likelihood() -> None:
    fit, linear = mini_wright("reml")
    assert_printed(fit.llf, "-180.37921")
    assert_printed(fit.params["(Intercept)"], "453.91")
    assert_printed(fit.bse["(Intercept)"], "26.99")
    low, high = fit.conf_int().loc["(Intercept)"]
    assert_printed(low, "401.01")
    assert_printed(high, "506.82")
    row = parameter(fit, "id", "(Intercept)")
    assert_printed_row(row, "110.40", "19.84", "77.63", "157.00")
    # Printed as 110.39706 and 19.910826; the closed form gives 110.397036 and 19.910831.
    assert row["sd_or_corr"] == pytest.approx(110.39706, rel=3e-7)
    assert fit.sigma == pytest.approx(19.910826, rel=3e-7)
    assert_printed(jm.lrtest(linear, fit).statistic, "46.96")


def test_mini_wright_by_kenward_and_roger() -> None:
    row = mini_wright("reml")[0].coef_table("kenward-roger").loc["(Intercept)"]
    assert_printed(row["df"], "16.00")
    assert_printed(row["std_error"], "26.99")
    assert_printed(row["statistic"], "16.82")
    assert_printed(row["conf_low"], "396.69")
    assert_printed(row["conf_high"], "511.13")


def test_mini_wright_intraclass_correlation() -> None:
    fit, _ = mini_wright("reml")
    row = fit.icc().loc["id"]
    assert_printed(row["estimate"], ".9684963")
    assert_printed(row["std_error"], ".015274")
    assert_printed(row["conf_low"], ".9201564")
    assert_printed(row["conf_high"], ".9879528")


def test_mini_wright_predicted_effects() -> None:
    fit, _ = mini_wright("reml")
    printed = (
        "63.55 -30.91 59.13 -17.63 45.35 156.05 -41.24 -67.81 192.95 -15.17 -27.47 159.00 -207.04 17.80 "
        "-187.36 -92.41 -6.80"
    )
    modes = fit.ranef()["id"]["(Intercept)"]
    assert list(modes.index.astype(str)) == [str(i + 1) for i in range(17)]
    for mode, text in zip(modes, printed.split(), strict=True):
        assert_printed(mode, text)


def test_mini_wright_standard_errors_of_the_predicted_effects() -> None:
    known = mini_wright("ml")[0].ranef_se(beta="known")["id"]["(Intercept)"]
    for value in known:
        assert_printed(value, "13.958868")
    # After REML, 13.972648 is printed: the standard error of mean + effect, with the mean estimated.
    fit, _ = mini_wright("reml")
    effect, residual = parameter(fit, "id", "(Intercept)")["estimate"], fit.sigma**2
    shrinkage = 2 * effect / (2 * effect + residual)
    assert shrinkage == pytest.approx(0.98399606, abs=2e-8)  # closed form: .983996046
    known = fit.ranef_se(beta="known")["id"]["(Intercept)"].iloc[0]
    assert np.hypot(known, (1 - shrinkage) * fit.bse["(Intercept)"]) == pytest.approx(13.972648, rel=1e-6)
    assert_printed(fit.predictions()["std_error"].iloc[0], "13.972648")


def test_standard_errors_with_the_mean_estimated_are_those_of_reses_after_reml() -> None:
    # xtmixed, reml and predict, reses print 2.13 for these data, lme4's conditional variance gives 1.32
    # (stats.stackexchange.com/questions/48254).
    g = [12, 8, 22, 10, 10, 6, 8, 4, 14, 6, 2, 22, 12, 7, 24, 14, 8, 4, 5, 6, 14, 5, 5, 16]
    data = pd.DataFrame({"id": [str(i % 12 + 1) for i in range(24)], "g": g})
    fit = jm.mixed("g ~ 1 + (1 | id)", data, method="reml")
    for value in fit.ranef_se(beta="estimated")["id"]["(Intercept)"]:
        assert_printed(value, "2.13")
    for value in fit.ranef_se(beta="known")["id"]["(Intercept)"]:
        assert_printed(value, "1.32")


# --- GCSE scores in inner London -------------------------------------------------------------------------
# The file that is public was rounded after Stata's output was made: log-likelihoods are out by 0.015, and
# estimates by up to 1e-4 of their standard errors. Likelihood-ratio statistics agree to the last digit.

ROUNDED_LOGLIK = 0.02


@cache
def gcse(formula: str) -> Any:
    data = datasets.load("exam")
    data = data.assign(y=10 * data["normexam"], x1=10 * data["standLRT"])
    return jm.mixed(formula, data, method="ml")


def assert_close(values: dict[str, tuple[float, float]]) -> None:
    for what, (ours, printed) in values.items():
        assert ours == pytest.approx(printed, rel=WEAK), what


def assert_coefficient(fit: Any, name: str, estimate: float, std_error: float) -> None:
    assert abs(fit.params[name] - estimate) <= WEAK * (abs(estimate) + std_error)
    assert fit.bse[name] == pytest.approx(std_error, rel=WEAK)


def assert_sd_row(row: pd.Series, *printed: float) -> None:
    """Compare a standard deviation or correlation, its standard error and, if printed, its limits."""
    names = ("sd_or_corr", "sd_or_corr_std_error", "sd_or_corr_conf_low", "sd_or_corr_conf_high")
    assert_close({name: (row[name], value) for name, value in zip(names, printed, strict=False)})


def test_gcse_null_model() -> None:
    fit = gcse("y ~ 1 + (1 | school)")
    assert (fit.nobs, dict(fit.ngroups)) == (4059, {"school": 65})
    sizes = fit.group_sizes().loc["school"]
    assert (sizes["min"], round(sizes["mean"], 1), sizes["max"]) == (2, 62.4, 198)
    assert fit.llf == pytest.approx(-14851.502, abs=ROUNDED_LOGLIK)
    assert_coefficient(fit, "(Intercept)", -0.1317107, 0.5362734)
    limits = fit.conf_int().loc["(Intercept)"]
    np.testing.assert_allclose(limits, [-1.182787, 0.9193659], atol=WEAK * 0.5362734 * 2)
    assert_sd_row(parameter(fit, "school", "(Intercept)"), 4.106565, 0.3999182, 3.393004, 4.970191)
    assert_sd_row(parameter(fit, "Residual"), 9.207356, 0.1030214, 9.007636, 9.411505)
    assert_printed(jm.lrtest(gcse("y ~ 1"), fit).statistic, "498.72")


def test_gcse_random_intercept() -> None:
    fit = gcse("y ~ x1 + (1 | school)")
    assert fit.llf == pytest.approx(-14024.799, abs=ROUNDED_LOGLIK)
    assert fit.tvalues["x1"] ** 2 == pytest.approx(2042.57, rel=WEAK)
    assert_coefficient(fit, "x1", 0.5633697, 0.0124654)
    np.testing.assert_allclose(fit.conf_int().loc["x1"], [0.5389381, 0.5878014], rtol=WEAK)
    assert_coefficient(fit, "(Intercept)", 0.0238706, 0.4002255)
    assert_sd_row(parameter(fit, "school", "(Intercept)"), 3.035269, 0.3052513, 2.492261, 3.696587)
    assert_sd_row(parameter(fit, "Residual"), 7.521481, 0.0841759)
    assert_printed(jm.lrtest(gcse("y ~ x1"), fit).statistic, "403.27")


def test_gcse_random_slope() -> None:
    fit = gcse("y ~ x1 + (1 + x1 | school)")
    assert fit.llf == pytest.approx(-14004.613, abs=ROUNDED_LOGLIK)
    assert fit.tvalues["x1"] ** 2 == pytest.approx(779.79, rel=WEAK)
    assert_coefficient(fit, "x1", 0.556729, 0.0199368)
    np.testing.assert_allclose(fit.conf_int().loc["x1"], [0.5176535, 0.5958044], rtol=WEAK)
    assert_coefficient(fit, "(Intercept)", -0.115085, 0.3978346)
    assert_sd_row(parameter(fit, "school", "x1"), 0.1205646, 0.0189827, 0.0885522, 0.1641498)
    assert_sd_row(parameter(fit, "school", "(Intercept)"), 3.007444, 0.3044148, 2.466258, 3.667385)
    correlation = parameter(fit, "school", "(Intercept)", "x1")
    assert_sd_row(correlation, 0.4975415, 0.1487427, 0.1572768, 0.7322094)
    assert_sd_row(parameter(fit, "Residual"), 7.440787, 0.0839482, 7.278058, 7.607155)


def test_gcse_likelihood_ratio_tests_of_the_random_slope() -> None:
    slope = gcse("y ~ x1 + (1 + x1 | school)")
    against_linear = jm.lrtest(gcse("y ~ x1"), slope)
    assert_printed(against_linear.statistic, "443.64")
    assert (against_linear.df, against_linear.distribution) == (3, "chi2(3)")
    against_intercept = jm.lrtest(gcse("y ~ x1 + (1 | school)"), slope)
    assert_printed(against_intercept.statistic, "40.37")
    assert (against_intercept.df, against_intercept.distribution) == (2, "chi2(2)")


# --- Published by several authors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "formula", "method", "printed"),
    [
        ("sleepstudy", "Reaction ~ Days + (Days | Subject)", "reml", "1743.628"),
        ("sleepstudy", "Reaction ~ Days + (Days | Subject)", "ml", "1751.939"),
        ("sleepstudy", "Reaction ~ Days + (Days || Subject)", "ml", "1752.003"),
        ("sleepstudy", "Reaction ~ Days + (1 | Subject)", "reml", "1786.465"),
        ("dyestuff", "Yield ~ 1 + (1 | Batch)", "reml", "319.6543"),
        ("dyestuff", "Yield ~ 1 + (1 | Batch)", "ml", "327.3271"),
        ("pastes", "strength ~ 1 + (1 | batch/cask)", "ml", "247.9945"),
        ("pastes", "strength ~ 1 + (1 | batch/cask)", "reml", "246.9907"),
        ("pig", "weight ~ week + (1 | id)", "ml", "-1014.9268"),
        ("pig", "weight ~ week + (week || id)", "ml", "-869.03825"),
        ("oats", "yield ~ nitro + (1 | Block/Variety)", "reml", "-296.5209"),
        ("machines", "score ~ Machine + (1 | Worker/Machine)", "reml", "-107.8438"),
    ],
)
def test_published_criteria(name: str, formula: str, method: str, printed: str) -> None:
    # Bates et al. (2015), Bates's book, Stata's manual, Pinheiro & Bates (2000). Negative: a log-likelihood.
    fit = jm.mixed(formula, datasets.load(name), method=method)
    assert_printed(fit.llf if printed.startswith("-") else fit.deviance, printed)


@pytest.mark.parametrize(
    ("formula", "printed"),
    [
        (
            "weight ~ week + (1 | id)",
            {
                ("id", "(Intercept)"): (14.81751, 3.124226),
                ("Residual", None): (4.383264, 0.3163348),
            },
        ),
        (
            "weight ~ week + (week || id)",
            {
                ("id", "week"): (0.3680668, 0.0801181),
                ("id", "(Intercept)"): (6.756364, 1.543503),
            },
        ),
    ],
)
def test_variances_of_the_pig_data_in_statas_manual(
    formula: str, printed: dict[tuple[str, str | None], tuple[float, float]]
) -> None:
    fit = jm.mixed(formula, datasets.load("pig"), method="ml")
    for (group, effect), (estimate, std_error) in printed.items():
        row = parameter(fit, group, effect)
        # Stata's iterations stopped 2e-6 short of the optimum, as lme4 polished with Newton steps shows.
        assert row["estimate"] == pytest.approx(estimate, rel=3e-6)
        assert row["std_error"] == pytest.approx(std_error, rel=3e-6)
