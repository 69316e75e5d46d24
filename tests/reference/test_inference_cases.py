"""Inference after every stored lme4 case: lmerTest, pbkrtest, emmeans, clubSandwich, profiles."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.reference import tolerances as tol
from tests.reference.cases import HERE, Fitted, mixed_quietly, our_label, read_data, with_quantity

pytestmark = pytest.mark.reference


def with_(quantity: str) -> pytest.MarkDecorator:
    """Run the test on the cases that store a quantity, each fitted once."""
    slow = {"insteval_inter.reml"}
    marked = [
        pytest.param(case_id, marks=[pytest.mark.slow] * (case_id in slow))
        for case_id in with_quantity(quantity)
    ]
    return pytest.mark.parametrize("fitted", marked, indirect=True)


def numbers(values: object) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


# Degrees of freedom


@with_("satterthwaite")
def test_satterthwaite(fitted: Fitted) -> None:
    expected = fitted.case.expected["satterthwaite"]
    table = fitted.fit.coef_table("satterthwaite").loc[fitted.case.expected["fixef"]["names"]]
    # Computed in other parameters as well, which agrees more closely with exact derivatives.
    df = numbers(expected.get("df_independent", expected["df"]))
    np.testing.assert_allclose(table["df"], df, rtol=tol.GATE_DF)
    np.testing.assert_allclose(table["df"], numbers(expected["df"]), rtol=tol.DF)
    np.testing.assert_allclose(table["statistic"], numbers(expected["t"]), rtol=tol.STATISTIC)
    np.testing.assert_allclose(table["p_value"], numbers(expected["p"]), rtol=tol.P_VALUE, atol=tol.P_FLOOR)


@with_("kenward_roger")
def test_kenward_roger(fitted: Fitted) -> None:
    expected = fitted.case.expected["kenward_roger"]
    names = fitted.case.expected["fixef"]["names"]
    table = fitted.fit.coef_table("kenward-roger").loc[names]
    se = numbers(expected["se"])
    np.testing.assert_allclose(table["std_error"], se, rtol=tol.GATE_DF)
    np.testing.assert_allclose(table["df"], numbers(expected["df"]), rtol=tol.GATE_DF)
    np.testing.assert_allclose(table["statistic"], numbers(expected["t"]), rtol=tol.STATISTIC)
    np.testing.assert_allclose(table["p_value"], numbers(expected["p"]), rtol=tol.P_VALUE, atol=tol.P_FLOOR)
    cov = fitted.fit.fixed_inference("kenward-roger").cov
    at = [fitted.fit.frame.x_names.index(name) for name in names]
    difference = np.abs(cov[np.ix_(at, at)] - numbers(expected["vcov_adjusted"]))
    assert (difference <= tol.vcov(se)).all()


# Cluster-robust covariances


@with_("robust")
def test_robust(fitted: Fitted) -> None:
    expected, names = fitted.case.expected["robust"], fitted.case.expected["fixef"]["names"]
    for kind in ("CR0", "CR1", "CR1S", "CR2"):
        found = fitted.fit.robust(kind)
        assert (found.cluster, found.num_clusters) == (expected["cluster"], expected["nclusters"])
        se, cov = numbers(expected[kind]["se"]), numbers(expected[kind]["vcov"])
        np.testing.assert_allclose(found.coef_table().loc[names, "std_error"], se, rtol=tol.GATE_ROBUST)
        difference = np.abs(found.cov_params().loc[names, names] - cov)
        assert (difference <= tol.GATE_ROBUST * np.outer(se, se)).all(axis=None)
    table, tested = found.coef_table().loc[names], expected["CR2_satterthwaite"]
    np.testing.assert_allclose(table["df"], numbers(tested["df"]), rtol=tol.GATE_DF)
    np.testing.assert_allclose(table["p_value"], numbers(tested["p"]), rtol=tol.P_VALUE, atol=tol.P_FLOOR)


# Analysis of variance


@with_("anova_satterthwaite")
def test_analysis_of_variance_with_satterthwaites_df(fitted: Fitted) -> None:
    _assert_anova(fitted, "satterthwaite", fitted.case.expected["anova_satterthwaite"])


@with_("anova_kenward_roger")
def test_analysis_of_variance_of_kenward_and_roger(fitted: Fitted) -> None:
    _assert_anova(fitted, "kenward-roger", fitted.case.expected["anova_kenward_roger"])


def _assert_anova(fitted: Fitted, ddf: str, expected: dict[str, list[float | None]]) -> None:
    """All columns of lmerTest's type III table; a term that it leaves empty is empty here."""
    table = fitted.fit.anova(3, ddf)
    terms = [str(term) for term in expected["term"]]
    assert sorted(table.index) == sorted(terms)
    assert list(table.index) == list(fitted.fit.frame.term_labels)
    table = table.loc[terms]
    dropped = np.array([value is None for value in expected["F"]])
    assert (table["num_df"] == np.where(dropped, 0, np.nan_to_num(numbers(expected["numdf"])))).all()
    for column, key, tolerance in [
        ("sum_sq", "sumsq", tol.STATISTIC),
        ("mean_sq", "meansq", tol.STATISTIC),
        ("den_df", "dendf", tol.DF),
        ("statistic", "F", tol.STATISTIC),
    ]:
        np.testing.assert_allclose(table[column], numbers(expected[key]), rtol=tolerance, err_msg=column)
    np.testing.assert_allclose(table["p_value"], numbers(expected["p"]), rtol=tol.P_VALUE, atol=tol.P_FLOOR)


