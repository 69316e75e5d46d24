"""Hard data, from the table to the printed fit: extreme units, odd types, missing rows, odd groups."""

from __future__ import annotations

import datetime
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import jaxmixed as jm
from tests.support.dense import Block, DenseModel
from tests.support.fits import quietly
from tests.support.simulated import one_way, outcome, students

INTERCEPTS = "y ~ x + (1 | g)"
SLOPES = "y ~ x + (x | g)"


def assert_same_fit(fit: jm.MixedResults, other: jm.MixedResults, rtol: float = 1e-9) -> None:
    np.testing.assert_allclose(fit.llf, other.llf, rtol=rtol)
    np.testing.assert_allclose(fit.params, other.params, rtol=rtol)
    np.testing.assert_allclose(fit.bse, other.bse, rtol=rtol)
    np.testing.assert_allclose(fit.theta, other.theta, rtol=rtol, atol=1e-12)
    np.testing.assert_allclose(fit.sigma, other.sigma, rtol=rtol)


# Units and magnitudes


@pytest.mark.parametrize(("formula", "slope"), [(INTERCEPTS, 0.0), (SLOPES, 0.7)])
@pytest.mark.parametrize("unit", [1e-200, 1e-150, 1e-12, 2.0**-40, 1e12, 2.0**40, 1e150, 1e200, 1e300])
def test_a_response_in_any_unit_is_fitted_or_refused_by_name(formula, slope, unit):
    data = students(1, slope=slope)
    base = quietly(formula, data)
    found = outcome(formula, data.assign(y=unit * data["y"]))
    if found.error is not None:
        assert isinstance(found.error, jm.DataError)
        assert not 1e-35 < unit < 1e35
        assert re.search(r"\by\b", found.text)
        assert "magnitude" in found.text
        return
    assert found.warnings == ()
    np.testing.assert_allclose(found.fit.params / unit, base.params, rtol=1e-9)
    np.testing.assert_allclose(found.fit.bse / unit, base.bse, rtol=1e-9)
    np.testing.assert_allclose(found.fit.sigma / unit, base.sigma, rtol=1e-9)
    np.testing.assert_allclose(found.fit.llf, base.llf - (base.nobs - 2) * np.log(unit), rtol=1e-12)
    np.testing.assert_allclose(found.fit.theta, base.theta, rtol=1e-8)


@pytest.mark.parametrize("unit", [1e-300, 1e-200, 1e-12, 2.0**40, 1e12, 1e60, 1e200])
@pytest.mark.parametrize(("formula", "slope"), [(INTERCEPTS, 0.0), (SLOPES, 0.7)])
def test_a_predictor_in_any_unit_is_fitted_or_refused_by_name(formula, slope, unit):
    data = students(2, slope=slope)
    base = quietly(formula, data)
    found = outcome(formula, data.assign(x=unit * data["x"]))
    if found.error is not None:
        assert isinstance(found.error, jm.DataError)
        assert not 1e-35 < unit < 1e35
        assert re.search(r"\bx\b", found.text)
        assert "magnitude" in found.text
        return
    assert found.warnings == outcome(formula, data).warnings
    assert found.fit.params["x"] * unit == pytest.approx(base.params["x"], rel=1e-9)
    assert found.fit.bse["x"] * unit == pytest.approx(base.bse["x"], rel=1e-9)
    assert found.fit.llf == pytest.approx(base.llf - np.log(unit), rel=1e-11)
    np.testing.assert_allclose(found.fit.fittedvalues, base.fittedvalues, rtol=1e-8, atol=1e-10)


def rounded(data: pd.DataFrame, bits: int = 10) -> pd.DataFrame:
    """Numbers with few bits after the point, so that adding 2**40 loses none of them."""
    return data.assign(**{name: np.round(data[name] * 2**bits) / 2**bits for name in ("y", "x")})


