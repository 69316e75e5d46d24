"""Margins against averages of predictions, their differences, and matrices written out by hand."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.design_slopes import fixed_design, fixed_slope
from jaxmixed.frame import build_frame
from jaxmixed.ingest import read_columns
from tests.support.fits import aliased, fit, quietly, sleepstudy

EXACT = 1e-9
"""Relative difference of two routes to one number."""

DIFFERENCED = 1e-9
"""Relative error of differences of sixth order with a step of a hundredth."""

_STENCIL = ((-3, -1 / 60), (-2, 3 / 20), (-1, -3 / 4), (1, 3 / 4), (2, -3 / 20), (3, 1 / 60))


@cache
def data(num_rows: int = 120) -> pd.DataFrame:
    """Rows with two covariates, a factor, a boolean and a group; the offset is known."""
    rng = np.random.default_rng(11)
    table = pd.DataFrame(
        {
            "x": rng.uniform(0.5, 3.0, num_rows),
            "z": rng.normal(size=num_rows),
            "f": rng.choice(["a", "b", "c"], num_rows, p=[0.5, 0.3, 0.2]),
            "treated": rng.random(num_rows) < 0.4,
            "g": rng.integers(0, 12, num_rows),
        }
    )
    effect = rng.normal(size=12)[table["g"]]
    table["y"] = (
        np.log(table["x"]) + 0.5 * table["z"] + (table["f"] == "b") + effect + rng.normal(size=num_rows)
    )
    return table


@cache
def interacting() -> jm.MixedResults:
    return quietly("y ~ log(x) * f + treated + I(z^2) + x:z + (1 | g)", data())


def averaged(model: jm.MixedResults, table: pd.DataFrame) -> float:
    return float(model.predict(table, random=False).mean())


# Derivatives of designs


@pytest.mark.parametrize(
    "formula",
    [
        "y ~ log(x) * f",
        "y ~ poly(x, 3) * f + x:z",
        "y ~ poly(x, 3, raw=TRUE) + ns(x, df=4):z",
        "y ~ I(x^2) + I(x / (1 + x)) + I(2^x) + I(-x) + I(x - z / x) + I(z * x^-1.5) + x:I(x^2):f",
        "y ~ scale(x) + center(log(x)) + sqrt(x) + exp(x) + sin(x) + cos(x) + tan(x / 9)",
        "y ~ log2(x) + log10(x) + log1p(x) + expm1(x) + abs(x) + offset(x^2)",
        "y ~ own(x, z) + f",
    ],
)
def test_derivatives_of_the_design_are_those_of_differences(formula: str) -> None:
    table = data()
    frame = build_frame(formula, table, functions={"own": lambda a, b: np.log(a) * b})
    columns = list(frame.columns)
    slope, offset_slope = fixed_slope(frame.encoding, read_columns(table, columns), "x")
    expected, expected_offset = np.zeros_like(frame.X), np.zeros(len(table))
    for times, weight in _STENCIL:
        moved = read_columns(table.assign(x=table["x"] + 0.01 * times), columns)
        X, offset = fixed_design(frame.encoding, moved)
        expected += weight * X / 0.01
        expected_offset += weight * offset / 0.01
    # Splines have knots, at which no difference is of any order: rows near one are left out.
    knots = np.quantile(table["x"], [0, 0.25, 0.5, 0.75, 1])
    away = (np.abs(table["x"].to_numpy()[:, None] - knots) > 0.03).all(axis=1)
    scale = np.maximum(np.abs(slope).max(axis=0), np.abs(frame.X).max(axis=0))
    assert np.abs((slope - expected)[away] / scale).max() < DIFFERENCED
    np.testing.assert_allclose(offset_slope, expected_offset, atol=DIFFERENCED)


def test_b_splines_have_exact_derivatives_between_knots() -> None:
    table = data()
    frame = build_frame("y ~ bs(x, df=5)", table)
    away = table.assign(x=np.linspace(1.35, 1.4, len(table)))
    slope, _ = fixed_slope(frame.encoding, read_columns(away, ["x"]), "x")
    step = 1e-4
    upper, lower = (
        fixed_design(frame.encoding, read_columns(away.assign(x=away["x"] + s), ["x"]))[0]
        for s in (step, -step)
    )
    # The difference of a cubic errs by its third derivative times step²/6.
    np.testing.assert_allclose(slope, (upper - lower) / (2 * step), atol=1e-6)


def test_derivatives_that_do_not_exist_are_refused() -> None:
    table = data().assign(x=np.arange(120.0))
    frame = build_frame("y ~ sqrt(x)", table)
    with pytest.raises(jm.DataError, match=r"derivative of sqrt\(x\) in 'x' is not a finite number in 1 of"):
        fixed_slope(frame.encoding, read_columns(table, ["x"]), "x")


# Marginal effects


def test_an_average_marginal_effect_is_the_slope_of_the_average_prediction() -> None:
    model, table = interacting(), data()
    expected = sum(
        weight * averaged(model, table.assign(x=table["x"] + 0.01 * times)) / 0.01
        for times, weight in _STENCIL
    )
    row = model.margins("x").loc["x"]
    assert row["estimate"] == pytest.approx(expected, rel=DIFFERENCED)
    assert list(row.index) == list(model.coef_table().columns)


def test_standard_errors_are_those_of_the_averaged_derivatives() -> None:
    model, table = interacting(), data()
    x, z, f = table["x"], table["z"], table["f"]
    L = pd.Series(0.0, index=model.params.index)
    L["log(x)"] = (1 / x).mean()
    L["log(x):fb"], L["log(x):fc"] = ((f == "b") / x).mean(), ((f == "c") / x).mean()
    L["x:z"] = z.mean()
    variance = L @ model.cov_params() @ L
    row = model.margins("x").loc["x"]
    assert row["estimate"] == pytest.approx(L @ model.params, rel=EXACT)
    assert row["std_error"] == pytest.approx(np.sqrt(variance), rel=EXACT)
    assert row["conf_high"] == pytest.approx(
        L @ model.params + 1.959963984540054 * np.sqrt(variance), rel=EXACT
    )


def test_factors_change_from_their_base_level() -> None:
    model, table = interacting(), data()
    found = model.margins(["f", "treated"])
    base = averaged(model, table.assign(f="a"))
    assert list(found.index) == ["f: b - a", "f: c - a", "treated: TRUE - FALSE"]
    for level in "bc":
        expected = averaged(model, table.assign(f=level)) - base
        assert found.loc[f"f: {level} - a", "estimate"] == pytest.approx(expected, rel=EXACT)
    assert found.loc["treated: TRUE - FALSE", "estimate"] == pytest.approx(model.params["treatedTRUE"])


def test_effects_do_not_depend_on_the_coding() -> None:
    treatment = fit("oats", "yield ~ Variety * nitro + (1 | Block)")
    oats = jm.datasets.load("oats")
    summed = quietly("yield ~ C(Variety, contr.sum) * nitro + (1 | Block)", oats)
    np.testing.assert_allclose(treatment.margins("all"), summed.margins("all"), rtol=1e-6)


def test_all_columns_of_the_fixed_part_have_effects() -> None:
    index = interacting().margins("all").index
    assert list(index) == ["x", "f: b - a", "f: c - a", "treated: TRUE - FALSE", "z"]


def test_an_offset_of_the_column_has_its_own_slope() -> None:
    model = quietly("y ~ x + offset(3 * x) + (1 | g)", data())
    row = model.margins("x").loc["x"]
    assert row["estimate"] == pytest.approx(model.params["x"] + 3)
    assert row["statistic"] == pytest.approx(row["estimate"] / model.bse["x"])


# Values, subgroups, other rows


def test_average_predictions_at_values() -> None:
    model, table = interacting(), data()
    found = model.margins(at={"f": ["b", "a"], "x": [1, 2.5]})
    assert found.index.names == ["f", "x"]
    for level, x in found.index:
        expected = averaged(model, table.assign(f=level, x=x))
        assert found.loc[(level, x), "estimate"] == pytest.approx(expected, rel=EXACT)


def test_without_anything_the_average_prediction_of_the_rows() -> None:
    found = interacting().margins()
    assert found.loc["prediction", "estimate"] == pytest.approx(averaged(interacting(), data()), rel=EXACT)
    assert "average predictions over 120 rows" in repr(found)


def test_effects_at_the_means_weight_levels_by_their_proportions() -> None:
    model, table = interacting(), data()
    shares, treated = table["f"].value_counts(normalize=True), table["treated"].mean()
    expected, z, x = 0.0, table["z"].mean(), table["x"].mean()
    for level, share in shares.items():
        for value, weight in ((True, treated), (False, 1 - treated)):
            here = pd.DataFrame({"x": [x], "z": [z], "f": [level], "treated": [value]})
            expected += share * weight * averaged(model, here)
    assert model.margins(at="means").loc["prediction", "estimate"] == pytest.approx(expected, rel=EXACT)
    slope = model.params["log(x)"] + sum(shares[c] * model.params[f"log(x):f{c}"] for c in "bc")
    found = model.margins("x", at="means").loc["x", "estimate"]
    assert found == pytest.approx(slope / x + z * model.params["x:z"], rel=EXACT)


def test_some_columns_at_values_and_the_others_at_their_means() -> None:
    model, table = interacting(), data()
    found = model.margins("x", at={"f": ["a", "c"], "x": 2}, others="means")
    slope = model.params["log(x)"] / 2 + table["z"].mean() * model.params["x:z"]
    assert found.loc[("x", "a", 2), "estimate"] == pytest.approx(slope, rel=EXACT)
    assert found.loc[("x", "c", 2), "estimate"] == pytest.approx(
        slope + model.params["log(x):fc"] / 2, rel=EXACT
    )


def test_means_of_subgroups_are_their_own() -> None:
    model, table = interacting(), data()
    found = model.margins("x", at="means", over="treated")
    for value in (False, True):
        part = table[table["treated"] == value]
        shares = part["f"].value_counts(normalize=True)
        slope = model.params["log(x)"] + sum(shares.get(c, 0.0) * model.params[f"log(x):f{c}"] for c in "bc")
        expected = slope / part["x"].mean() + part["z"].mean() * model.params["x:z"]
        assert found.loc[("x", value), "estimate"] == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize("over", ["f", "g", ["f", "g"]])
def test_subgroups_by_columns_and_by_groupings(over: Any) -> None:
    model, table = interacting(), data()
    predicted = model.predict(table, random=False)
    expected = predicted.groupby([table[name] for name in ([over] if isinstance(over, str) else over)]).mean()
    found = model.margins(over=over)
    np.testing.assert_allclose(found["estimate"], expected, rtol=EXACT)
    assert list(found.index) == list(expected.index)


def test_other_rows_with_other_columns_and_missing_values() -> None:
    model, table = interacting(), data().head(9).copy()
    table.loc[3, "z"] = np.nan
    table["who"] = ["u"] * 4 + ["v"] * 5
    found = model.margins(newdata=table.drop(columns="f"), at={"f": "c"}, over="who")
    expected = model.predict(table.assign(f="c"), random=False).groupby(table["who"]).mean()
    np.testing.assert_allclose(found["estimate"], expected, rtol=EXACT)
    assert found.index.names == ["f", "who"]


def test_the_rows_of_the_fit_are_kept_even_if_the_data_change() -> None:
    table = data().copy()
    model = quietly("y ~ log(x) + (1 | g)", table)
    before = model.margins("x")
    table["x"] = 1.0
    table.loc[:, "x"] = 2.0
    pd.testing.assert_frame_equal(model.margins("x"), before)


def test_offsets_of_arguments_are_part_of_predictions() -> None:
    table = data().assign(known=np.linspace(0, 1, 120))
    model = quietly("y ~ x + (1 | g)", table, offset="known")
    assert model.margins().loc["prediction", "estimate"] == pytest.approx(averaged(model, table), rel=EXACT)
    new = model.margins(newdata=table.head(10)).loc["prediction", "estimate"]
    assert new == pytest.approx(averaged(model, table.head(10)), rel=EXACT)
    by_array = quietly("y ~ x + (1 | g)", table, offset=table["known"].to_numpy())
    assert by_array.margins().loc["prediction", "estimate"] == pytest.approx(averaged(model, table), rel=1e-6)
    with pytest.raises(jm.DataError, match="array as offset"):
        by_array.margins(newdata=table)


def test_degrees_of_freedom_and_other_covariances_pass_through() -> None:
    model = sleepstudy()
    row = model.margins("Days", ddf="satterthwaite").loc["Days"]
    expected = model.coef_table("satterthwaite").loc["Days"]
    np.testing.assert_allclose(row.astype(float), expected.astype(float), rtol=EXACT)
    pd.testing.assert_frame_equal(
        model.margins("Days", vcov=model.fixed_inference("satterthwaite")),
        model.margins("Days", ddf="satterthwaite"),
    )


def test_what_a_dropped_column_decides_has_no_value() -> None:
    found = aliased().margins("Days2")
    assert found["estimate"].isna().all()
    together = aliased().margins(at={"Days": 3, "Days2": 6})["estimate"]
    expected = aliased().params["(Intercept)"] + 3 * aliased().params["Days"]
    assert together.iloc[0] == pytest.approx(expected, rel=1e-6)


def test_a_model_with_an_intercept_alone() -> None:
    model = fit("dyestuff", "Yield ~ 1 + (1 | Batch)")
    found = model.margins(over="Batch")
    assert (found["estimate"] == model.params["(Intercept)"]).all()
    with pytest.raises(jm.DesignError, match="nothing has a marginal effect"):
        model.margins("all")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dydx": "w"}, "dydx= names 'w'; marginal effects are of columns of the fixed part: 'x', 'f'"),
        ({"dydx": "log(x)"}, r"dydx= names 'log\(x\)'"),
        ({"dydx": 3}, "give the name of a column"),
        ({"at": {"w": 1}}, "no column 'w'"),
        ({"at": "mean"}, 'give "means"'),
        ({"at": {"f": "d"}}, "column 'f' has levels that the fitted model does not know: 'd'"),
        ({"at": {"x": "a"}}, "column 'x' holds text"),
        ({"at": {"x": np.inf}}, "'x' is not finite"),
        ({"at": {"x": None}}, "None of 'x' is a missing one"),
        ({"at": {"f": ["a", None]}}, "None of 'f' is a missing one"),
        ({"at": {"x": []}}, "no value of 'x'"),
        ({"over": "w"}, "over= names 'w', which the fit does not keep"),
        ({"over": "f", "at": {"f": "a"}}, "at= and over= both name 'f'"),
        ({"newdata": {"x": [1.0]}}, "no columns 'f', 'treated', 'z'"),
        ({"others": "mean"}, "others is 'mean'"),
        ({"level": 95}, "level is 95"),
        ({"ddf": "kr"}, "ddf is 'kr'"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(jm.DataError, match=message):
        interacting().margins(**arguments)


def test_too_many_margins_are_refused() -> None:
    with pytest.raises(jm.DesignError, match="14,400 margins are asked for, at most 5,000"):
        interacting().margins(over=["x", "g"], at={"z": range(120)})


def test_a_column_that_is_number_and_factor_has_no_effect() -> None:
    table = data().assign(k=data()["g"] % 4)
    both = quietly("y ~ k * x + C(k) + (1 | g)", table)
    with pytest.raises(jm.DesignError, match="'k' is a number in k and a factor elsewhere"):
        both.margins("k")
