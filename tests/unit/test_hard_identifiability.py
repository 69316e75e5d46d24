"""Models that the data cannot identify: refused or flagged by name, and the identified part is right."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from tests.support.fits import quietly
from tests.support.simulated import outcome, students

INTERCEPTS = "y ~ x + (1 | g)"


def assert_equals_reduced(fit: jm.MixedResults, reduced: jm.MixedResults) -> None:
    """Same likelihood, variances and fitted values as the model without the dropped columns."""
    assert fit.llf == pytest.approx(reduced.llf, rel=1e-11)
    assert fit.sigma == pytest.approx(reduced.sigma, rel=1e-9)
    np.testing.assert_allclose(fit.fittedvalues, reduced.fittedvalues, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(fit.predict(random=False), reduced.predict(random=False), rtol=1e-8, atol=1e-9)
    assert fit.num_params == reduced.num_params


# Fixed effects


def with_extra_columns() -> pd.DataFrame:
    data = students(1)
    rng = np.random.default_rng(101)
    data["z"] = rng.normal(size=len(data))
    data["double"] = 2 * data["x"]
    data["constant"] = 0.1
    data["zero"] = 0.0
    data["total"] = data["x"] + data["z"] - 3
    data["big"] = 1e9 * data["x"]
    data["small"] = 1e-9 * data["x"]
    return data


@pytest.mark.parametrize(
    ("fixed", "dropped", "reduced"),
    [
        ("x + double", ["double"], "x"),
        ("double + x", ["x"], "double"),
        ("x + constant", ["constant"], "x"),
        ("x + zero", ["zero"], "x"),
        ("zero + x", ["zero"], "x"),
        ("x + z + total", ["total"], "x + z"),
        ("total + x + z", ["z"], "total + x"),
        ("x + big", ["big"], "x"),
        ("x + small", ["small"], "x"),
        ("small + x", ["x"], "small"),
        ("x + double + zero + constant", ["double", "zero", "constant"], "x"),
        ("0 + constant + x", [], "0 + constant + x"),
        ("0 + constant + zero + x", ["zero"], "0 + constant + x"),
    ],
)
@pytest.mark.parametrize("method", ["ml", "reml"])
def test_dependent_columns_are_dropped_the_later_ones_and_named(fixed, dropped, reduced, method):
    data = with_extra_columns()
    found = outcome(f"y ~ {fixed} + (1 | g)", data, method=method)
    assert found.error is None
    if not dropped:
        assert found.warnings == ()
        return
    fit = found.fit
    assert len(found.warnings) == 1
    assert f"dropped {', '.join(dropped)} " in found.text
    assert fit.params.index[fit.params.isna()].tolist() == dropped
    assert fit.bse.index[fit.bse.isna()].tolist() == dropped
    assert fit.cov_params().loc[dropped].isna().all(axis=None)
    assert fit.conf_int().loc[dropped].isna().all(axis=None)
    printed = " ".join(str(fit.summary()).split())
    assert all(name in printed for name in dropped)
    assert "WARNING" in printed
    assert_equals_reduced(fit, quietly(f"y ~ {reduced} + (1 | g)", data, method=method))


def test_dropping_warns_with_its_own_class():
    with pytest.warns(jm.RankDeficientWarning, match="dropped double"):
        jm.mixed("y ~ x + double + (1 | g)", with_extra_columns())


@pytest.mark.parametrize("method", ["ml", "reml"])
def test_an_empty_cell_of_an_interaction_is_aliased_in_full_length_output(method):
    data = students(2)
    data["a"] = np.array(list("abc"))[np.arange(150) % 3]
    data["b"] = np.array(list("uv"))[(np.arange(150) // 3) % 2]
    data = data[~((data["a"] == "c") & (data["b"] == "v"))]
    data["ab_v"] = ((data["a"] == "b") & (data["b"] == "v")).astype(float)
    found = outcome("y ~ a * b + (1 | g)", data, method=method)
    assert found.fit.params.index.tolist() == ["(Intercept)", "ab", "ac", "bv", "ab:bv", "ac:bv"]
    assert found.fit.params.index[found.fit.params.isna()].tolist() == ["ac:bv"]
    assert "ac:bv" in found.text
    reduced = quietly("y ~ a + b + ab_v + (1 | g)", data, method=method)
    assert_equals_reduced(found.fit, reduced)
    np.testing.assert_allclose(found.fit.params.dropna(), reduced.params, rtol=1e-9)
    np.testing.assert_allclose(found.fit.bse.dropna(), reduced.bse, rtol=1e-9)


@pytest.mark.parametrize("size", [1e-9, 1e-8])
def test_nearly_collinear_columns_give_finite_numbers_and_a_warning(size):
    data = students(3)
    data["near"] = data["x"] + size * np.random.default_rng(103).normal(size=len(data))
    found = outcome("y ~ x + near + (1 | g)", data)
    assert "nearly collinear" in found.text
    assert np.isfinite(found.fit.params).all()
    assert np.isfinite(found.fit.bse).all()
    # The sum of the two coefficients is well determined although neither is.
    total = found.fit.params["x"] + found.fit.params["near"]
    assert total == pytest.approx(quietly(INTERCEPTS, data).params["x"], abs=0.5)


def test_moderate_collinearity_needs_no_warning_and_agrees_with_the_rotated_model():
    data = students(4)
    noise = np.random.default_rng(104).normal(size=len(data))
    data = data.assign(near=data["x"] + 1e-5 * noise, noise=1e-5 * noise)
    found = outcome("y ~ x + near + (1 | g)", data)
    rotated = quietly("y ~ x + noise + (1 | g)", data)
    assert found.warnings == ()
    assert found.fit.llf == pytest.approx(rotated.llf, rel=1e-9)
    assert found.fit.params["near"] == pytest.approx(rotated.params["noise"], rel=1e-6)


def test_columns_in_very_different_units_need_no_warning():
    data = students(5)
    z = np.random.default_rng(105).normal(size=len(data))
    found = outcome("y ~ x + z + (1 | g)", data.assign(x=1e8 * data["x"], z=1e-8 * z))
    base = quietly("y ~ x + z + (1 | g)", data.assign(z=z))
    assert found.warnings == ()
    assert found.fit.params["x"] * 1e8 == pytest.approx(base.params["x"], rel=1e-9)
    assert found.fit.params["z"] * 1e-8 == pytest.approx(base.params["z"], rel=1e-9)


# Random effects


@pytest.mark.parametrize(
    ("formula", "group", "says"),
    [
        (INTERCEPTS, np.arange(150), "150 levels for 150 rows"),
        ("y ~ x + (1 | h/g)", np.arange(150), "150 levels for 150 rows"),
        (INTERCEPTS, np.zeros(150), "'g' of (1 | g) has one level"),
        ("y ~ x + (x | g)", np.repeat(np.arange(75), 2), "150 random effects, 150 rows"),
        ("y ~ x + factor(g) + (1 | g)", None, "'g' has fixed effects"),
        ("y ~ x + (1 | g) + (1 | copy)", None, "'g' and 'copy' split the rows into the same 30 groups"),
        ("y ~ x + (x | g) + (0 + x | copy)", None, "'g' and 'copy' split the rows into the same 30 groups"),
        ("y ~ x + (1 | g) + (1 + x | g)", None, "not identifiable"),
    ],
)
def test_random_terms_that_are_not_identified_are_refused_by_name(formula, group, says):
    data = students(6)
    data["copy"] = [f"name {code}" for code in data["g"]]
    data["h"] = data["g"] // 3
    found = outcome(formula, data if group is None else data.assign(g=group))
    assert isinstance(found.error, jm.DesignError | jm.DataError | jm.FormulaError)
    assert says in found.text


@pytest.mark.parametrize("formula", ["y ~ x + copy + (1 | g)", "y ~ x * copy + (x | g)"])
def test_a_disguised_copy_of_the_group_among_the_fixed_effects_is_never_silent(formula):
    data = students(7, groups=6, size=25)
    data["copy"] = [f"name {code}" for code in data["g"]]
    found = outcome(formula, data)
    assert found.text
    if found.fit is not None:
        assert not found.fit.converged or found.fit.is_singular
        assert "not a minimum" not in found.text


@pytest.mark.parametrize("value", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("term", ["(z | g)", "(z || g)"])
def test_a_constant_slope_column_is_flagged_and_leaves_the_likelihood(value, term):
    data = students(8).assign(z=value)
    found = outcome(f"y ~ x + {term}", data)
    assert found.text
    assert "not a minimum" not in found.text  # a flat direction is no saddle
    if found.fit is not None:
        assert "z" in found.text
        assert found.fit.llf == pytest.approx(quietly(INTERCEPTS, data).llf, abs=1e-7)
        np.testing.assert_allclose(found.fit.params, quietly(INTERCEPTS, data).params, rtol=1e-6)


def test_a_slope_column_of_zeros_alone_is_flagged():
    found = outcome("y ~ x + (0 + z | g)", students(9).assign(z=0.0))
    assert "z" in found.text


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_collinear_slopes_are_flagged(value):
    data = students(10, slope=0.7)
    found = outcome("y ~ x + (x + z | g)", data.assign(z=2 * data["x"] + value))
    assert found.text
    assert "not a minimum" not in found.text


@pytest.mark.parametrize("groups", [2, 3])
def test_a_covariance_of_more_effects_than_groups_is_singular_and_finite(groups):
    rng = np.random.default_rng(groups)
    g = np.repeat(np.arange(groups), 120 // groups)
    X = rng.normal(size=(120, 2))
    y = X.sum(axis=1) + (X * rng.normal(size=(groups, 2))[g]).sum(axis=1) + rng.normal(size=120)
    data = pd.DataFrame(X, columns=["x0", "x1"]).assign(y=y, g=g)
    found = outcome("y ~ x0 + x1 + (x0 + x1 | g)", data)
    assert found.error is None
    assert found.fit.is_singular
    assert found.fit.converged, found.text
    assert "singular" in found.text
    assert np.linalg.matrix_rank(found.fit.random_terms[0].cov, tol=1e-10) < groups
    assert np.isfinite(found.fit.bse).all()


@pytest.mark.slow
@pytest.mark.parametrize("groups", [5, 12])
def test_a_ten_by_ten_covariance_from_few_groups_is_singular_and_finite(groups):
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(groups), 300 // groups)
    X = rng.normal(size=(300, 9))
    y = X.sum(axis=1) + (X * rng.normal(size=(groups, 9))[g]).sum(axis=1) + rng.normal(size=300)
    names = [f"x{j}" for j in range(9)]
    data = pd.DataFrame(X, columns=names).assign(y=y, g=g)
    effects = " + ".join(names)
    found = outcome(f"y ~ {effects} + ({effects} | g)", data)
    assert found.error is None
    assert found.fit.is_singular
    assert found.fit.converged, found.text
    assert np.isfinite(found.fit.bse).all()
    independent = quietly(f"y ~ {effects} + ({effects} || g)", data)
    assert found.fit.llf > independent.llf  # the larger model


# No residual variance


def noise(size: int, seed: int = 11) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size)


@pytest.mark.parametrize(
    ("formula", "response"),
    [
        ("y ~ x", lambda data: 3 + 2 * data["x"]),
        (INTERCEPTS, lambda data: 3 + 2 * data["x"]),
        (INTERCEPTS, lambda data: 1e8 * (3 + 2 * data["x"])),
        (INTERCEPTS, lambda data: 3 + 2 * data["x"] + 1e-15 * noise(150)),
        (INTERCEPTS, lambda data: data["x"]),
        ("y ~ 1 + (1 | g)", lambda data: noise(30)[data["g"]]),
        (INTERCEPTS, lambda data: noise(30)[data["g"]]),
        (INTERCEPTS, lambda data: 2 * data["x"] + noise(30)[data["g"]]),
        ("y ~ x + (x | g)", lambda data: noise(30)[data["g"]] * data["x"] + noise(30, 12)[data["g"]]),
        ("y ~ x + (0 + x | g)", lambda data: noise(30)[data["g"]] * data["x"]),
        ("y ~ 1 + (1 | h/g)", lambda data: noise(30)[data["g"]]),
    ],
)
@pytest.mark.parametrize("method", ["ml", "reml"])
def test_a_response_without_residual_variation_is_refused_with_the_reason(formula, response, method):
    data = students(12)
    data["h"] = data["g"] // 3
    data["y"] = response(data)
    found = outcome(formula, data, method=method)
    assert isinstance(found.error, jm.DesignError)
    assert "residual variance is zero" in found.text


@pytest.mark.parametrize(("columns", "error"), [(150, True), (160, True), (148, False)])
def test_too_many_columns_for_the_rows_are_an_error_with_both_numbers(columns, error):
    rng = np.random.default_rng(13)
    data = {f"c{j}": rng.normal(size=150) for j in range(columns - 1)}
    data["y"] = rng.normal(size=150)
    found = outcome(f"y ~ {' + '.join(list(data)[:-1])}", data)
    assert (found.error is not None) == error
    if error:
        assert isinstance(found.error, jm.DesignError)
        assert str(columns) in found.text
        assert "150" in found.text


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("formula", ["y ~ 1 + (1 | g)", INTERCEPTS, "y ~ x + (x | g)", "y ~ x", "y ~ 1"])
def test_a_handful_of_rows_is_fitted_or_refused_with_a_reason(formula, rows):
    data = pd.DataFrame({"y": [1.0, 2, 4, 3, 7], "x": [1.0, 2, 3, 4, 6], "g": [0, 0, 1, 1, 2]})[:rows]
    found = outcome(formula, data)
    if found.fit is not None:
        assert np.isfinite(found.fit.llf)
        assert found.fit.nobs == rows