@pytest.mark.parametrize("shift", [2.0**20, 2.0**40, -(2.0**40)])
def test_a_shift_of_the_response_moves_the_intercept_alone(shift):
    data = rounded(students(3))
    base, moved = quietly(INTERCEPTS, data), outcome(INTERCEPTS, data.assign(y=data["y"] + shift))
    assert moved.error is None
    assert moved.warnings == ()
    assert moved.fit.params["(Intercept)"] - shift == pytest.approx(base.params["(Intercept)"], abs=1e-3)
    assert moved.fit.params["x"] == pytest.approx(base.params["x"], rel=1e-10)
    np.testing.assert_allclose(moved.fit.bse, base.bse, rtol=1e-10)
    np.testing.assert_allclose(moved.fit.llf, base.llf, rtol=1e-11)
    np.testing.assert_allclose(moved.fit.theta, base.theta, rtol=1e-9)


@pytest.mark.parametrize("shift", [2000.0, 2.0**20, 2.0**40])
def test_a_shift_of_a_predictor_moves_the_intercept_alone(shift):
    data = rounded(students(4))
    base, moved = quietly(INTERCEPTS, data), outcome(INTERCEPTS, data.assign(x=data["x"] + shift))
    assert moved.error is None
    assert moved.warnings == ()
    assert moved.fit.params["x"] == pytest.approx(base.params["x"], rel=1e-10)
    assert moved.fit.bse["x"] == pytest.approx(base.bse["x"], rel=1e-10)
    assert moved.fit.llf == pytest.approx(base.llf, rel=1e-11)


@pytest.mark.parametrize("shift", [10.0, 100.0, 2000.0, -20000.0])
def test_a_shift_of_a_random_slopes_predictor_leaves_the_likelihood(shift):
    data = rounded(students(5, slope=0.7))
    base, moved = quietly(SLOPES, data), outcome(SLOPES, data.assign(x=data["x"] + shift))
    assert moved.error is None
    assert moved.warnings == ()
    assert moved.fit.llf == pytest.approx(base.llf, rel=1e-9)
    assert moved.fit.params["x"] == pytest.approx(base.params["x"], rel=1e-6)
    slope = [fit.random_terms[0].cov.loc["x", "x"] for fit in (base, moved.fit)]
    assert slope[1] == pytest.approx(slope[0], rel=1e-5)


@pytest.mark.parametrize("shift", [1e6, 1e8, 1e10, 1e12])
def test_a_shift_beyond_the_reach_of_float64_is_never_silent(shift):
    data = rounded(students(5, slope=0.7))
    base, moved = quietly(SLOPES, data), outcome(SLOPES, data.assign(x=data["x"] + shift))
    assert moved.text or moved.fit.llf == pytest.approx(base.llf, abs=1e-4)


@pytest.mark.parametrize("weight", [1e-100, 1e-6, 3.0, 1e6, 1e100])
def test_constant_weights_multiply_the_residual_variance_alone(weight):
    data = students(6)
    base = quietly(INTERCEPTS, data)
    found = outcome(INTERCEPTS, data, weights=np.full(len(data), weight))
    if found.error is not None:
        assert not 1e-35 < weight < 1e35
        assert "weights" in found.text
        return
    assert found.warnings == ()
    assert found.fit.llf == pytest.approx(base.llf, rel=1e-11)
    assert found.fit.sigma == pytest.approx(base.sigma * np.sqrt(weight), rel=1e-9)
    np.testing.assert_allclose(found.fit.params, base.params, rtol=1e-9)
    np.testing.assert_allclose(found.fit.bse, base.bse, rtol=1e-9)
    np.testing.assert_allclose(found.fit.random_terms[0].cov, base.random_terms[0].cov, rtol=1e-8)


def test_weights_over_many_orders_of_magnitude_equal_the_dense_likelihood():
    data = students(7)
    weights = np.exp(4 * np.random.default_rng(107).normal(size=len(data)))
    found = outcome(INTERCEPTS, data, weights=weights)
    assert found.warnings == ()
    X = np.column_stack([np.ones(len(data)), data["x"]])
    block = Block(np.ones((len(data), 1)), data["g"].to_numpy())
    dense = DenseModel(data["y"].to_numpy(), X, (block,), weights=weights)
    relative = found.fit.random_terms[0].cov.to_numpy() / found.fit.sigma**2
    profile = dense.profiled((relative,), "reml")
    assert found.fit.llf == pytest.approx(profile.llf, rel=1e-10)
    np.testing.assert_allclose(found.fit.params, profile.beta, rtol=1e-8)
    for factor in (0.99, 1.01):
        assert dense.profiled((factor * relative,), "reml").llf < profile.llf


