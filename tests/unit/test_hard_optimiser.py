"""The optimiser in trouble: stopped early, started badly, fed with nonsense; and options that are wrong."""

from __future__ import annotations

import numpy as np
import pytest

import jaxmixed as jm
from jaxmixed import fitting, search
from tests.support.dense import Block, DenseModel
from tests.support.fits import quietly
from tests.support.simulated import outcome, students

INTERCEPTS = "y ~ x + (1 | g)"
SLOPES = "y ~ x + (x | g)"
NESTED = "y ~ x + (1 | h/g)"


def nested(seed: int = 0):
    data = students(seed, groups=32, slope=0.0)
    data["h"] = data["g"] // 4
    data["y"] += 1.5 * np.random.default_rng(seed + 100).normal(size=8)[data["h"]]
    return data


# Stopped early


@pytest.mark.parametrize("formula", [INTERCEPTS, SLOPES, NESTED])
def test_one_iteration_is_not_enough_and_everything_says_so(formula):
    data = nested()
    with pytest.warns(jm.ConvergenceWarning, match="limit on iterations.*gradient is not zero"):
        fit = jm.mixed(formula, data, max_iterations=1)
    assert not fit.converged
    assert not fit.diagnostics.converged
    assert "not converged" in fit.diagnostics.status
    assert "WARNING: not converged: the limit on iterations was reached" in str(fit.summary())
    assert "not converged" in fit.summary()._repr_html_()
    assert "NOT CONVERGED" in repr(fit)
    assert not fit.glance()["converged"].iloc[0]
    assert np.isfinite(fit.params).all()


@pytest.mark.parametrize("formula", [INTERCEPTS, SLOPES, NESTED])
def test_a_status_never_contradicts_the_verdict(formula):
    for limit in (1, 2, 3, 4, 5, 6, 100):
        fit = quietly(formula, nested(), max_iterations=limit)
        assert fit.converged == (not fit.diagnostics.messages)
        assert fit.diagnostics.status.startswith("converged") == fit.converged


def test_the_reported_likelihood_is_that_of_the_reported_parameters_even_when_stopped_early():
    data = students(3, slope=0.7)
    X = np.column_stack([np.ones(150), data["x"]])
    dense = DenseModel(data["y"].to_numpy(), X, (Block(X, data["g"].to_numpy()),))
    for limit in (1, 2, 3, 100):
        fit = quietly(SLOPES, data, max_iterations=limit)
        profile = dense.profiled((fit.random_terms[0].cov.to_numpy() / fit.sigma**2,), "reml")
        assert fit.llf == pytest.approx(profile.llf, rel=1e-11)
        assert fit.sigma == pytest.approx(profile.sigma, rel=1e-10)
        np.testing.assert_allclose(fit.params, profile.beta, rtol=1e-9)


# Started badly


