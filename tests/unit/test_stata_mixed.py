"""Statements of `mixed` become the right models, and their tables hold the right numbers."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed import residuals
from jaxmixed.errors import ConvergenceWarning, StataError
from jaxmixed.stata_commands import StataOutput
from jaxmixed.stata_mixed import search_warnings
from jaxmixed.stata_tables import PARAMETER

WITHIN: dict[str, Any] = {"time": "time", "group": ("school", "room")}

SAME = 1e-6
"""Relative: numbers of a table have seven digits."""


def scores() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    school, room = np.divmod(np.repeat(np.arange(36), 6), 3)
    n = len(school)
    x = rng.normal(size=n)
    group = rng.integers(1, 4, n)
    y = (
        2 + x + 0.5 * (group == 2) + rng.normal(0, 1.0, 12)[school] + rng.normal(0, 0.7, 12)[school] * x
        + rng.normal(0, 0.8, 36)[3 * school + room] + rng.normal(size=n)
    )  # fmt: skip
    data = pd.DataFrame({"y": y, "x": x, "group": group, "school": school + 1.0, "room": room + 1.0})
    data["time"] = np.tile(np.arange(1, 7), 36)
    data["girl"] = (np.arange(n) % 5 < 2).astype(int)
    data["arm"] = (school % 2) + 1
    data.loc[3, "x"] = np.nan
    data.loc[10, "y"] = np.nan
    return data


@cache
def run(command: str) -> StataOutput:
    return jm.stata(command, scores(), echo=False)


def row(output: StataOutput, label: str) -> list[float]:
    """Numbers of the first line of the table of random effects with a label."""
    lines = [line for line in str(output).splitlines() if line[: PARAMETER + 2].strip(" |") == label]
    return [float(text) for text in re.findall(r"-?(?:\d+\.?\d*|\.\d+)(?:e[+-]\d+)?", lines[0].split("|")[1])]


@pytest.mark.parametrize(
    ("command", "formula", "arguments"),
    [
        ("mixed y x || school:", "y ~ x + (1 | school)", {}),
        ("mixed y x || school: x", "y ~ x + (1 + x || school)", {}),
        ("mixed y x || school: x, cov(un) reml", "y ~ x + (1 + x | school)", {"method": "reml"}),
        ("mixed y x || school: x, cov(id)", "y ~ x + (1 + x | school)", {"covariance": "identity"}),
        ("mixed y x || school: x, cov(ex)", "y ~ x + (1 + x | school)", {"covariance": "exchangeable"}),
        ("mixed y x || school: x, nocons", "y ~ x + (0 + x | school)", {}),
        ("mixed y x, nocons || school:", "y ~ 0 + x + (1 | school)", {}),
        ("mixed y x || school: || room:", "y ~ x + (1 | school/room)", {}),
        ("mixed y || school: x || room:", "y ~ 1 + (1 + x || school) + (1 | school:room)", {}),
        ("mixed y || school: || school: x, nocons", "y ~ 1 + (1 | school) + (0 + x | school)", {}),
        ("mixed y x || _all: R.group || school:", "y ~ x + (1 | group) + (1 | school)", {}),
        ("mixed y || school: R.group", "y ~ 1 + (1 | school:group)", {}),
        ("mixed y c.x##i.group || school:", "y ~ x * factor(group) + (1 | school)", {}),
        ("mixed y ib2.group#c.x || school:", "y ~ 1 + factor(group):x + (1 | school)", {}),
        ("mixed y x if girl == 1 in 1/150 || school:", "subset", {}),
    ],
)
def test_statements_are_the_models_of_lme4s_notation(
    command: str, formula: str, arguments: dict[str, str]
) -> None:
    data = scores()
    if formula == "subset":
        data, formula = data.iloc[:150].query("girl == 1"), "y ~ x + (1 | school)"
    expected = jm.mixed(formula, data, **{"method": "ml", **arguments})
    fit = run(command).fit
    assert fit.llf == pytest.approx(expected.llf, abs=1e-7)
    assert fit.nobs == expected.nobs
    assert fit.estimates.num_params == expected.estimates.num_params


def test_slopes_come_first_and_the_constant_last() -> None:
    output = run("mixed y x || school: x, cov(un)")
    fit = output.fit
    cov = np.asarray(fit.random_terms[0].cov)
    assert row(output, "var(x)")[0] == pytest.approx(cov[1, 1], rel=SAME)
    assert row(output, "var(_cons)")[0] == pytest.approx(cov[0, 0], rel=SAME)
    assert row(output, "cov(x,_cons)")[0] == pytest.approx(cov[1, 0], rel=SAME)
    table = str(output).split("\n")
    names = [line.split("|")[0].strip() for line in table if "|" in line]
    assert names.index("x") < names.index("_cons")
    assert names.index("var(x)") < names.index("var(_cons)") < names.index("cov(x,_cons)")


def test_one_variance_and_one_covariance_stand_for_all_of_an_exchangeable_level() -> None:
    output = run("mixed y x || school: x, cov(ex)")
    cov = np.asarray(output.fit.random_terms[0].cov)
    assert row(output, "var(x _cons)")[0] == pytest.approx(cov[0, 0], rel=SAME)
    assert row(output, "cov(x _cons)")[0] == pytest.approx(cov[0, 1], abs=1e-7)


def test_levels_are_printed_outermost_first_with_their_sizes() -> None:
    output = str(run("mixed y x || school: || room:"))
    assert "                 school |         12         16       17.8         18\n" in output
    assert "                   room |         36          5        5.9          6\n" in output
    assert output.index("school: Identity") < output.index("room: Identity")


def test_residuals_of_two_times_have_the_errors_of_a_bivariate_normal_sample() -> None:
    # Var(s_11) = 2 s_11^2 / n and Var(s_12) = (s_11 s_22 + s_12^2) / n: Anderson (2003), section 3.6.
    data = jm.datasets.load("mini_wright")
    output = jm.stata("mixed wm i.occasion || id:, noconstant residuals(unstructured, t(occasion))", data)
    pairs = data.pivot(index="id", columns="occasion", values="wm").to_numpy(dtype=float)
    s, n = np.cov(pairs.T, bias=True), len(pairs)
    expected = {
        "var(e1)": (s[0, 0], 2 * s[0, 0] ** 2 / n),
        "var(e2)": (s[1, 1], 2 * s[1, 1] ** 2 / n),
        "cov(e1,e2)": (s[0, 1], (s[0, 0] * s[1, 1] + s[0, 1] ** 2) / n),
    }
    for label, (value, variance) in expected.items():
        own = row(output, label)
        assert own[:2] == pytest.approx([value, np.sqrt(variance)], rel=1e-5)
        if label.startswith("var"):
            half = 1.959963985 * np.sqrt(variance) / value
            assert own[2:] == pytest.approx([value * np.exp(-half), value * np.exp(half)], rel=1e-5)
        else:
            half = 1.959963985 * np.sqrt(variance)
            assert own[2:] == pytest.approx([value - half, value + half], rel=1e-5)
    assert "id:                  (empty) |" in str(output)


def test_exchangeable_residuals_are_a_random_intercept() -> None:
    one = run("mixed y x || school:, noconstant residuals(exchangeable)")
    other = run("mixed y x || school:")
    assert one.fit.llf == pytest.approx(other.fit.llf, abs=1e-7)
    covariance, variance = row(one, "cov(e)"), row(other, "var(_cons)")
    assert covariance[:2] == pytest.approx(variance[:2], rel=1e-5)
    assert row(one, "var(e)")[0] == pytest.approx(variance[0] + row(other, "var(Residual)")[0], rel=1e-5)


@pytest.mark.parametrize(
    ("option", "structure", "labels"),
    [
        ("ar 1, t(time)", residuals.AR(1, **WITHIN), {"rho": "phi1"}),
        ("ar 2, t(time)", residuals.AR(2, **WITHIN), {"phi1": "phi1", "phi2": "phi2"}),
        ("ma, t(time)", residuals.MA(1, **WITHIN), {"theta1": "theta1"}),
        ("exponential, t(time)", residuals.Exponential(**WITHIN), {"rho": "rho"}),
        ("toeplitz 2, t(time)", residuals.Toeplitz(2, **WITHIN), {"rho1": "rho1", "rho2": "rho2"}),
    ],
)
def test_residual_structures_are_within_the_innermost_groups(
    option: str, structure: residuals.ResidualStructure, labels: dict[str, str]
) -> None:
    output = run(f"mixed y x || school: || room:, noconstant residuals({option})")
    expected = jm.mixed("y ~ x + (1 | school)", scores(), method="ml", residuals=structure)
    assert output.fit.llf == pytest.approx(expected.llf, abs=1e-6)
    table = expected.residual_table()
    for label, name in labels.items():
        columns = ["estimate", "std_error", "conf_low", "conf_high"]
        assert row(output, label) == pytest.approx(table.loc[name, columns].tolist(), rel=1e-4)
    assert row(output, "var(e)")[0] == pytest.approx(expected.sigma**2, rel=1e-5)


def test_residual_variances_by_a_variable_have_a_row_for_each_of_its_values() -> None:
    output = run("mixed y x || school:, residuals(independent, by(girl)) stddeviations")
    table = output.fit.residual_table()
    columns = ["estimate", "std_error", "conf_low", "conf_high"]
    for value in (0, 1):
        expected = table.loc[f"sd[{value}]", columns].tolist()
        assert row(output, f"{value}: sd(e)") == pytest.approx(expected, rel=SAME)
    assert "Residual: Independent,       |\n    by girl                  |\n" in str(output)


def test_strata_of_residuals_have_parameters_of_their_own() -> None:
    output = run("mixed y x || school:, noconstant residuals(exchangeable, by(arm))")
    labels = ["1: var(e)", "1: cov(e)", "2: var(e)", "2: cov(e)"]
    assert len({row(output, label)[0] for label in labels}) == 4


def test_satterthwaites_method_has_the_expected_information_unless_told_otherwise() -> None:
    kroger = run("mixed y x i.group || school:, reml dfmethod(kroger)")
    expected = run("mixed y x i.group || school:, reml dfmethod(satterthwaite)")
    observed = run("mixed y x i.group || school:, reml dfmethod(sat, oim)")
    lines = r"min = +([0-9.,]+)\n.*avg = +([0-9.,]+)\n.*max = +([0-9.,]+)\n"
    # The degrees of freedom of one coefficient are Satterthwaite's; standard errors are not adjusted.
    own, other = (re.search("DF: +" + lines, str(o)).groups() for o in (expected, kroger))  # type: ignore[union-attr]
    assert own == other
    assert expected.fit.bse["x"] == pytest.approx(row_of(expected, "x")[1], rel=SAME)
    adjusted = kroger.fit.coef_table("kenward-roger").loc["x", "std_error"]
    assert row_of(kroger, "x")[1] == pytest.approx(adjusted, rel=SAME)
    table = observed.fit.coef_table("satterthwaite")
    assert f"min = {table['df'].min():.2f}" in str(observed).replace("  ", " ").replace("  ", " ")


def row_of(output: StataOutput, label: str) -> list[float]:
    """Numbers of a row of the table of coefficients."""
    lines = [line for line in str(output).splitlines() if line.split("|")[0].strip() == label]
    return [float(text) for text in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", lines[0].split("|")[1])]


def test_robust_standard_errors_are_those_of_the_sandwich_of_top_level_clusters() -> None:
    output = run("mixed y x || school: || room:, vce(robust)")
    expected = output.fit.robust("CR1").coef_table()
    assert row_of(output, "x")[1] == pytest.approx(expected.loc["x", "std_error"], rel=1e-5)
    text = str(output)
    assert "Mixed-effects regression " in text
    assert "Log pseudolikelihood" in text
    assert "(Std. err. adjusted for 12 clusters in school)\n" in text
    assert "LR test" not in text


def test_frequency_weights_are_copies() -> None:
    data = jm.datasets.load("mini_wright").assign(one=1, two=2)
    copies = pd.concat([data, data.assign(id=data["id"].astype(int) + 100)])
    weighted = jm.stata("mixed wm [fweight=one] || id:, fweight(two)", data)
    assert str(weighted) == str(jm.stata("mixed wm || id:", copies))


def test_collinear_effects_are_omitted_with_a_note() -> None:
    data = scores().assign(z=lambda d: 2 * d["x"])
    output = jm.stata("mixed y x z || school:", data)
    assert str(output).startswith("note: z omitted because of collinearity.\n")
    assert "\n           z |          0  (omitted)\n" in str(output)
    assert "e(N)" in output.results


def test_a_variance_of_zero_is_said_below_the_tables() -> None:
    rng = np.random.default_rng(1)
    data = pd.DataFrame({"g": np.repeat(np.arange(10), 5), "y": rng.normal(size=50)})
    data["y"] -= data.groupby("g")["y"].transform("mean")
    text = str(jm.stata("mixed y || g:", data))
    assert "                  var(_cons) |          0          .             .           .\n" in text
    assert "LR test vs. linear model: chibar2(01) = 0.00          Prob >= chibar2 = 1.0000\n" in text
    assert "\nWarning: standard-error calculation has failed\n" in text
    assert "the variance of _cons is estimated as zero" in text


def test_a_search_that_failed_is_said() -> None:
    with pytest.warns(ConvergenceWarning):
        fit = jm.mixed("y ~ x + (1 + x | school)", scores(), max_iterations=1)
    assert search_warnings(fit, [])[1] == "Warning: convergence not achieved"


def test_mixed_without_a_model_prints_the_last_one_again() -> None:
    output = run("quietly mixed y x || school: x\nmixed, stddeviations level(90) nofetable noheader")
    again = str(run("mixed y x || school: x, stddeviations level(90) nofetable noheader"))
    assert str(output) == again
    assert "[90% conf. interval]" in again


def test_results_are_kept_under_statas_names() -> None:
    output = run("mixed y x || school:")
    assert output.results["e(N)"] == 214
    assert output.results["e(cmd)"] == "mixed"
    assert output.results["e(ll)"] == output.fit.llf
    assert output.results["e(chi2)"] == pytest.approx((output.fit.params["x"] / output.fit.bse["x"]) ** 2)
    assert output.results["e(df_c)"] == 1


def test_groups_keep_the_labels_of_their_values() -> None:
    data = scores().assign(school=lambda d: pd.Categorical("s" + d["school"].astype(int).astype(str)))
    fit = jm.stata("mixed y x || school:", data).fit
    assert set(fit.ranef()["school"].index) == set(data["school"])
    assert fit.llf == pytest.approx(run("mixed y x || school:").fit.llf, abs=1e-9)


def test_a_labelled_variable_that_is_both_an_effect_and_a_grouping_is_a_number_as_an_effect() -> None:
    data = scores().assign(arm=lambda d: pd.Categorical(np.where(d["arm"] == 1, "a", "b")))
    output = jm.stata("mixed y arm || school:, residuals(independent, by(arm))", data)
    assert row_of(output, "arm")[0] == pytest.approx(output.fit.params["arm"], rel=SAME)
    assert "arm" in output.fit.params


def test_the_data_are_not_changed() -> None:
    data = scores()
    before = data.copy()
    jm.stata("mixed y x i.group || school: || room:", data)
    pd.testing.assert_frame_equal(data, before)


@pytest.mark.parametrize(
    ("command", "piece", "problem"),
    [
        ("mixed", "mixed", "needs a response"),
        ("mixed y x || scool:", "scool", "did you mean 'school'"),
        ("mixed y x || school: x, cov(unstrct)", "unstrct", "did you mean 'unstructured'"),
        ("mixed y x || school:, remll", "remll", "not a supported option"),
        ("mixed y x || school: || _all: R.time", "_all", "outermost"),
        ("mixed y x || school: R.time, cov(un)", "un", "one variance"),
        ("mixed y x || school: x R.time", "R.time", "stands alone"),
        ("mixed y x || school:, mle reml", "reml", "exclude"),
        ("mixed y x || school:, dfmethod(kroger)", "dfmethod", "needs the option reml"),
        ("mixed y x || school:, reml dfmethod(anova)", "anova", "residual, repeated"),
        ("mixed y x || school:, reml dfmethod(kr, oim)", "oim", "expected information only"),
        ("mixed y x || school:, residuals(ar 1)", "residuals", "needs t"),
        ("mixed y x || school:, residuals(arma 1, t(time))", "arma", "takes one of"),
        ("mixed y x || school:, residuals(exchangeable 2)", "2", "does not take"),
        ("mixed y x, residuals(ind)", "residuals", "needs a level"),
        ("mixed y x || school:, vce(robust) reml", "reml", "maximum likelihood"),
        ("mixed y x || school:, vce(cluster room)", "vce", "outermost level"),
        ("mixed y x || school:, vce(bootstrap)", "bootstrap", "oim, robust"),
        ("mixed y x [pw=time] || school:, reml", "reml", "maximum likelihood"),
        ("mixed y x [pw=time] || school:, fweight(time)", "fweight", "one kind"),
        ("mixed y x || school:, pwscale(size)", "pwscale", "sampling weights"),
        ("mixed y x [pw=time] || school: || room:, pwscale(size)", "pwscale", "two levels"),
        ("mixed y x || school:, level(5)", "level", "10 to 99.99"),
        ("mixed y x if y > 1000 || school:", "mixed", "no rows are left"),
    ],
)
def test_errors_point_at_the_piece_and_say_what_is_supported(command: str, piece: str, problem: str) -> None:
    with pytest.raises(StataError, match=re.escape(problem)) as refused:
        jm.stata(command, scores())
    assert refused.value.line == 1
    assert refused.value.column == command.rindex(piece) + 1 if piece != "mixed" else 1