# Types


INTEGERS = np.random.default_rng(8).integers(-100, 100, size=(2, 150))


@pytest.mark.parametrize(
    "dtype",
    [
        "int8",
        "int16",
        "int32",
        "int64",
        "Int8",
        "Int64",
        "Float32",
        "Float64",
        "float32",
        "float64",
        "object",
    ],
)
def test_numbers_of_every_type_are_computed_in_float64(dtype):
    data = students(8)
    columns = {"x": pd.Series(INTEGERS[0]), "z": pd.Series(INTEGERS[1])}
    expected = quietly("y ~ x * z + (1 | g)", data.assign(**columns))
    typed = {name: column.astype(dtype) for name, column in columns.items()}
    fit = quietly("y ~ x * z + (1 | g)", data.assign(**typed))
    assert fit.llf == expected.llf
    assert fit.params["x:z"] == expected.params["x:z"]


@pytest.mark.parametrize("dtype", ["bool", "boolean", "object"])
def test_booleans_of_every_type_are_one_column(dtype):
    data = students(9)
    above = data["x"] > 0
    expected = quietly(INTERCEPTS, data.assign(x=above.astype(float)))
    fit = quietly("y ~ b + (1 | g)", data.assign(b=above.astype(dtype)))
    assert fit.params.index.tolist() == ["(Intercept)", "bTRUE"]
    np.testing.assert_allclose(fit.params, expected.params, rtol=1e-12)


def test_float32_columns_are_summed_in_float64():
    data = students(10)
    narrow = data.astype({"x": "float32", "y": "float32"})
    wide = narrow.astype({"x": "float64", "y": "float64"})
    assert quietly(INTERCEPTS, narrow).llf == quietly(INTERCEPTS, wide).llf


def tables() -> dict[str, Any]:
    data = students(11)
    data["h"] = [f"school {code}" for code in data["g"]]
    return {
        "polars": pl.DataFrame(data.to_dict("list")),
        "arrow": pa.Table.from_pandas(data),
        "lists": data.to_dict("list"),
        "arrays": {name: data[name].to_numpy() for name in data},
        "series": {name: data[name] for name in data},
        "jax": {"y": data["y"], "x": data["x"], "g": jnp.asarray(data["g"]), "h": data["h"]},
        "nullable": data.convert_dtypes(),
        "category": data.astype({"h": "category"}),
    }


@pytest.mark.parametrize("kind", list(tables()))
@pytest.mark.parametrize("group", ["g", "h"])
def test_every_kind_of_table_gives_the_same_fit_bit_for_bit(kind, group):
    data = students(11)
    data["h"] = [f"school {code}" for code in data["g"]]
    expected, fit = quietly(f"y ~ x + (1 | {group})", data), quietly(f"y ~ x + (1 | {group})", tables()[kind])
    assert fit.llf == expected.llf
    np.testing.assert_array_equal(fit.params, expected.params)
    np.testing.assert_array_equal(fit.fittedvalues, expected.fittedvalues)
    assert [str(level) for level in fit.ranef()[group].index] == [
        str(level) for level in expected.ranef()[group].index
    ]


def test_results_are_float64_and_the_users_precision_is_left_alone():
    assert not jax.config.jax_enable_x64
    settings = {name: repr(value) for name, value in jax.config.values.items()}
    before = jnp.ones(3) / 3
    fit = quietly(SLOPES, students(12, slope=0.7))
    after = jnp.ones(3) / 3
    assert (before.dtype, after.dtype) == (jnp.float32, jnp.float32)
    assert {name: repr(value) for name, value in jax.config.values.items()} == settings
    for value in (fit.params, fit.bse, fit.fittedvalues, fit.resid, fit.cov_params(), fit.ranef()["g"]):
        assert np.asarray(value).dtype == np.float64
    assert all(np.asarray(v).dtype == np.float64 for v in (fit.llf, fit.sigma, fit.theta, fit.aic))
    # Digits beyond float32 are right: the residuals of a model with an intercept are orthogonal to it.
    assert abs(fit.predict(random=False).sub(fit.frame.X @ fit.params.to_numpy()).to_numpy()).max() < 1e-13


