"""`jm.simulate`: designs of every kind against the dense covariance, tables, options and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import jaxmixed as jm
from jaxmixed.simulation import SpecifiedModel, specified_model
from tests.support.dense import Block, DenseModel
from tests.support.fits import aliased, sleepstudy

SIGMAS = 5.0
"""Standard errors that a Monte Carlo mean may be away from what it estimates."""

FORMULA = "y ~ x + (x | g)"
PARAMS = {"beta": {"(Intercept)": 1, "x": 2}, "random": {"g": {"sd": [2, 0.5], "corr": -0.6}}, "sigma": 1.5}


def design(num_rows: int = 36) -> pd.DataFrame:
    """Nested (g/child) and crossed (g, h) groupings, a covariate, a factor, weights; no response."""
    rng = np.random.default_rng(3)
    return pd.DataFrame(
        {
            "x": rng.normal(size=num_rows),
            "f": np.resize(["a", "b", "c"], num_rows),
            "g": np.arange(num_rows) // 9,
            "child": np.arange(num_rows) % 9 // 3,
            "h": rng.permutation(np.arange(num_rows) % 4),
            "w": rng.uniform(0.2, 3.0, size=num_rows),
            "shift": rng.normal(size=num_rows) * 100,
        },
        index=[f"row{i}" for i in range(num_rows)],
    )


def dense_covariance(model: SpecifiedModel) -> np.ndarray:
    """Covariance matrix of the response, from the definition."""
    frame = model.frame
    blocks = tuple(Block(group.Z, group.codes) for group in frame.groups)
    return DenseModel(frame.y, frame.X, blocks, frame.weights).covariance(model.covariances, model.sigma)


# Distribution

DESIGNS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("y ~ x + (1 | g)", {"g": 2}, {}),
    ("y ~ x + (x | g)", {"g": [[4, -0.6], [-0.6, 0.25]]}, {"weights": "w", "offset": "shift"}),
    ("y ~ x + (1 | g/child)", {"g:child": 1, "g": 3}, {}),
    ("y ~ x + (x || g) + (1 | h)", {"h": 1, "g": {"sd": [2, 1]}}, {"weights": "w"}),
    ("y ~ x + (1 | g) + (0 + x | g)", {"g": [2, 1]}, {}),
    ("y ~ x + cs(0 + f | g)", {"g": {"sd": 2, "corr": 0.4}}, {"offset": "shift"}),
    ("y ~ x + (x | g)", {"g": {"sd": [2, 1], "corr": 1}}, {}),
    ("y ~ x", {}, {"weights": "w"}),
]


@pytest.mark.parametrize(("formula", "random", "options"), DESIGNS, ids=lambda value: str(value)[:40])
def test_responses_have_the_marginal_mean_and_covariance(
    formula: str, random: dict[str, Any], options: dict[str, Any]
) -> None:
    data, count = design(), 10_000
    params = {"beta": [1, 2], "random": random, "sigma": 1.5}
    values = jm.simulate(formula, data, params, n=count, seed=1, **options).to_numpy()
    V = dense_covariance(specified_model(formula, data, params, **options))
    mean = 1 + 2 * data["x"].to_numpy() + (data["shift"].to_numpy() if "offset" in options else 0)
    variances = np.diagonal(V)
    assert (np.abs(values.mean(axis=1) - mean) / np.sqrt(variances / count)).max() < SIGMAS
    centred = values - mean[:, None]
    errors = np.sqrt((np.outer(variances, variances) + V**2) / count)
    assert (np.abs(centred @ centred.T / count - V) / errors).max() < SIGMAS


def test_the_covariance_of_two_rows_of_a_group_is_that_of_the_formula() -> None:
    data = design()
    values = jm.simulate(FORMULA, data, PARAMS, n=40_000, seed=2).to_numpy()
    x = data["x"].to_numpy()
    for i, j, same in ((0, 0, True), (0, 1, True), (2, 7, True), (0, 9, False)):
        cov = same * (4 - 0.6 * (x[i] + x[j]) + 0.25 * x[i] * x[j]) + (i == j) * 1.5**2
        product = (values[i] - 1 - 2 * x[i]) * (values[j] - 1 - 2 * x[j])
        assert abs(product.mean() - cov) < SIGMAS * product.std() / 200


def test_a_fit_to_simulated_data_finds_the_parameters() -> None:
    """200 balanced groups of 10: the moments of the group means and of the residuals, in closed form."""
    data = pd.DataFrame({"g": np.repeat(np.arange(200), 10)})
    params = {"beta": [5], "random": {"g": 2}, "sigma": 3}
    drawn = data.assign(y=jm.simulate("y ~ 1 + (1 | g)", data, params, seed=3)["sim_1"])
    found = jm.mixed("y ~ 1 + (1 | g)", drawn, method="ml")
    between = 4 + 9 / 10  # variance of a group mean
    assert abs(found.params.iloc[0] - 5) < SIGMAS * np.sqrt(between / 200)
    assert abs(found.sigma**2 - 9) < SIGMAS * 9 * np.sqrt(2 / 1800)
    assert abs(found.random_terms[0].cov.iloc[0, 0] - 4) < SIGMAS * between * np.sqrt(2 / 200)


# Fits as parameters


def test_a_fit_as_parameters_simulates_what_the_fit_simulates() -> None:
    found, data = sleepstudy(), jm.datasets.load("sleepstudy")
    expected = found.simulate(5, seed=4)
    pd.testing.assert_frame_equal(jm.simulate(found.formula, data, found, n=5, seed=4), expected)
    params = {"beta": found.params, "random": {"Subject": found.random_terms[0].cov}, "sigma": found.sigma}
    pd.testing.assert_frame_equal(jm.simulate(found.formula, data, params, n=5, seed=4), expected)
    without = jm.simulate("~ Days + (Days | Subject)", data.drop(columns="Reaction"), found, n=5, seed=4)
    pd.testing.assert_frame_equal(without, expected)


def test_a_fit_simulates_on_another_design() -> None:
    found = sleepstudy()
    other = {"Days": np.resize(np.arange(20.0), 400), "Subject": np.arange(400) // 20}
    model = specified_model(found.formula, other, found)
    np.testing.assert_allclose(model.frame.y, found.params.iloc[0] + found.params.iloc[1] * other["Days"])
    assert jm.simulate(found.formula, other, found, seed=1).shape == (400, 1)
    with pytest.raises(jm.DataError, match=r"params\['random'\] has 'Subject'; its groups are 'school'"):
        jm.simulate("~ Days + (Days | school)", {**other, "school": other["Subject"]}, found)


def test_dropped_coefficients_of_a_fit_count_as_zero() -> None:
    found = aliased()
    data = jm.datasets.load("sleepstudy").assign(Days2=0.0)
    model = specified_model(found.formula, data, found)
    assert model.beta.tolist() == [*found.params.iloc[:2], 0.0]


# The response


@pytest.mark.parametrize("response", ["absent", "missing", "constant", "text"])
def test_the_response_in_the_data_does_not_matter(response: str) -> None:
    data = design()
    expected = jm.simulate(FORMULA, data, PARAMS, n=2, seed=1)
    if response != "absent":
        data = data.assign(y={"missing": np.nan, "constant": 1.0, "text": "a"}[response])
    pd.testing.assert_frame_equal(jm.simulate(FORMULA, data, PARAMS, n=2, seed=1), expected)
    pd.testing.assert_frame_equal(jm.simulate(" ~ x + (x | g)", data, PARAMS, n=2, seed=1), expected)


def test_names_of_columns_never_clash_with_the_place_of_the_response() -> None:
    data = design().rename(columns={"x": "simulated"})
    params = {**PARAMS, "beta": [1, 2]}
    expected = jm.simulate(FORMULA, design(), PARAMS, n=2, seed=1)
    drawn = jm.simulate("~ simulated + (simulated | g)", data, params, n=2, seed=1)
    pd.testing.assert_frame_equal(drawn, expected)
    odd = design().rename(columns={"x": "I(y - z)"})
    drawn = jm.simulate("I(y - z) ~ `I(y - z)` + (`I(y - z)` | g)", odd, params, n=2, seed=1)
    pd.testing.assert_frame_equal(drawn, expected)
    weighted = design().assign(y=1.0)
    drawn = jm.simulate(FORMULA, weighted, PARAMS, n=2, seed=1, weights="y")
    pd.testing.assert_frame_equal(drawn, expected)


def test_values_are_those_of_the_left_side() -> None:
    drawn = jm.simulate("log(y) ~ x + (x | g)", design(), PARAMS, n=2, seed=1)
    pd.testing.assert_frame_equal(drawn, jm.simulate(FORMULA, design(), PARAMS, n=2, seed=1))
    model = specified_model("log(y) ~ x + (x | g)", design(), PARAMS)
    assert model.frame.response_name == "log(y)"
    assert model.frame.formula == jm.formula.parse("log(y) ~ x + (x | g)")
    assert model.frame.encoding.formula == model.frame.formula


# Tables, options, labels


@pytest.mark.parametrize("kind", ["dict", "Series", "polars", "pyarrow", "records"])
def test_every_kind_of_table_gives_the_same_values(kind: str) -> None:
    data = design()
    plain = data.reset_index(drop=True)
    table: Any = {
        "dict": lambda: {name: column.tolist() for name, column in data.items()},
        "Series": lambda: {name: data[name] for name in data},
        "polars": lambda: pl.from_pandas(plain).with_columns(row=pl.lit(1), y=pl.lit(2)),
        "pyarrow": lambda: pa.Table.from_pandas(plain),
        "records": lambda: plain.drop(columns="f").to_records(index=False),
    }[kind]()
    drawn = jm.simulate(FORMULA, table, PARAMS, n=2, seed=1, weights="w")
    expected = jm.simulate(FORMULA, data, PARAMS, n=2, seed=1, weights="w")
    np.testing.assert_array_equal(drawn, expected)
    assert drawn.index.equals(data.index if kind == "Series" else plain.index)
    mean = jm.simulate("~ 1", table, {"beta": [3], "sigma": 1e-9}, seed=1)
    np.testing.assert_allclose(mean, np.full((36, 1), 3.0), atol=1e-7)


def test_the_data_are_not_changed() -> None:
    data = design().assign(y=1.0)
    before = data.copy()
    jm.simulate(FORMULA, data, PARAMS, n=2, seed=1)
    pd.testing.assert_frame_equal(data, before)
    mapping = {name: data[name].to_numpy() for name in data}
    jm.simulate(FORMULA, mapping, PARAMS, n=2, seed=1)
    assert list(mapping) == list(data)


def test_rows_with_missing_covariates_are_left_out_or_refused() -> None:
    data = design()
    data.loc["row3", "x"] = np.nan
    data.loc["row5", "w"] = np.nan
    drawn = jm.simulate(FORMULA, data, PARAMS, n=2, seed=1, weights="w")
    assert drawn.index.equals(data.index.drop(["row3", "row5"]))
    assert np.isfinite(drawn.to_numpy()).all()
    with pytest.raises(jm.DataError, match="'x' in 1, 'w' in 1 of 36 rows"):
        jm.simulate(FORMULA, data, PARAMS, seed=1, weights="w", missing="raise")


def test_weights_and_offset_may_be_arrays() -> None:
    data = design()
    by_name = jm.simulate(FORMULA, data, PARAMS, n=2, seed=1, weights="w", offset="shift")
    arrays = jm.simulate(
        FORMULA, data, PARAMS, n=2, seed=1, weights=data["w"], offset=data["shift"].to_numpy()
    )
    pd.testing.assert_frame_equal(arrays, by_name)
    in_formula = jm.simulate("y ~ x + offset(shift) + (x | g)", data, PARAMS, n=2, seed=1, weights="w")
    np.testing.assert_allclose(in_formula, by_name, rtol=1e-12)


def test_contrasts_and_functions_are_those_of_mixed() -> None:
    def double(values: np.ndarray) -> np.ndarray:
        return 2 * values

    model = specified_model(
        "y ~ f + double(x)",
        design(),
        {"beta": {"(Intercept)": 10, "f1": 1, "f2": 2, "double(x)": 3}, "sigma": 1},
        contrasts={"f": "sum"},
        functions={"double": double},
    )
    x = design()["x"].to_numpy()
    np.testing.assert_allclose(model.frame.y, 10 + np.resize([1, 2, -3], 36) + 6 * x)


def test_the_seed_is_told_and_response_i_does_not_depend_on_their_number() -> None:
    many = jm.simulate(FORMULA, design(), PARAMS, n=50, seed=7)
    np.testing.assert_array_equal(jm.simulate(FORMULA, design(), PARAMS, 3, 7), many.iloc[:, :3])
    fresh = jm.simulate(FORMULA, design(), PARAMS)
    again = jm.simulate(FORMULA, design(), PARAMS, seed=fresh.attrs["seed"])
    pd.testing.assert_frame_equal(fresh, again)
    assert jm.simulate(FORMULA, design(), PARAMS).attrs["seed"] != fresh.attrs["seed"]


def test_a_specified_model_holds_what_a_power_analysis_needs() -> None:
    model = specified_model(FORMULA, design(), PARAMS, weights="w")
    assert model.frame.x_names == ("(Intercept)", "x")
    assert model.beta.tolist() == [1.0, 2.0]
    np.testing.assert_allclose(model.covariances[0], [[4, -0.6], [-0.6, 0.25]])
    assert model.sigma == 1.5
    np.testing.assert_allclose(model.frame.y, model.frame.X @ model.beta)
    np.testing.assert_array_equal(model.source.residual_sd, 1.5 / np.sqrt(design()["w"]))
    assert not model.frame.y.flags.writeable


# Refusals


def said(formula: str = FORMULA, data: Any = None, params: Any = None, **options: Any) -> str:
    data = design() if data is None else data
    with pytest.raises(jm.JaxMixedError) as caught:
        jm.simulate(formula, data, PARAMS if params is None else params, **{"seed": 1, **options})
    return str(caught.value)


def test_unknown_columns_are_named_with_those_that_there_are() -> None:
    for data in (design(), design().to_dict("list"), pl.from_pandas(design().reset_index(drop=True))):
        text = said("y ~ X + (1 | school)", data)
        assert text == (
            "the data have no columns 'X' (did you mean 'x'?), 'school'; available columns: 'x', 'f', 'g', "
            "'child', 'h', 'w', 'shift'"
        )
    assert "the data have no column 'W'" in said(weights="W")


def test_designs_that_could_not_be_fitted_are_refused_as_by_mixed() -> None:
    data = design().assign(row=np.arange(36), same=design()["g"] + 100, one=1)
    assert "36 levels for 36 rows" in said("y ~ x + (1 | row)", data)
    assert "has one level, 1," in said("y ~ x + (1 | one)", data)
    assert "split the rows into the same 4 groups" in said("y ~ x + (1 | g) + (1 | same)", data)
    assert "has fixed effects and is the grouping" in said("y ~ factor(g) + (1 | g)", data)
    assert "the data have no rows" in said(data=design().iloc[:0])
    assert "the response y is constant: all 1 rows" in said("y ~ 1", {"x": [1.0]})
    assert "the data have no rows" in said("y ~ 1", {})


@pytest.mark.parametrize("data", [None, 3, np.ones((3, 2)), "x"], ids=["None", "number", "matrix", "text"])
def test_data_that_are_no_table_are_refused(data: Any) -> None:
    with pytest.raises(jm.DataError, match="data"):
        jm.simulate(FORMULA, data, PARAMS)


def test_arguments_of_the_wrong_kind_are_refused() -> None:
    assert "a formula must be a text" in said(None)  # type: ignore[arg-type]
    assert "the right side leaves no effect" in said("~ 0")
    assert "n is 0; give the number" in said(n=0)
    assert "seed must be a non-negative integer" in said(seed=-1)
    assert "seed must be a non-negative integer" in said(seed=True)
    assert "36 rows need 38,800.0 GB" in said(n=10**11)
    assert "params is a float" in said(params=1.5)
    assert "contrasts='sum' must be a mapping" in said(contrasts="sum")
    assert "functions=[] must be a mapping" in said(functions=[])
    assert "missing='keep' is not an option" in said(missing="keep")
    assert "weights has 3 values, but the data have 36 rows" in said(weights=[1, 2, 3])
