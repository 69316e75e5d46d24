"""Stated parameters: every form of a covariance, matching by name, and refusals that say what there is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.frame import ModelFrame, build_frame
from jaxmixed.parameters import ModelParameters, fitted_parameters, stated_parameters
from tests.support.fits import aliased, quietly, sleepstudy, two_terms

SLOPES = "y ~ x + f + (x | g)"
COV = [[4.0, -0.6], [-0.6, 0.25]]
"""Standard deviations 2 and 0.5, correlation -0.6."""


def frame(formula: str) -> ModelFrame:
    n = 60
    rng = np.random.default_rng(1)
    data = {
        "y": rng.normal(size=n),
        "x": rng.normal(size=n),
        "z": rng.normal(size=n),
        "f": list("abc") * 20,
        "g": np.arange(n) // 6,
        "h": np.arange(n) % 5,
    }
    return build_frame(formula, data)


def stated(formula: str = SLOPES, **changes: Any) -> ModelParameters:
    params = {"beta": [1, 2, 3, 4], "random": {"g": COV}, "sigma": 1.5}
    return stated_parameters(frame(formula), {**params, **changes})


def covariance(entry: Any, term: str = "(x | g)") -> np.ndarray:
    (found,) = stated(f"y ~ x + f + {term}", random={"g": entry}).covariances
    return found


def message(**changes: Any) -> str:
    with pytest.raises(jm.DataError) as caught:
        stated(**changes)
    return str(caught.value)


# Forms


def test_coefficients_go_by_name_or_by_order() -> None:
    named = {"x": 2, "fc": 4, "(Intercept)": 1, "fb": 3}
    for beta in (named, pd.Series(named), [1, 2, 3, 4], np.arange(1, 5), (1.0, 2, 3, 4)):
        np.testing.assert_array_equal(stated(beta=beta).beta, [1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize(
    "entry",
    [
        COV,
        np.array(COV),
        pd.DataFrame(COV, index=["(Intercept)", "x"], columns=["(Intercept)", "x"]),
        pd.DataFrame([[0.25, -0.6], [-0.6, 4.0]], index=["x", "(Intercept)"], columns=["x", "(Intercept)"]),
        {"sd": [2, 0.5], "corr": -0.6},
        {"sd": {"x": 0.5, "(Intercept)": 2}, "corr": [[1, -0.6], [-0.6, 1]]},
        {
            "sd": pd.Series({"x": 0.5, "(Intercept)": 2.0}),
            "corr": pd.DataFrame([[1, -0.6], [-0.6, 1]], index=["x", "(Intercept)"]).set_axis(
                ["x", "(Intercept)"], axis=1
            ),
        },
    ],
    ids=["lists", "array", "table", "table in another order", "sd, corr", "by name", "Series"],
)
def test_a_covariance_has_several_forms(entry: Any) -> None:
    np.testing.assert_allclose(covariance(entry), COV, rtol=1e-14)


def test_a_number_is_a_standard_deviation_and_a_matrix_holds_variances() -> None:
    for entry in (0.5, np.float32(0.5), [[0.25]], {"sd": 0.5}, {"sd": [0.5]}, {"sd": {"(Intercept)": 0.5}}):
        np.testing.assert_array_equal(covariance(entry, "(1 | g)"), [[0.25]])
    assert covariance(0, "(1 | g)") == 0.0


def test_effects_without_correlations_given_are_independent() -> None:
    np.testing.assert_array_equal(covariance({"sd": [2, 0.5]}), np.diag([4, 0.25]))
    np.testing.assert_array_equal(covariance({"sd": [2, 0.5], "corr": None}), np.diag([4, 0.25]))


def test_structures_with_one_variance_take_one_standard_deviation() -> None:
    np.testing.assert_array_equal(covariance(0.5, "homdiag(0 + f | g)"), 0.25 * np.eye(3))
    np.testing.assert_array_equal(covariance({"sd": 0.5}, "homdiag(0 + f | g)"), 0.25 * np.eye(3))
    np.testing.assert_allclose(
        covariance({"sd": 2, "corr": 0.25}, "cs(0 + f | g)"), np.full((3, 3), 1.0) + 3 * np.eye(3)
    )


def test_several_terms_of_a_group_take_a_list() -> None:
    found = stated(
        "y ~ x + f + (1 | g) + (1 | h) + (0 + x + z | g)", random={"h": 3, "g": [2, [[1, 0.5], [0.5, 1]]]}
    )
    assert [cov.tolist() for cov in found.covariances] == [[[4.0]], [[9.0]], [[1.0, 0.5], [0.5, 1.0]]]


def test_singular_covariances_are_covariances() -> None:
    np.testing.assert_array_equal(covariance([[1, 2], [2, 4]]), [[1, 2], [2, 4]])
    np.testing.assert_array_equal(covariance({"sd": [0, 3], "corr": 1}), np.diag([0, 9]))
    np.testing.assert_array_equal(covariance([[0, 0], [0, 0]]), np.zeros((2, 2)))
    tiny = np.array([[1.0, 1e-9], [1e-9, 1e-18]])  # correlation 1 in unequal units
    np.testing.assert_array_equal(covariance(tiny), tiny)
    rounded = covariance([[1.0, 0.5], [0.5 + 1e-12, 1.0]])
    assert rounded[0, 1] == rounded[1, 0]


def test_what_a_model_lacks_need_not_be_given() -> None:
    found = stated_parameters(frame("y ~ x"), {"beta": [1, 2], "sigma": 1})
    assert found.covariances == ()
    found = stated_parameters(frame("y ~ 0 + (1 | g)"), {"random": {"g": 1}, "sigma": np.float64(2)})
    assert found.beta.shape == (0,)
    assert found.sigma == 2.0


# Fits


def test_the_estimates_of_a_fit_are_matched_by_name() -> None:
    found = sleepstudy()
    other = build_frame("Reaction ~ 0 + Days + one + (0 + Days + one | Subject)", _with_ones())
    with pytest.raises(jm.DataError, match=r"params\['beta'\] has '\(Intercept\)'; .* are 'Days', 'one'"):
        fitted_parameters(other, found.frame.x_names, found.estimates)
    parameters = fitted_parameters(found.frame, found.frame.x_names, found.estimates)
    np.testing.assert_array_equal(parameters.beta, found.params)
    np.testing.assert_array_equal(parameters.covariances[0], found.random_terms[0].cov)
    assert parameters.sigma == found.sigma


def _with_ones() -> pd.DataFrame:
    return jm.datasets.load("sleepstudy").assign(one=1.0)


def test_terms_of_a_fit_are_matched_in_the_order_of_the_formula() -> None:
    found = two_terms()
    by_term = {term.names: term.cov for term in found.estimates.terms}
    for terms in (found.estimates.terms, found.estimates.terms[::-1]):
        estimates = replace(found.estimates, terms=terms)
        parameters = fitted_parameters(found.frame, found.frame.x_names, estimates)
        for group, cov in zip(found.frame.groups, parameters.covariances, strict=True):
            np.testing.assert_array_equal(cov, by_term[group.names])


def test_dropped_coefficients_of_a_fit_count_as_zero() -> None:
    found = aliased()
    parameters = fitted_parameters(found.frame, found.frame.x_names, found.estimates)
    assert parameters.beta[list(found.frame.x_names).index("Days2")] == 0.0


def test_a_fit_may_have_another_structure_than_the_formula_names() -> None:
    data = jm.datasets.load("sleepstudy")
    found = quietly("Reaction ~ Days + (Days || Subject)", data, covariance="unstructured")
    parameters = fitted_parameters(found.frame, found.frame.x_names, found.estimates)
    assert abs(parameters.covariances[0][0, 1]) > 1


# Refusals


def test_parts_that_are_unknown_or_missing_are_named() -> None:
    with pytest.raises(jm.DataError, match="params is a list; give a mapping with 'beta', 'random' and"):
        stated_parameters(frame(SLOPES), [1, 2])
    assert message(Sigma=2) == (
        "params has 'Sigma' (did you mean 'sigma'?); its parts are 'beta', 'random', 'sigma'"
    )
    with pytest.raises(jm.DataError, match="params lacks 'random', 'sigma'; its parts are"):
        stated_parameters(frame(SLOPES), {"beta": [1, 2, 3, 4]})


def test_coefficients_that_are_unknown_or_missing_are_named() -> None:
    named = {"x": 2, "fc": 4, "(Intercept)": 1, "fb": 3}
    assert message(beta={**named, "fd": 1}) == (
        "params['beta'] has 'fd'; its coefficients are '(Intercept)', 'x', 'fb', 'fc'"
    )
    assert "has 'Intercept' (did you mean '(Intercept)'?)" in message(beta={"Intercept": 1})
    assert "params['beta'] lacks 'fb', 'fc'; its" in message(beta={"x": 2, "(Intercept)": 1})
    assert message(beta=[1, 2, 3]) == (
        "params['beta'] is an array of shape (3,); give a number for each of 4 coefficients, in this order or"
        " by name: '(Intercept)', 'x', 'fb', 'fc'"
    )
    assert "params['beta'] is one number" in message(beta=3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_parameters_must_be_finite(value: float) -> None:
    named = {"x": value, "fc": 4, "(Intercept)": 1, "fb": 3}
    assert "params['beta']['x'] must be finite" in message(beta=named)
    assert "params['beta'] must be finite" in message(beta=[1, value, 3, 4])
    assert "params['sigma'] must be finite" in message(sigma=value)
    assert "params['random']['g'] must be finite" in message(random={"g": [[value, 0], [0, 1]]})


@pytest.mark.parametrize("value", ["1", True, None, 1j, [True, False], {1}], ids=repr)
def test_parameters_must_be_numbers(value: object) -> None:
    assert "params['sigma'] must be a number" in message(sigma=value)
    assert "params['random']['g'] must be a number" in message(random={"g": value})


def test_sigma_must_be_one_positive_number() -> None:
    assert "params['sigma'] is 0; the residual standard deviation must be positive" in message(sigma=0)
    assert "params['sigma'] is -1" in message(sigma=-1)
    assert "params['sigma'] is [1, 2]; give one number" in message(sigma=[1, 2])


def test_groups_that_are_unknown_or_missing_are_named() -> None:
    assert message(random={"G": COV}) == "params['random'] has 'G'; its groups are 'g'"
    assert message(random={}) == "params['random'] lacks 'g'; its groups are 'g'"
    assert "params['random'] is a list; give a mapping from group labels" in message(random=[COV])
    assert "has 'school'; its groups are none" in message(formula="y ~ x", beta=[1, 2], random={"school": 1})


def test_the_shape_of_a_covariance_is_that_of_its_term() -> None:
    said = message(random={"g": 2})
    assert said == (
        "params['random']['g'] is a number; the term (1 + x | g) has 2 effects ('(Intercept)', 'x'): give a 2"
        ' × 2 covariance matrix, or {"sd": [...], "corr": ...}'
    )
    assert "is an array of shape (2,)" in message(random={"g": [2, 0.5]})
    assert "is an array of shape (3, 3)" in message(random={"g": np.eye(3)})
    assert "rows of different lengths" in message(random={"g": [[1, 2], [1]]})
    assert "one effect ('(Intercept)'): give a standard deviation or a 1 × 1" in message(
        formula="y ~ x + f + (1 | g)", random={"g": COV}
    )
    table = pd.DataFrame(COV, index=["(Intercept)", "x"], columns=["(Intercept)", "z"])
    assert "params['random']['g'] has 'z'; its effects are '(Intercept)', 'x'" in message(random={"g": table})
    twice = pd.DataFrame(np.eye(3)[:2], index=["(Intercept)", "x"], columns=["(Intercept)", "x", "x"])
    assert "names an effect twice" in message(random={"g": twice})


def test_standard_deviations_and_correlations_are_checked() -> None:
    def said(**entry: Any) -> str:
        return message(random={"g": entry})

    assert "lacks 'sd'; its parts are 'sd', 'corr'" in said(corr=0.5)
    assert "has 'cor' (did you mean 'corr'?)" in said(sd=[1, 2], cor=0.5)
    assert "params['random']['g']['sd'] is one number; give a number for each of 2 effects" in said(sd=1)
    assert "['sd'] gives 'x' the standard deviation -1; standard deviations cannot be negative" in said(
        sd=[1, -1]
    )
    assert "params['random']['g']['sd'] has 'z'; its effects" in said(sd={"z": 1})
    assert "['corr'] is no correlation matrix" in said(sd=[1, 1], corr=1.2)
    assert "['corr'] is no correlation matrix" in said(sd=[1, 1], corr=[[2, 0], [0, 1]])
    assert "['corr'] is not symmetric: 0.5 for '(Intercept)', 'x', but 0.4 for" in said(
        sd=[1, 1], corr=[[1, 0.5], [0.4, 1]]
    )
    assert "['corr'] is of shape (3, 3); the term (1 + x | g) has 2 effects" in said(
        sd=[1, 1], corr=np.eye(3)
    )
    one = message(formula="y ~ x + f + (1 | g)", random={"g": {"sd": 1, "corr": 0.5}})
    assert "['corr'] is a number; the term (1 | g) has one effect ('(Intercept)'): leave it out" in one
    assert "gives '(Intercept)' the standard deviation -2" in message(
        formula="y ~ x + f + (1 | g)", random={"g": -2}
    )


def test_a_matrix_that_is_no_covariance_is_refused() -> None:
    assert "gives 'x' the variance -1; variances cannot be negative" in message(
        random={"g": [[1, 0], [0, -1]]}
    )
    assert "is not symmetric: 0.5 for '(Intercept)', 'x', but 0.6" in message(
        random={"g": [[1, 0.5], [0.6, 1]]}
    )
    assert "is not positive semidefinite: the correlations of '(Intercept)', 'x'" in message(
        random={"g": [[1, 3], [3, 4]]}
    )
    assert "['corr'] is not positive semidefinite" in message(
        formula="y ~ x + f + (0 + f | g)", random={"g": {"sd": [1, 1, 1], "corr": -0.6}}
    )
    assert "not positive semidefinite" in message(random={"g": [[0, 1], [1, 4]]})
    assert "not positive semidefinite" in message(random={"g": [[1e-20, 2e-20], [2e-20, 1e-20]]})


def test_a_covariance_that_contradicts_the_formula_is_refused() -> None:
    for term, entry, meaning in (
        ("(x || g)", COV, r"\(1 \+ x \|\| g\), whose effects are independent, without correlations"),
        ("homdiag(x | g)", [[4, 0], [0, 1]], "identity, with one variance and without correlations"),
        ("cs(0 + f | g)", {"sd": [1, 1, 2]}, "exchangeable, with one variance and one correlation"),
        (
            "cs(0 + f | g)",
            {"sd": 1, "corr": [[1, 0.5, 0.5], [0.5, 1, 0.4], [0.5, 0.4, 1]]},
            "one correlation; change one of the two",
        ),
    ):
        with pytest.raises(jm.DataError, match=meaning):
            covariance(entry, term)
    np.testing.assert_array_equal(covariance(np.diag([4, 1]), "(x || g)"), np.diag([4, 1]))
    np.testing.assert_array_equal(covariance(np.zeros((3, 3)), "cs(0 + f | g)"), np.zeros((3, 3)))


def test_a_group_with_several_terms_wants_as_many_entries() -> None:
    formula = "y ~ x + f + (1 | g) + (0 + x | g)"
    for entry in (2, [2], [1, 2, 3], {"sd": [1, 2]}, np.eye(2)):
        assert "has 2 terms ((1 | g), (0 + x | g)): params['random']['g'] must be a list" in message(
            formula=formula, random={"g": entry}
        )
    assert "params['random']['g'][1] gives 'x' the standard deviation -1" in message(
        formula=formula, random={"g": [2, -1]}
    )