# Marginal means


@with_("emmeans")
def test_marginal_means_and_their_differences(fitted: Fitted) -> None:
    for stored in fitted.case.expected["emmeans"]:
        what = f"{stored['specs']} by {stored['by']}, {stored['ddf']}"
        means = fitted.fit.emmeans(stored["specs"], by=stored["by"], ddf=stored["ddf"].lower())
        table, own = means.table, stored["means"]
        for row, levels in enumerate(own["levels"]):
            assert {name: str(table[name][row]) for name in levels} == levels, what
        se = numbers(own["se"])
        assert (np.abs(table["estimate"] - numbers(own["est"])) <= tol.fixef(se)).all(), what
        np.testing.assert_allclose(table["std_error"], se, rtol=tol.GATE_DF, err_msg=what)
        np.testing.assert_allclose(table["df"], numbers(own["df"]), rtol=tol.GATE_DF, err_msg=what)
        for name, limit in (("conf_low", "lower"), ("conf_high", "upper")):
            assert (np.abs(table[name] - numbers(own[limit])) <= 1e-3 * se).all(), what
        expected = stored["pairs"]
        for adjust, key in (("none", "p"), ("tukey", "p_tukey")):
            pairs = means.pairs(adjust=adjust).table
            assert pairs["contrast"].tolist() == expected["contrast"], what
            if stored["by"] is not None:
                assert pairs[stored["by"]].tolist() == expected["by"], what
            error = numbers(expected["se"])
            assert (np.abs(pairs["estimate"] - numbers(expected["est"])) <= tol.fixef(error)).all(), what
            np.testing.assert_allclose(pairs["std_error"], error, rtol=tol.GATE_DF, err_msg=what)
            np.testing.assert_allclose(pairs["df"], numbers(expected["df"]), rtol=tol.GATE_DF, err_msg=what)
            np.testing.assert_allclose(
                pairs["statistic"], numbers(expected["t"]), rtol=tol.STATISTIC, err_msg=what
            )
            np.testing.assert_allclose(
                pairs["p_value"], numbers(expected[key]), rtol=tol.P_VALUE, atol=tol.P_FLOOR, err_msg=what
            )


# Variance explained


@with_("r2_nakagawa")
def test_nakagawas_r_squared(fitted: Fitted) -> None:
    expected, table = fitted.case.expected["r2_nakagawa"], fitted.fit.r2()
    for part in ("marginal", "conditional"):
        assert abs(table.loc[part, "estimate"] - expected[part]) <= tol.GATE_R2, part


