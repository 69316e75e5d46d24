"""Optima with residual parameters at the end of their range, and likelihoods without a maximum."""

import warnings

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.residual_covariance import FARTHEST
from jaxmixed.results import MixedResults

GROUPS, TIMES = 40, 5


def table(errors: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """Data with errors (groups, times) about a line."""
    x = rng.standard_normal(errors.size)
    g, t = (own.ravel() for own in np.indices(errors.shape))
    return pd.DataFrame({"y": 1 + x + errors.ravel(), "x": x, "g": g, "t": t})


def quietly(data: pd.DataFrame, residuals: str | jm.residuals.ResidualStructure) -> MixedResults:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.SingularFitWarning)
        warnings.simplefilter("ignore", jm.ConvergenceWarning)
        return jm.mixed("y ~ x", data, residuals=residuals, method="ml")


@pytest.fixture(scope="module")
def overdifferenced() -> MixedResults:
    """MA(1) of differences of noise, whose coefficient is -1."""
    rng = np.random.default_rng(1)
    u = rng.standard_normal((GROUPS, TIMES + 1))
    return quietly(table(np.diff(u, axis=1), rng), "ma1(t | g)")


def test_a_coefficient_at_the_end_of_its_range_is_an_optimum(
    overdifferenced: MixedResults,
) -> None:
    fit = overdifferenced
    assert fit.converged
    assert fit.is_singular
    assert fit.residual_parameters["theta1"] == pytest.approx(-1, abs=1e-6)
    assert fit.residual_table()[["std_error", "conf_low", "conf_high"]].isna().all(axis=None)
    assert not fit.estimates.free.any()
    (sentence,) = fit.diagnostics.singular_terms
    assert sentence == "residuals: theta1 is estimated as -1, at the end of its range"
    certificate = fit.certificate()
    assert certificate.findings[0].kind == "residual"
    assert certificate.parameters["on_boundary"].all()
    assert "0 free, 1 on the boundary" in str(certificate)
    # Standard errors of all else are those with the parameter held.
    error = fit.varcorr["std_error"].iloc[-1]
    assert error == pytest.approx(fit.sigma**2 * np.sqrt(2 / fit.nobs), rel=1e-9)


def test_an_end_that_the_search_approaches_ever_more_slowly_is_reached() -> None:
    rng = np.random.default_rng(1)
    u = rng.standard_normal((12, 10))
    fit = quietly(table(u[:, 2:] - u[:, :-2], rng), "ma(2, t | g)")
    assert fit.converged
    assert fit.residual_parameters["theta2"] == pytest.approx(-1, abs=1e-6)
    assert "residuals: theta2 is estimated as -1, at the end of its range" in fit.diagnostics.singular_terms


def test_the_likelihood_there_is_that_of_the_limit(overdifferenced: MixedResults) -> None:
    # Errors u_t - u_{t-1} have the covariance s^2 D D', D the differences; its likelihood by dense algebra.
    fit = overdifferenced
    D = np.eye(TIMES, TIMES + 1) - np.eye(TIMES, TIMES + 1, 1)
    V = np.kron(np.eye(GROUPS), D @ D.T)
    X = np.column_stack([np.ones(fit.nobs), fit.frame.X[:, 1]])
    P = np.linalg.inv(V)
    beta = np.linalg.solve(X.T @ P @ X, X.T @ P @ fit.frame.y)
    r = fit.frame.y - X @ beta
    n = fit.nobs
    llf = -0.5 * (n * np.log(2 * np.pi * (r @ P @ r) / n) + np.linalg.slogdet(V)[1] + n)
    assert fit.llf == pytest.approx(llf, abs=1e-6)


def test_a_nugget_of_zero_is_found_in_few_evaluations_and_said() -> None:
    rng = np.random.default_rng(4)
    e = np.zeros((GROUPS, TIMES))
    e[:, 0] = rng.standard_normal(GROUPS)
    for t in range(1, TIMES):
        e[:, t] = 0.9 * e[:, t - 1] + np.sqrt(1 - 0.81) * rng.standard_normal(GROUPS)
    e[:, 1::2] = (e[:, 0:-1:2] + e[:, 2::2]) / 2  # smoother than the exponential: no room for a nugget
    structure = jm.residuals.Exponential(time="t", group="g", nugget=True)
    data = table(e, rng)
    fit, without = quietly(data, structure), quietly(data, jm.residuals.Exponential(time="t", group="g"))
    assert fit.converged
    assert fit.residual_parameters["nugget"] < 1e-5
    assert any("nugget" in sentence for sentence in fit.diagnostics.singular_terms)
    assert fit.diagnostics.evaluations < 100
    assert fit.llf == pytest.approx(without.llf, abs=1e-3)
    assert np.isnan(fit.residual_table().loc["nugget", "std_error"])
    columns = ["estimate", "std_error"]
    np.testing.assert_allclose(
        fit.residual_table().loc["range", columns], without.residual_table().loc["range", columns], rtol=1e-3
    )


def test_correlations_of_minus_one_over_the_others_have_no_maximum() -> None:
    rng = np.random.default_rng(2)
    e = rng.standard_normal((GROUPS, TIMES))
    data = table(e - e.mean(axis=1, keepdims=True), rng)
    data["x"] -= data.groupby("g")["x"].transform("mean")
    data["y"] = 1 + data.x + (e - e.mean(axis=1, keepdims=True)).ravel()
    fit = quietly(data, "cs(g)")
    assert not fit.converged
    assert fit.diagnostics.problems == ("unbounded",)
    assert "no maximum" in fit.diagnostics.messages[0]
    assert "rho" in fit.diagnostics.messages[0]
    assert fit.certificate().findings[0].advice.startswith("Leave out the rows")
    assert abs(fit.estimates.residual.free[0]) >= FARTHEST