@pytest.mark.parametrize("factor", [1e-6, 1e-2, 10.0, 1e3, -1.0])
@pytest.mark.parametrize("formula", [INTERCEPTS, SLOPES, NESTED])
def test_the_optimum_does_not_depend_on_the_start(formula, factor, monkeypatch):
    data = nested(4)
    expected = quietly(formula, data)
    moment_start = fitting.moment_start
    monkeypatch.setattr(fitting, "moment_start", lambda *arguments: factor * moment_start(*arguments))
    found = outcome(formula, data)
    assert found.fit.converged, found.text
    assert found.fit.llf == pytest.approx(expected.llf, abs=1e-8)
    np.testing.assert_allclose(found.fit.theta, expected.theta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("formula", [INTERCEPTS, SLOPES, NESTED])
def test_a_start_at_zero_where_the_gradient_vanishes_is_left(formula, monkeypatch):
    data = nested(5)
    expected = quietly(formula, data)
    moment_start = fitting.moment_start
    monkeypatch.setattr(fitting, "moment_start", lambda *arguments: 0 * moment_start(*arguments))
    found = outcome(formula, data)
    assert found.fit.llf == pytest.approx(expected.llf, abs=1e-8) or not found.fit.converged
    assert found.fit.converged, "the saddle at zero was not left"


def broken(real, *, failures: int):
    """The compiled program, giving NaN the first times it is called."""
    calls = []

    def program(x, *arguments, **static):
        output = list(real(x, *arguments, **static))
        calls.append(x)
        if len(calls) <= failures:
            output[1] = np.asarray(np.nan)
            output[3] = np.full((len(x), len(x)), np.nan)
            output[7] = np.asarray(3)
        return tuple(output)

    return program


def test_a_start_without_a_finite_likelihood_is_followed_by_others(monkeypatch):
    data = students(6)
    expected = quietly(INTERCEPTS, data)
    monkeypatch.setattr(search, "PROGRAM", broken(search.PROGRAM, failures=1))
    found = outcome(INTERCEPTS, data)
    assert found.warnings == ()
    assert found.fit.llf == pytest.approx(expected.llf, rel=1e-12)


def test_when_no_start_works_the_error_lists_what_was_tried(monkeypatch):
    monkeypatch.setattr(search, "PROGRAM", broken(search.PROGRAM, failures=10**6))
    found = outcome(INTERCEPTS, students(7))
    assert isinstance(found.error, jm.DesignError)
    assert "not finite at any start" in found.text
    assert "moments, 0.2 and 4 times" in found.text


# The report of the optimum


@pytest.mark.parametrize("formula", [INTERCEPTS, SLOPES, NESTED])
def test_a_converged_fit_has_a_small_gradient_and_positive_curvature(formula):
    fit = quietly(formula, nested(8).assign(y=lambda d: d["y"] + 0.8 * d["x"] * np.sin(d["g"])))
    checks = fit.diagnostics
    assert fit.converged
    assert checks.gradient_norm <= 1e-6
    assert checks.newton_decrement < 1e-9
    assert (checks.hessian_eigenvalues > 0).all()
    assert 1 <= checks.iterations < 30
    assert checks.messages == ()


# Options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "REML"}, "'reml' or 'ml'"),
        ({"method": "mle"}, "'reml' or 'ml'"),
        ({"method": None}, "'reml' or 'ml'"),
        ({"method": 1}, "'reml' or 'ml'"),
        ({"max_iterations": 0}, "max_iterations=0"),
        ({"max_iterations": -5}, "max_iterations=-5"),
        ({"max_iterations": 2.5}, "max_iterations=2.5"),
        ({"max_iterations": "10"}, "max_iterations='10'"),
        ({"max_iterations": True}, "max_iterations=True"),
        ({"covariance": "diag"}, "'unstructured', 'independent', 'identity', 'exchangeable'"),
        ({"covariance": {"g": "unstrucured"}}, "'unstructured', 'independent', 'identity', 'exchangeable'"),
        ({"covariance": {"school": "identity"}}, "its groups are 'g'"),
        ({"covariance": 3}, "covariance"),
        ({"covariance": ["identity"]}, "covariance"),
        ({"covariance": {"g": 3}}, "'unstructured'"),
        ({"missing": "ignore"}, "'drop', 'raise'"),
        ({"residuals": "ar1"}, "give time="),
        ({"residuals": "arr(t | g)"}, "did you mean 'ar'"),
        ({"residuals": 3}, "jm.residuals"),
        ({"contrasts": {"f": "sum"}}, "'f'"),
        ({"contrasts": 5}, "contrasts"),
        ({"contrasts": "sum"}, "contrasts"),
        ({"functions": 5}, "functions"),
        ({"functions": {"f": 3}}, "functions"),
        ({"weights": "wieghts"}, "wieghts"),
        ({"offset": "ofset"}, "ofset"),
    ],
)
def test_a_wrong_option_is_an_error_that_lists_what_is_valid(options, says):
    found = outcome(SLOPES, students(9), **options)
    assert found.error is not None
    assert says in found.text


@pytest.mark.parametrize("keyword", ["reml", "mehtod", "maxiter", "REML", "control"])
def test_a_misspelt_keyword_is_never_swallowed(keyword):
    with pytest.raises(TypeError, match=keyword):
        jm.mixed(INTERCEPTS, students(10), **{keyword: True})


@pytest.mark.parametrize("formula", [5, None, b"y ~ x", ["y ~ x"], ""])
def test_a_formula_that_is_no_text_is_an_error(formula):
    assert isinstance(outcome(formula, students(10)).error, jm.FormulaError)