@with_("icc")
def test_the_shares_of_r_squared_are_those_of_the_variances_that_fixed_effects_leave(fitted: Fitted) -> None:
    expected, table = fitted.case.expected["icc"], fitted.fit.r2()["estimate"]
    left = 1 - table["marginal"]
    for label, share in expected["by_group"].items():
        assert abs(table[our_label(fitted, label)] / left - share) <= tol.GATE_R2, label


ANOVA_TYPES = json.loads((HERE / "anova_types.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("stored", ANOVA_TYPES, ids=lambda stored: stored["id"])
def test_the_three_types_of_unbalanced_data(stored: dict[str, Any]) -> None:
    data = read_data(stored["file"]).drop(index=stored["dropped"])
    data = data.assign(**{name: data[name].astype(str) for name in stored["factors"]})
    data = data.assign(**{name: pd.Categorical(data[name]) for name in stored["categorical"]})
    fit, _ = mixed_quietly(stored["formula"], data, contrasts=stored["contrasts"])
    for expected in stored["tables"]:
        table = fit.anova(expected["type"], expected["ddf"].lower())
        assert list(table.index) == expected["term"]
        assert list(table["num_df"]) == expected["numdf"]
        for column, key in [("sum_sq", "sumsq"), ("den_df", "dendf"), ("statistic", "F")]:
            np.testing.assert_allclose(table[column], expected[key], rtol=tol.GATE_DF, err_msg=column)
        np.testing.assert_allclose(table["p_value"], expected["p"], rtol=tol.P_VALUE, atol=tol.P_FLOOR)


# Profile likelihood


@with_("profile_ci")
def test_profile_likelihood_intervals(fitted: Fitted) -> None:
    expected = fitted.case.expected["profile_ci"]
    found = fitted.fit.conf_int(method="profile")
    assert len(found) == len(expected["names"])
    for name, *limits in zip(expected["names"], expected["lower"], expected["upper"], strict=True):
        ours = found.loc[_profiled(fitted, name)].to_numpy()
        theirs = np.array([np.nan if limit is None else limit for limit in limits])
        near = np.abs(ours - theirs) <= tol.GATE_PROFILE * (ours[1] - ours[0])
        assert (near | np.isnan(theirs)).all(), name


def _profiled(fitted: Fitted, name: str) -> str:
    """Our name of a parameter of lme4's profiles: sd_x|g, cor_z.x|g, sigma, or a coefficient."""
    kind, _, rest = name.partition("_")
    if name == "sigma":
        return "sd(Residual)"
    if kind not in ("sd", "cor"):
        return name
    effects, _, group = rest.partition("|")
    label = our_label(fitted, group)
    if kind == "sd":
        return f"sd({effects} | {label})"
    second, first = effects.split(".")
    return f"corr({first}, {second} | {label})"


# Degrees of freedom of the design

# `summary(lme(...))$tTable[, "DF"]` of nlme 3.1-162, from models with these fixed effects and groups; the
# intercept, which nlme counts as a column within the innermost groups, is left out.
NLME_DF = {
    "orthodont_sex.reml": {"age": 79, "SexFemale": 25, "age:SexFemale": 79},
    "sleepstudy_int.reml": {"Days": 161},
    "sleepstudy_slope.ml": {"Days": 161},
    "pig_slope.reml": {"week": 383},
    "machines_slope.reml": {"MachineB": 46, "MachineC": 46},
}


@pytest.mark.parametrize(
    ("fitted", "expected"), [pytest.param(*pair, id=pair[0]) for pair in NLME_DF.items()], indirect=["fitted"]
)
def test_between_within_degrees_of_freedom_are_nlmes(fitted: Fitted, expected: dict[str, float]) -> None:
    df = fitted.fit.coef_table("between-within")["df"]
    assert df.drop("(Intercept)").to_dict() == expected