def test_user_code_in_float32_compiled_beside_a_fit_stays_float32():
    step = jax.jit(lambda x: x * 2 + 1e-9)
    first = step(jnp.float32(1))
    quietly(INTERCEPTS, students(13))
    assert step(jnp.float32(1)).dtype == first.dtype == jnp.float32
    assert jnp.linalg.cholesky(jnp.eye(2)).dtype == jnp.float32


# Rows


def test_missing_values_are_dropped_from_every_array_together_and_counted():
    data = students(14).astype({"g": object})
    data["w"] = np.random.default_rng(1).uniform(0.5, 2, len(data))
    data.loc[[0, 7], "y"] = np.nan
    data.loc[[7, 30], "x"] = np.nan
    data.loc[61, "g"] = None
    data.loc[149, "w"] = np.nan
    data["unused"] = np.nan
    fit = quietly(INTERCEPTS, data, weights="w")
    complete = data.drop(index=[0, 7, 30, 61, 149])
    assert_same_fit(fit, quietly(INTERCEPTS, complete, weights="w"), rtol=1e-12)
    assert (fit.nobs, fit.n_dropped) == (145, 5)
    assert fit.fittedvalues.index.equals(complete.index)
    assert "5 rows dropped for missing values" in " ".join(str(fit.summary()).split())
    assert fit.ngroups["g"] == 30


def test_a_group_of_missing_rows_disappears():
    data = students(15)
    data.loc[data["g"] == 4, "x"] = np.nan
    fit = quietly(INTERCEPTS, data)
    assert 4 not in fit.ranef()["g"].index
    assert fit.ngroups["g"] == 29


def test_the_data_of_the_caller_are_never_changed():
    data = students(16)
    data.loc[5, "x"] = np.nan
    data["f"] = pd.Categorical(np.resize(list("cab"), len(data)), categories=list("cabz"))
    data.attrs["note"] = "mine"
    arrays = {name: data[name].to_numpy().copy() for name in ("y", "x", "g")}
    before, kept = data.copy(deep=True), {name: array.copy() for name, array in arrays.items()}
    table = quietly("y ~ scale(x) + f + (x | g)", data).augment()
    quietly(INTERCEPTS, arrays)
    table["y"] = 0.0
    pd.testing.assert_frame_equal(data, before)
    assert data.attrs == before.attrs
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, kept[name])


@pytest.mark.parametrize(
    "index",
    [
        pd.Index([7] * 150),
        pd.MultiIndex.from_product([range(30), range(5)], names=["g", "x"]),
        pd.date_range("2020-01-01", periods=150),
        pd.Index(range(150))[::-1],
    ],
)
def test_rows_are_positional_and_results_carry_the_index(index):
    data = students(17)
    fit = quietly(INTERCEPTS, data.set_index(index))
    assert fit.llf == quietly(INTERCEPTS, data).llf
    assert fit.fittedvalues.index.equals(index)
    assert fit.resid.index.equals(index)


# Groups


def test_unused_categories_and_the_order_of_categories_change_nothing():
    data = students(18)
    labels = data["g"].map(lambda code: f"s{code:02d}")
    categories = [f"s{code:02d}" for code in range(40)][::-1]
    expected = quietly("y ~ x + (1 | h)", data.assign(h=labels))
    for ordered in (False, True):
        fit = quietly("y ~ x + (1 | h)", data.assign(h=pd.Categorical(labels, categories, ordered=ordered)))
        assert_same_fit(fit, expected, rtol=1e-12)
        assert fit.ngroups["h"] == 30
        np.testing.assert_allclose(fit.ranef()["h"].loc["s07"], expected.ranef()["h"].loc["s07"], rtol=1e-10)


@pytest.mark.parametrize(
    "levels",
    [
        [0.1 + 0.2, 0.3],
        [2**53, 2**53 + 1],
        [1, "1"],
        ["", " "],
        ["nan", "NaN"],
        ["a", "a "],
        [True, False],
        [datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)],
        ["é", "e\u0301"],
        [0.0, 1e-320],
    ],
)
def test_levels_that_look_alike_stay_apart(levels):
    data = students(19, groups=2, size=75)
    values = pd.Series([levels[code] for code in data["g"]], dtype=object)
    fit = quietly(INTERCEPTS, data.assign(g=values))
    assert_same_fit(fit, quietly(INTERCEPTS, data), rtol=1e-8)
    assert fit.ngroups["g"] == 2


