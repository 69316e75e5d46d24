"""Intraclass correlations: Stata's printed digits, nested and crossed groupings, refusals."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.icc import intraclass_correlation
from jaxmixed.nonlinear import Parameters
from tests.support.fits import fit, quietly, sleepstudy

EXACT = 1e-8
"""Relative difference of two exact routes to one number."""

COLUMNS = ["estimate", "std_error", "conf_low", "conf_high"]


def test_the_published_intraclass_correlation_of_the_peak_flow_meter() -> None:
    row = fit("mini_wright", "wm ~ 1 + (1 | id)").icc().loc["id"]
    printed = {"estimate": 0.9684963, "std_error": 0.015274, "conf_low": 0.9201564, "conf_high": 0.9879528}
    for name, value in printed.items():
        assert row[name] == pytest.approx(value, abs=6e-7), name


@pytest.mark.parametrize(
    ("name", "formula", "method", "estimate", "std_error"),
    [
        ("sleepstudy", "Reaction ~ Days + (1 | Subject)", "ml", 0.5760288109227, 0.09212585395598),
        ("pig", "weight ~ week + (1 | id)", "reml", 0.7750520335876, 0.03933671410037),
        ("dyestuff", "Yield ~ 1 + (1 | Batch)", "reml", 0.4184874412757, 0.216204992798),
    ],
)
def test_reference_values_and_standard_errors(
    name: str, formula: str, method: str, estimate: float, std_error: float
) -> None:
    (row,) = fit(name, formula, method).icc().itertuples()
    assert row.estimate == pytest.approx(estimate, abs=1e-5)
    assert row.std_error == pytest.approx(std_error, rel=1e-3)


def test_an_inner_grouping_accumulates_the_outer_variances() -> None:
    found = fit("egsingle", "math ~ year + size + female + (1 | schoolid/childid)", "ml")
    table, shares = found.icc(), found.icc(kind="share")
    assert list(table.index) == ["schoolid", "schoolid:childid"]
    assert table.loc["schoolid", "estimate"] == pytest.approx(0.1458578157781, abs=1e-4)
    assert table.loc["schoolid:childid", "estimate"] == pytest.approx(0.7086034282463, abs=1e-4)
    assert shares.loc["schoolid:childid", "estimate"] == pytest.approx(0.5627456124682, abs=1e-4)
    assert (table["conf_low"] < table["estimate"]).all()
    assert (table["estimate"] < table["conf_high"]).all()


def test_with_slopes_the_value_holds_at_zero_and_says_so() -> None:
    table = sleepstudy().icc()
    variances = sleepstudy().varcorr["estimate"]
    expected = variances[0] / (variances[0] + variances[3])
    assert table.loc["Subject", "estimate"] == pytest.approx(expected)
    assert table.attrs["note"] == "at zero of the covariates that have random effects"
    assert "Note: at zero of the covariates" in repr(table)
    assert "Note: at zero of the covariates" in str(table._repr_html_())


def test_the_note_of_a_random_intercept_model_is_empty() -> None:
    assert fit("pig", "weight ~ week + (1 | id)").icc().attrs == {}


def test_a_variance_of_zero_has_no_standard_error() -> None:
    row = fit("dyestuff2", "Yield ~ 1 + (1 | Batch)").icc().loc["Batch"]
    assert row["estimate"] == 0.0
    assert row[["std_error", "conf_low", "conf_high"]].isna().all()


def test_a_common_variance_counts_as_that_of_the_intercept() -> None:
    found = fit("sleepstudy", "Reaction ~ Days + (Days | Subject)", covariance="identity")
    common, residual = found.varcorr["estimate"]
    assert found.icc().loc["Subject", "estimate"] == pytest.approx(common / (common + residual))


def test_a_linear_model_is_refused() -> None:
    with pytest.raises(jm.DesignError, match="linear model has no groups"):
        fit("sleepstudy", "Reaction ~ Days").icc()


def test_random_effects_without_an_intercept_are_refused() -> None:
    with pytest.raises(jm.DesignError, match="random effects of Worker have no intercept"):
        fit("machines", "score ~ Machine + (0 + Machine | Worker)").icc()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(jm.DataError, match="kind='correlation'"):
        sleepstudy().icc(kind="total")  # type: ignore[arg-type]


def test_weights_are_noted() -> None:
    data = jm.datasets.load("sleepstudy").assign(w=2.0)
    table = jm.mixed("Reaction ~ Days + (1 | Subject)", data, weights="w").icc()
    assert table.attrs["note"] == "for rows of weight 1"


def test_the_table_is_a_data_frame_of_floats() -> None:
    table = sleepstudy().icc()
    assert isinstance(table, pd.DataFrame)
    assert (table.dtypes == np.float64).all()
    assert table.index.name == "group"


def test_crossed_groupings_have_shares_only() -> None:
    found = fit("egsingle", "math ~ year + size + female + (1 | schoolid/childid)", "ml")
    outer, inner = sorted(found.frame.groups, key=lambda group: len(group.levels))
    crossed = replace(outer, codes=np.arange(found.nobs) % len(outer.levels), label="school")
    groups = tuple(crossed if group is outer else inner for group in found.frame.groups)
    frame = replace(found.frame, groups=groups)
    terms = tuple(
        replace(t, group="school" if t.group == "schoolid" else t.group) for t in found.estimates.terms
    )
    estimates = replace(found.estimates, terms=terms)
    with pytest.raises(jm.DesignError, match=r"school and schoolid:childid are crossed.*kind='share'"):
        intraclass_correlation(frame, estimates)
    shares = intraclass_correlation(frame, estimates, "share")["estimate"]
    np.testing.assert_allclose(shares, found.icc(kind="share")["estimate"])


# At chosen covariates


@cache
def nested_slopes() -> jm.MixedResults:
    """Slopes in two nested groupings."""
    rng = np.random.default_rng(3)
    school, child = np.repeat(np.arange(15), 20), np.repeat(np.arange(75), 4)
    year = np.tile(np.arange(4.0), 75)
    a, b = rng.normal(size=(15, 2)) @ [[1, 0.3], [0, 0.5]], rng.normal(size=(75, 2)) @ [[1, -0.2], [0, 0.4]]
    effect = a[school, 0] + b[child, 0] + (a[school, 1] + b[child, 1]) * year
    data = {"y": year + effect + rng.normal(size=300), "year": year, "school": school, "child": child}
    return quietly("y ~ year + (year | school/child)", data)


def test_slopes_give_the_variance_at_each_value() -> None:
    model = nested_slopes()
    outer, inner = (
        next(term.cov.to_numpy() for term in model.random_terms if term.group == label)
        for label in ("school", "school:child")
    )
    found, shares = model.icc(at={"year": [0, 3.5]}), model.icc("share", at={"year": [0, 3.5]})
    assert found.index.names == ["group", "year"]
    assert list(found.index) == [("school", 0), ("school:child", 0), ("school", 3.5), ("school:child", 3.5)]
    for year in (0, 3.5):
        z = np.array([1.0, year])
        parts = z @ outer @ z, z @ inner @ z, model.sigma**2
        assert found.loc[("school", year), "estimate"] == pytest.approx(parts[0] / sum(parts), rel=EXACT)
        both = (parts[0] + parts[1]) / sum(parts)
        assert found.loc[("school:child", year), "estimate"] == pytest.approx(both, rel=EXACT)
        assert shares.loc[("school:child", year), "estimate"] == pytest.approx(
            parts[1] / sum(parts), rel=EXACT
        )
    assert "note" not in found.attrs


def test_standard_errors_at_a_value_by_automatic_derivatives() -> None:
    z = np.array([1.0, 3.5])

    def correlations(p: Parameters) -> dict[str, Any]:
        outer, inner = (z @ p.cov(label) @ z for label in ("school", "school:child"))
        total = outer + inner + p.sigma**2
        return {"school": outer / total, "school:child": (outer + inner) / total}

    expected = nested_slopes().nlcom(correlations, scale="logit")
    found = nested_slopes().icc(at={"year": 3.5})
    np.testing.assert_allclose(found[COLUMNS], expected[COLUMNS], rtol=EXACT)


def test_at_zero_is_what_is_given_without_at() -> None:
    np.testing.assert_array_equal(sleepstudy().icc(at={"Days": 0}), sleepstudy().icc())


def test_levels_of_a_factor_have_their_own_correlations() -> None:
    model = fit("machines", "score ~ Machine + (0 + Machine | Worker)")
    found = model.icc(at={"Machine": ["C", "A"]})
    variances = np.diagonal(model.random_terms[0].cov)[[2, 0]]
    np.testing.assert_allclose(found["estimate"], variances / (variances + model.sigma**2), rtol=EXACT)


def test_effects_with_a_common_variance_need_no_value() -> None:
    model = fit("machines", "score ~ Machine + (0 + Machine | Worker)", covariance="exchangeable")
    variance = model.random_terms[0].cov.iloc[0, 0]
    row = model.icc().loc["Worker"]
    assert row["estimate"] == pytest.approx(variance / (variance + model.sigma**2), rel=EXACT)
    assert "for rows with the same random effect" in model.icc().attrs["note"]
    np.testing.assert_allclose(model.icc(at={"Machine": "B"}).iloc[0], row, rtol=EXACT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"at": {"week": 1}}, "at= names 'week', but random effects are of 'Days'"),
        ({"at": 3}, "give values by column"),
        ({"at": {"Days": "a"}}, "column 'Days' holds text"),
        ({"at": {"Days": []}}, "no value of 'Days'"),
        ({"at": {"Days": np.nan}}, "'Days' is not finite"),
    ],
)
def test_values_that_cannot_be_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(jm.DataError, match=message):
        sleepstudy().icc(**arguments)


# Design effects and reliabilities


def variance_of_rows(model: jm.MixedResults) -> np.ndarray:
    """Covariance matrix (n, n) of the rows under the model."""
    total = model.sigma**2 * np.eye(model.nobs)
    for term, own in zip(model.random_terms, model.estimates.terms, strict=True):
        group = model.frame.groups[own.frame_index]
        related = np.eye(len(group.levels)) if group.relationship is None else group.relationship.matrix
        same = related[np.ix_(group.codes, group.codes)]
        total += same * (group.Z @ term.cov.to_numpy() @ group.Z.T)
    return total


def with_relationship() -> jm.MixedResults:
    data = jm.datasets.load("sleepstudy")
    labels = sorted(data["Subject"].unique())
    A = 0.5 ** np.abs(np.subtract.outer(np.arange(18.0), np.arange(18.0)))
    return quietly("Reaction ~ Days + (1 | Subject)", data, covariance={"Subject": jm.known(A, labels)})


@pytest.mark.parametrize(
    "model",
    [
        lambda: sleepstudy("Reaction ~ Days + (1 | Subject)"),
        sleepstudy,
        nested_slopes,
        lambda: fit("penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)"),
        with_relationship,
    ],
    ids=["intercept", "slopes", "nested", "crossed", "related"],
)
def test_the_design_effect_is_that_of_the_mean_of_all_rows(model: Any) -> None:
    V = variance_of_rows(model())
    # The variance of the mean of correlated rows over that of independent ones.
    expected = V.sum() / np.trace(V)
    found = model().design_effect()
    assert found.loc["total", "deff"] == pytest.approx(expected, rel=EXACT)
    assert found.loc["total", "effective_n"] == pytest.approx(len(V) / expected, rel=EXACT)


def test_unequal_groups_count_by_kishs_size() -> None:
    data = jm.datasets.load("sleepstudy").drop(index=range(3, 10))
    model = quietly("Reaction ~ Days + (1 | Subject)", data)
    sizes = data.groupby("Subject").size()
    row, icc = model.design_effect().loc["Subject"], model.icc().loc["Subject", "estimate"]
    assert row["icc"] == pytest.approx(icc, rel=EXACT)
    assert row["mean_size"] == pytest.approx(sizes.mean())
    assert row["kish_size"] == pytest.approx((sizes**2).sum() / sizes.sum())
    assert row["deff_mean"] == pytest.approx(1 + (sizes.mean() - 1) * icc, rel=EXACT)
    assert row["deff"] == pytest.approx(1 + (row["kish_size"] - 1) * icc, rel=EXACT)


def test_a_linear_model_has_no_design_effect_and_no_reliabilities() -> None:
    with pytest.raises(jm.DesignError, match="linear model has no groups"):
        fit("sleepstudy", "Reaction ~ Days").design_effect()
    assert fit("sleepstudy", "Reaction ~ Days").reliability() == {}


def test_the_published_shrinkage_factor_of_the_peak_flow_meter() -> None:
    found = fit("mini_wright", "wm ~ 1 + (1 | id)").reliability()["id"]
    assert found.shape == (17, 1)
    np.testing.assert_allclose(found, 0.98399606, atol=6e-8)


def test_a_random_intercept_is_as_reliable_as_the_mean_of_its_rows() -> None:
    data = jm.datasets.load("sleepstudy").drop(index=range(3, 10))
    model = quietly("Reaction ~ Days + (1 | Subject)", data)
    variance = model.random_terms[0].cov.iloc[0, 0]
    expected = variance / (variance + model.sigma**2 / data.groupby("Subject").size())
    found = model.reliability()["Subject"]["(Intercept)"]
    np.testing.assert_allclose(found, expected, rtol=EXACT)


def test_reliabilities_are_squared_correlations_of_effects_and_predictions() -> None:
    model = sleepstudy()
    V, group, G = variance_of_rows(model), model.frame.groups[0], model.random_terms[0].cov.to_numpy()
    wide = np.zeros((model.nobs, 2))
    wide[group.codes == 0] = group.Z[group.codes == 0]
    explained = G @ wide.T @ np.linalg.solve(V, wide) @ G
    expected = np.diagonal(explained) / np.diagonal(G)
    np.testing.assert_allclose(model.reliability()["Subject"].iloc[0], expected, rtol=EXACT)


def test_an_effect_without_variance_has_no_reliability() -> None:
    assert fit("dyestuff2", "Yield ~ 1 + (1 | Batch)").reliability()["Batch"].isna().all().all()
