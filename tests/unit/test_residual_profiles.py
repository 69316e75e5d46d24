"""Profile likelihoods beside correlated residuals, against refits with a parameter held and equal models."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed._distributions import normal_quantile
from jaxmixed.errors import DataError
from tests.support.fits import quietly

CLOSE = 1e-4
"""Of an interval's width."""

ORTHODONT = "distance ~ age + Sex"


@cache
def fit(residuals: str | None, formula: str = ORTHODONT, method: str = "ml") -> jm.MixedResults:
    return quietly(formula, jm.datasets.load("orthodont"), residuals=residuals, method=method)


def limits(one: jm.MixedResults, *names: str) -> np.ndarray:
    return one.conf_int(which=list(names), method="profile").loc[list(names)].to_numpy()


def test_coefficients_beside_exchangeable_residuals_are_those_beside_a_random_intercept() -> None:
    cs, intercept = fit("cs(age | Subject)"), fit(None, f"{ORTHODONT} + (1 | Subject)")
    names = ("age", "SexFemale")
    np.testing.assert_allclose(limits(cs, *names), limits(intercept, *names), rtol=1e-6)


def test_at_its_limits_a_coefficient_costs_as_much_as_the_level_says() -> None:
    own = fit("cs(age | Subject)")
    data = jm.datasets.load("orthodont")
    for limit in limits(own, "age")[0]:
        data["held"] = limit * data["age"]
        held = quietly("distance ~ Sex", data, residuals="cs(age | Subject)", method="ml", offset="held")
        np.testing.assert_allclose(held.deviance - own.deviance, normal_quantile(0.95) ** 2, rtol=CLOSE)


def held_at(rho: float) -> float:
    """Deviance of exchangeable residuals with a given correlation, by generalised least squares."""
    frame = fit("cs(age | Subject)").frame
    same = frame.residual.design.codes[:, None] == frame.residual.design.codes[None, :]
    R = np.where(np.eye(len(same), dtype=bool), 1.0, rho * same)
    root = np.linalg.cholesky(R)
    X, y = np.linalg.solve(root, np.asarray(frame.X)), np.linalg.solve(root, frame.y)
    rest = y - X @ np.linalg.lstsq(X, y)[0]
    n = len(y)
    return float(n * (np.log(2 * np.pi * rest @ rest / n) + 1) + np.linalg.slogdet(R)[1])


def test_a_correlation_has_the_limits_of_its_own_profile() -> None:
    own = fit("cs(age | Subject)")
    np.testing.assert_allclose(held_at(own.residual_parameters["rho"]), own.deviance, rtol=1e-10)
    for limit in limits(own, "rho")[0]:
        np.testing.assert_allclose(held_at(limit) - own.deviance, normal_quantile(0.95) ** 2, rtol=CLOSE)


@pytest.mark.slow
def test_a_standard_deviation_of_a_level_is_sigma_when_that_level_comes_first() -> None:
    table = jm.datasets.load("orthodont")
    found = []
    for order in (["Male", "Female"], ["Female", "Male"]):
        table["Sex"] = table["Sex"].cat.reorder_categories(order)
        residuals = jm.residuals.Exchangeable(group="Subject", variance_by="Sex")
        found.append(quietly(ORTHODONT, table, residuals=residuals))
    for level, first in (("Male", found[0]), ("Female", found[1])):
        expected = limits(first, "sd(Residual)")
        for one in found:
            np.testing.assert_allclose(limits(one, f"sd[{level}]"), expected, rtol=1e-6)


@pytest.mark.slow
def test_parameters_of_several_numbers_have_no_profile_and_the_error_says_so() -> None:
    own = fit("us(age | Subject)", method="reml")
    with pytest.raises(DataError, match=r"profiles of 'corr\[8,10\]' are not available: .* residual_table"):
        own.conf_int(which="corr[8,10]", method="profile")


@pytest.mark.slow
def test_beside_crossed_effects_a_coefficient_costs_as_much_as_the_level_says() -> None:
    rng = np.random.default_rng(0)
    g, t, c = np.repeat(np.arange(20), 4), np.tile(np.arange(4), 20), rng.integers(0, 6, 80)
    e = np.zeros((20, 4))
    for k in range(4):
        e[:, k] = 0.6 * e[:, k - 1] * (k > 0) + rng.normal(size=20)
    table = pd.DataFrame({"g": g, "t": t, "c": c, "x": rng.normal(size=80)})
    table["y"] = table["x"] + e.ravel() + rng.normal(size=6)[c]
    options = {"residuals": "ar1(t | g)", "method": "ml"}
    own = quietly("y ~ x + (1 | c)", table, **options)
    for limit in limits(own, "x")[0]:
        held = quietly("y ~ 1 + (1 | c)", table.assign(held=limit * table["x"]), offset="held", **options)
        np.testing.assert_allclose(held.deviance - own.deviance, normal_quantile(0.95) ** 2, rtol=CLOSE)
    assert 0.2 < limits(own, "phi1")[0, 0] < own.residual_parameters["phi1"] < limits(own, "phi1")[0, 1] < 0.9