def test_colons_in_labels_do_not_merge_combinations():
    data = students(20)
    data["a"] = np.where(data["g"] % 2, "p:q", "p")
    data["b"] = np.where(data["g"] % 2, "r", "q:r") + (data["g"] // 2).astype(str)
    fit = quietly("y ~ x + (1 | a:b)", data)
    assert fit.ngroups["a:b"] == 30
    assert_same_fit(fit, quietly(INTERCEPTS, data), rtol=1e-9)


def test_two_groups_are_enough():
    assert outcome(INTERCEPTS, students(21, groups=2, size=75, between=3.0)).error is None


@pytest.mark.parametrize("method", ["ml", "reml"])
def test_singleton_groups_among_larger_ones_equal_the_dense_likelihood(method):
    data = students(22)
    data["g"] = np.r_[np.arange(60), np.repeat(np.arange(60, 75), 6)]
    found = outcome(INTERCEPTS, data, method=method)
    assert not any("may be wrong" in text for text in found.warnings)
    X = np.column_stack([np.ones(150), data["x"]])
    dense = DenseModel(data["y"].to_numpy(), X, (Block(np.ones((150, 1)), data["g"].to_numpy()),))
    relative = found.fit.random_terms[0].cov.to_numpy() / found.fit.sigma**2
    assert found.fit.llf == pytest.approx(dense.profiled((relative,), method).llf, rel=1e-11)


def test_only_one_group_with_two_rows_is_fitted_without_an_internal_error():
    data = students(23)
    data["g"] = np.r_[np.arange(149), 148]
    found = outcome(INTERCEPTS, data)
    assert found.fit is not None or found.error is not None


# Size


@pytest.mark.slow
def test_a_group_of_a_million_rows():
    n = 1_000_000
    rng = np.random.default_rng(24)
    g = (np.arange(n) >= n - 10).astype(np.int64)
    x = rng.normal(size=n)
    found = outcome(INTERCEPTS, {"y": 1 + 2 * x + 5.0 * g + rng.normal(size=n), "x": x, "g": g})
    assert found.error is None
    assert found.fit.converged
    assert found.fit.sigma == pytest.approx(1, abs=0.01)
    assert found.fit.params["x"] == pytest.approx(2, abs=0.01)


@pytest.mark.slow
def test_a_hundred_thousand_groups_of_three_equal_the_closed_form():
    design = one_way(0.7, groups=100_000, size=3, seed=25)
    found = outcome("y ~ 1 + (1 | g)", design.data)
    between, within = design.variances("reml")
    assert found.warnings == ()
    assert found.fit.sigma**2 == pytest.approx(within, rel=1e-9)
    assert found.fit.random_terms[0].cov.iloc[0, 0] == pytest.approx(between, rel=1e-7)


@pytest.mark.slow
def test_two_hundred_columns_equal_the_dense_likelihood():
    rng = np.random.default_rng(26)
    X = np.column_stack([np.ones(500), rng.normal(size=(500, 199))])
    g = np.repeat(np.arange(25), 20)
    y = X @ rng.normal(size=200) + 2 * rng.normal(size=25)[g] + rng.normal(size=500)
    names = [f"c{j}" for j in range(1, 200)]
    data = pd.DataFrame(X[:, 1:], columns=names).assign(y=y, g=g)
    found = outcome(f"y ~ {' + '.join(names)} + (1 | g)", data)
    assert found.warnings == ()
    dense = DenseModel(y, X, (Block(np.ones((500, 1)), g),))
    profile = dense.profiled((found.fit.random_terms[0].cov.to_numpy() / found.fit.sigma**2,), "reml")
    assert found.fit.llf == pytest.approx(profile.llf, rel=1e-10)
    np.testing.assert_allclose(found.fit.params, profile.beta, rtol=1e-7)
    np.testing.assert_allclose(found.fit.bse, np.sqrt(np.diagonal(profile.cov_beta)), rtol=1e-7)
